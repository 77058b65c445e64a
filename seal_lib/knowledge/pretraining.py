"""Continued pretraining: train a model on a whole corpus, then ask it about every passage.

The paper's Table 2 does so with 200 and 2 067 passages; this module also computes the rows in ``results.csv``. Unlike
in the inner loop, all passages share one training, so an interval over passages does not cover the randomness of
training. That takes several seeds, which are the loops of the tables.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from seal_lib.errors import DivergedError
from seal_lib.knowledge.corpus import CorpusDocument
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.evaluate import difference_rows, result_rows
from seal_lib.loops.domain import Candidate, Rejected
from seal_lib.loops.inner import ask_candidates
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import Pretraining
from seal_lib.models.tokens import read_ids
from seal_lib.records import Passage, PassageTrial, to_dict, values_of
from seal_lib.report import stats
from seal_lib.runs.work import Count, Recorder, Work

#: (seed → trials on the passages, seed → trials on the prior questions)
Measured = tuple[dict[int, list[PassageTrial]], dict[int, list[PassageTrial]]]


def evaluate(
    run: Recorder,
    policy: Policy,
    corpus: Sequence[CorpusDocument],
    passages: Sequence[Passage],
    prior: Sequence[Passage],
    domain: Knowledge,
    settings: Pretraining,
    *,
    arm: str,
    phase: str,
    seed: int,
) -> tuple[list[PassageTrial], list[PassageTrial]]:
    """Train the policy on a corpus, and return its trials on the passages and on the prior questions.

    An empty corpus means that it is asked without training. One training is recorded as a whole, as phase ``phase``; if
    it diverges, that is the outcome of all its trials.
    """
    unit = partial(_trained, corpus=tuple(corpus), domain=domain, settings=settings, arm=arm, seed=seed)
    units = [*passages, *prior]
    rows = run.map(phase, units, Work(unit, policy, run.count), chunk=len(units))
    trials = [PassageTrial.from_dict(row) for row in rows]
    return trials[: len(passages)], trials[len(passages) :]


def _trained(
    policy: Policy,
    part: Sequence[Passage],
    count: Count,
    *,
    corpus: Sequence[CorpusDocument],
    domain: Knowledge,
    settings: Pretraining,
    arm: str,
    seed: int,
) -> list[dict]:
    asked = [Candidate(f"{arm}/{p.id}", p, None, arm, seed, trains=False) for p in part]
    if not corpus:
        return [to_dict(trial) for trial in ask_candidates(policy, asked, {}, count, domain=domain)]
    ids, cut = _encoded(policy, corpus, settings)
    try:
        trained, report = policy.pretrained(ids, settings, seed=seed)
    except DivergedError as error:
        lost = [Rejected("diverged", str(error))] * len(asked)
        return [to_dict(trial) for trial in domain.grade(asked, lost, [()] * len(asked), count)]
    count(trained=report["tokens"])
    about = {"steps": report["steps"], "tokens": report["tokens"]}
    about |= {key: report[key] for key in ("first_loss", "last_loss")}
    trials = ask_candidates(trained, asked, {}, count, domain=domain)
    return [to_dict(replace(t, **about, left_out=t.left_out | cut.get(t.unit_id, {}))) for t in trials]


def _encoded(
    policy: Policy, corpus: Sequence[CorpusDocument], settings: Pretraining
) -> tuple[list[list[int]], dict[str, dict[str, int]]]:
    """Return the token ids of each document with an end-of-text token, truncated to what settings and model allow, and
    the number of tokens cut from each passage."""
    positions = getattr(getattr(policy.model, "config", None), "max_position_embeddings", settings.cpt_length)
    longest, end = min(settings.cpt_length, positions), policy.tokenizer.eos_token_id
    found: list[list[int]] = []
    cut: dict[str, dict[str, int]] = {}
    for document in corpus:
        ids = [*read_ids(document.text, policy.tokenizer, split_special_tokens=True), end]
        if len(ids) > longest:
            lost = cut.setdefault(document.passage, {"cut_tokens": 0})
            lost["cut_tokens"] += len(ids) - longest
        found.append(ids[:longest])
    return found, cut


def name(passages: int, settings: Pretraining, count: int = 0) -> str:
    """Return the experiment of a corpus: ``knowledge/cpt_200_full``; where ``count`` is set, ``…/texts_1``."""
    return f"knowledge/cpt_{passages}_{settings.cpt_method}" + (f"/texts_{count}" if count else "")


def rows_of(
    experiment: str,
    measured: Mapping[str, Measured],
    pairs: Sequence[tuple[str, str]],
    *,
    grader: str,
    **label: str,
) -> list[dict]:
    """Return the rows of one corpus: accuracy, tokens trained and prior questions of every arm, and the differences of
    those ``pairs`` whose arms were both measured."""
    rows = []
    for arm, (trials, prior) in measured.items():
        rows += result_rows(experiment, arm, trials, grader=grader, **label)
        tokens = {seed: {"": float(several[0].tokens or math.nan)} for seed, several in trials.items()}
        rows.append(stats.mean_over_loops(tokens, stats.ANY, "corpus").row(experiment, arm, "tokens_trained", **label))
        if any(prior.values()):
            kept = stats.mean_over_loops(values_of(prior, lambda t: t.mean(grader)), stats.SHARE, "question")
            rows.append(kept.row(experiment, arm, "prior_right", grader=grader, **label))
    there = [pair for pair in pairs if set(pair) <= set(measured)]
    asked = {arm: trials for arm, (trials, _) in measured.items()}
    return rows + difference_rows(experiment, asked, there, grader=grader, **label)


def comparisons(arms: Sequence[str], seal: str) -> list[tuple[str, str]]:
    """Return the pairs of arms to compare: each with the frozen model and with untrained self-edits, and SEAL with the
    stronger writer and both kinds of EntiGraph."""
    pairs = [(arm, "frozen") for arm in arms if arm != "frozen"]
    pairs += [(arm, "own_untrained") for arm in arms if arm not in ("frozen", "own_untrained")]
    return pairs + [(seal, arm) for arm in ("external", "entigraph", "entigraph_pairs")]
