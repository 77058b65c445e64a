"""The inner loop: self-edit → one fresh adapter → answers → a graded trial.

Many candidates are trained and asked side by side, independently of each other. The domain decides the training data,
the questions and the grades (`seal_lib.loops.domain.Domain`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from seal_lib.errors import on_disk
from seal_lib.loops.domain import TOO_LONG, Candidate, Count, Domain, Rejected, TrialT, Unit, uncounted
from seal_lib.loops.policy import Policy
from seal_lib.records import SelfEdit, to_dict
from seal_lib.runs.work import Recorder, Work
from seal_lib.training.jobs import Job, Result


def train(
    policy: Policy, candidates: Sequence[Candidate], domain: Domain, count: Count = uncounted
) -> list[Result | Rejected]:
    """One adapter per candidate, trained side by side, in the order of ``candidates``."""
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
    """The job, or its rejection if an example is longer than the model: the others go on."""
    positions = getattr(getattr(policy.model, "config", None), "max_position_embeddings", None)
    if isinstance(job, Rejected) or positions is None:
        return job
    longest = max(example.reach for example in job.examples)
    if longest <= positions:
        return job
    return Rejected(TOO_LONG, f"an example takes {longest} positions, the model has {positions}")


@dataclass(frozen=True)
class Shelf:
    """Where trained adapters are kept, a PEFT folder each, and the weights under them: a folder or an id of the Hub."""

    folder: Path
    base: str
    revision: str | None = None

    def place(self, name: str) -> Path:
        """The folder of one candidate's adapter, by its id."""
        return self.folder / quote(name, safe="+,=")

    def keep(self, results: Mapping[str, Result | Rejected]) -> None:
        """Write each adapter in one rename: what a killed run wrote is written again, in the same place."""
        for name, result in results.items():
            if (adapter := getattr(result, "adapter", None)) is not None:
                with on_disk(self.place(name)):
                    adapter.save(self.place(name), self.base, self.revision)


def try_all(policy: Policy, candidates: Sequence[Candidate], count: Count = uncounted, *, domain: Domain[TrialT],
            shelf: Shelf | None = None) -> list[TrialT]:  # fmt: skip
    """Train, ask and grade every candidate."""
    to_train = [c for c in candidates if c.trains]
    results = dict(zip([c.id for c in to_train], train(policy, to_train, domain, count), strict=True))
    if shelf is not None:
        shelf.keep(results)
    return ask(policy, candidates, results, count, domain=domain)


def ask(policy: Policy, candidates: Sequence[Candidate], results: Mapping[str, Result | Rejected],
        count: Count = uncounted, *, domain: Domain[TrialT]) -> list[TrialT]:  # fmt: skip
    """Ask and grade every candidate; ``results``: the training of each that trains, by its id."""
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


def score(run: Recorder, policy: Policy, candidates: Sequence[Candidate], domain: Domain[TrialT], *, phase: str,
          chunk: int | None = None) -> list[TrialT]:  # fmt: skip
    """Trials of all candidates, recorded under ``phase``; work is shared among the run's workers.

    Where the run keeps the adapters of the phase, each is written before its trial is recorded.
    """
    folder = run.adapters(phase) if any(candidate.trains for candidate in candidates) else None
    shelf = Shelf(folder, *policy.place(run)) if folder else None
    work = Work(partial(_rows, domain=domain, shelf=shelf), policy, run.count)
    return [domain.load(row) for row in run.map(phase, candidates, work, chunk=chunk or domain.chunk)]


def score_edits(run: Recorder, policy: Policy, edits: Sequence[SelfEdit], units: Sequence[Unit],
                domain: Domain[TrialT], *, arm: str, phase: str, seed: int) -> list[TrialT]:  # fmt: skip
    """One trial per self-edit; equal ones, as the domain sees them, are trained once."""
    known = {unit.id: unit for unit in units}
    read = [domain.read(known[edit.unit_id], edit, arm, seed) for edit in edits]
    distinct = {c.id: c for c in read if isinstance(c, Candidate)}
    tried = {t.id: t for t in score(run, policy, list(distinct.values()), domain, phase=phase)}
    return [domain.trial(e, c if isinstance(c, Rejected) else tried[c.id]) for e, c in zip(edits, read, strict=True)]
