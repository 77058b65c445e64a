"""The inner loop: train a new adapter on a self-edit, ask the adapted model questions, and grade its answers.

Many candidates are trained and evaluated side by side, independently of each other. The domain provides the training
data, the questions and the grades (`seal_lib.loops.domain.Domain`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from seal_lib.errors import on_disk
from seal_lib.loops.domain import TOO_LONG, Candidate, Domain, Rejected, TrialT, Units
from seal_lib.loops.policy import Policy
from seal_lib.records import SelfEdit, to_dict
from seal_lib.runs.work import Count, Recorder, Work, uncounted
from seal_lib.training.jobs import Job, Result


def train(
    policy: Policy, candidates: Sequence[Candidate], domain: Domain, count: Count = uncounted
) -> list[Result | Rejected]:
    """Train one adapter per candidate, side by side, and return the results in the order of ``candidates``."""
    jobs = [_fitting(job, policy) for job in domain.jobs(candidates, policy.tokenizer)]
    wanted = [job for job in jobs if not isinstance(job, Rejected)]
    if not wanted:
        return [job for job in jobs if isinstance(job, Rejected)]
    with policy.bank(**domain.training) as bank:
        trained = {result.id: result for result in bank.run(wanted)}
        if bank.halvings:
            count(out_of_memory=bank.halvings)
    return [job if isinstance(job, Rejected) else trained[job.id] for job in jobs]


def _fitting(job: Job | Rejected, policy: Policy) -> Job | Rejected:
    """Return the job, or a rejection if an example exceeds the model's context, so that the other jobs can go on."""
    positions = getattr(getattr(policy.model, "config", None), "max_position_embeddings", None)
    if isinstance(job, Rejected) or positions is None:
        return job
    longest = max(example.reach for example in job.examples)
    if longest <= positions:
        return job
    return Rejected(TOO_LONG, f"an example takes {longest} positions, the model has {positions}")


@dataclass(frozen=True)
class Shelf:
    """A folder that stores trained adapters, one PEFT folder each.

    ``base`` names the weights that the adapters were trained on: a model folder or a Hub id with its ``revision``.
    """

    folder: Path
    base: str
    revision: str | None = None

    def place(self, name: str) -> Path:
        """Return the folder of the adapter of the candidate with id ``name``."""
        return self.folder / quote(name, safe="+,=")

    def keep(self, results: Mapping[str, Result | Rejected]) -> None:
        """Write each trained adapter, moved into place by a rename; a resumed run writes to the same folders again."""
        for name, result in results.items():
            if (adapter := getattr(result, "adapter", None)) is not None:
                with on_disk(self.place(name)):
                    adapter.save(self.place(name), self.base, self.revision)


def try_all(
    policy: Policy,
    candidates: Sequence[Candidate],
    count: Count = uncounted,
    *,
    domain: Domain[TrialT],
    shelf: Shelf | None = None,
) -> list[TrialT]:
    """Train every candidate, ask its questions and grade the answers; save the adapters if a shelf is given."""
    to_train = [c for c in candidates if c.trains]
    results = dict(zip([c.id for c in to_train], train(policy, to_train, domain, count), strict=True))
    if shelf is not None:
        shelf.keep(results)
    return ask_candidates(policy, candidates, results, count, domain=domain)


def ask_candidates(
    policy: Policy,
    candidates: Sequence[Candidate],
    results: Mapping[str, Result | Rejected],
    count: Count = uncounted,
    *,
    domain: Domain[TrialT],
) -> list[TrialT]:
    """Ask the questions of every candidate and grade the answers.

    ``results`` maps the id of each candidate that trains to its training result or rejection. A candidate whose
    training failed is not asked.
    """
    generator, asked = policy.generator(), []
    for candidate in candidates:
        adapter = getattr(results.get(candidate.id), "adapter", None)
        failed = candidate.trains and adapter is None
        asked.append([] if failed else domain.questions(candidate, adapter, policy.tokenizer, generator.positions))
    requests = [request for several in asked for request in several if request is not None]
    texts = iter(generator.generate(requests, domain.answering) if requests else ())
    answers = [[None if request is None else next(texts)[0] for request in several] for several in asked]
    count(trained=sum(getattr(r, "tokens", 0) for r in results.values()), scored=len(requests))
    return domain.grade(candidates, [results.get(candidate.id) for candidate in candidates], answers, count)


def _rows(
    policy: Policy, part: Sequence[Candidate], count: Count, *, domain: Domain, shelf: Shelf | None
) -> list[dict]:
    return [to_dict(trial) for trial in try_all(policy, part, count, domain=domain, shelf=shelf)]


def score_candidates(
    run: Recorder,
    policy: Policy,
    candidates: Sequence[Candidate],
    domain: Domain[TrialT],
    *,
    phase: str,
    chunk: int | None = None,
) -> list[TrialT]:
    """Return the trials of all candidates, recorded under ``phase``; the run's workers share the work.

    If the run keeps the adapters of the phase, each adapter is written before its trial is recorded.
    """
    folder = run.adapters(phase) if any(candidate.trains for candidate in candidates) else None
    shelf = Shelf(folder, *policy.place(run)) if folder else None
    work = Work(partial(_rows, domain=domain, shelf=shelf), policy, run.count)
    return [domain.load(row) for row in run.map(phase, candidates, work, chunk=chunk or domain.chunk)]


def score_edits(
    run: Recorder,
    policy: Policy,
    edits: Sequence[SelfEdit],
    units: Units,
    domain: Domain[TrialT],
    *,
    arm: str,
    phase: str,
    seed: int,
) -> list[TrialT]:
    """Return one trial per self-edit. Self-edits that the domain reads as equal are trained once."""
    known = {unit.id: unit for unit in units}
    read = [domain.read(known[edit.unit_id], edit, arm, seed) for edit in edits]
    distinct = {c.id: c for c in read if isinstance(c, Candidate)}
    tried = {t.id: t for t in score_candidates(run, policy, list(distinct.values()), domain, phase=phase)}
    return [domain.trial(e, c if isinstance(c, Rejected) else tried[c.id]) for e, c in zip(edits, read, strict=True)]
