"""Run the arms of the paper's table, and compute their rows in ``results.csv``.

A baseline is a row of `BASELINES`; to add one, add a row. Every number gets an interval over passages, and over loops
where an arm has several.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import methodcaller
from pathlib import Path

from seal_lib.errors import DataError, must_be_one_of
from seal_lib.knowledge.documents import read_edit, split_edit
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.prompts import Prompts
from seal_lib.loops.domain import Candidate, Rejected
from seal_lib.loops.inner import score_candidates
from seal_lib.loops.outer import evaluate
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Passage, PassageTrial, SelfEdit, values_of
from seal_lib.report import stats
from seal_lib.report.arms import difference_arm
from seal_lib.runs import manifest
from seal_lib.runs.work import Recorder
from seal_lib.seeds import derive_seed

#: an arm's trials: those of its only loop, or loop -> trials
ArmTrials = Sequence[PassageTrial] | Mapping[int, Sequence[PassageTrial]]


@dataclass(frozen=True)
class Baseline:
    """One row of the table.

    ``text``: what is trained on: ``none`` (no training), ``passage`` (the passage alone), ``policy`` (the policy's own
    self-edit), or ``reference:<writer>`` (notes that come with the passage). ``in_context``: the passage is shown when
    asking.
    """

    text: str
    meaning: str
    in_context: bool = False


BASELINES: dict[str, Baseline] = {
    "frozen": Baseline("none", "the model as it is, asked without the passage"),
    "passage_in_context": Baseline("none", "the model as it is, passage in view: the ceiling", in_context=True),
    "passage_only": Baseline("passage", "trained on the passage text alone"),
    "own_untrained": Baseline("policy", "passage and the untrained policy's self-edit"),
    "external": Baseline("reference:external", "passage and the notes of a stronger writer (the paper's GPT-4.1)"),
    "gold_notes": Baseline("reference:gold", "passage and hand-written notes: forward statements, every fact"),
    "notes_half": Baseline("reference:half", "hand-written forward statements on half of the facts"),
    "notes_questions": Baseline("reference:questions", "hand-written question-and-answer lines"),
    "notes_verbatim": Baseline("reference:verbatim", "hand-written notes that repeat the passage's sentences"),
    "notes_remark": Baseline("reference:remark", "hand-written remarks that state no fact"),
}


def evaluate_arm(
    run: Recorder,
    policy: Policy,
    passages: Sequence[Passage],
    arm: str,
    domain: Knowledge,
    outer: OuterLoop,
    *,
    seed: int,
    group: str = "",
) -> list[PassageTrial]:
    """Run one arm and return its trials, one per passage, recorded as phase ``<group>evaluate/<arm>``."""
    must_be_one_of("arms", arm, BASELINES)
    kind, phase = BASELINES[arm].text, f"{group}evaluate/{arm}"
    if kind == "policy":
        return evaluate(run, policy, passages, domain, outer, arm=arm, seed=seed, group=group)
    if kind == "none":
        shown = BASELINES[arm].in_context
        asked = [Candidate(f"{arm}/{p.id}", p, None, arm, 0, trains=False, shown=shown) for p in passages]
        return score_candidates(run, policy, asked, domain, phase=phase, chunk=64)
    writer = kind.removeprefix("reference:")
    edits = [None if kind == "passage" else reference_edit(p, writer, arm) for p in passages]
    candidates = [
        Candidate(f"{p.id}/{writer}", p, edit, arm, derive_seed(seed, p.id, writer))
        for p, edit in zip(passages, edits, strict=True)
        if not (edit and edit.unwritten)
    ]
    tried = iter(score_candidates(run, policy, candidates, domain, phase=phase))
    return [
        domain.trial(edit, Rejected("unwritten", edit.unwritten)) if edit and edit.unwritten else next(tried)
        for edit in edits
    ]


def evaluate_arms(
    run: Recorder,
    policy: Policy,
    passages: Sequence[Passage],
    arms: Sequence[str],
    domain: Knowledge,
    outer: OuterLoop,
    *,
    seeds: Sequence[int],
) -> dict[str, ArmTrials]:
    """Return the trials by arm: one whose text is sampled is run for each seed (seed -> trials), others for the first.

    Sampling is that of a loop with the same seed, so that rounds are compared with the same untrained self-edits.
    """
    trials: dict[str, ArmTrials] = {}
    for arm in arms:
        sampled = arm in BASELINES and BASELINES[arm].text == "policy"
        by_seed = {
            seed: evaluate_arm(run, policy, passages, arm, domain, outer, seed=seed, group=f"seed_{seed}/")
            for seed in (seeds if sampled else seeds[:1])
        }
        trials[arm] = by_seed if sampled else by_seed[seeds[0]]
    return trials


def recorded_trials(folder: Path, arms: Sequence[str]) -> dict[str, dict[int, list[PassageTrial]]]:
    """Return what `evaluate_arms` recorded in a run's folder: arm -> seed -> trials, without arms that are absent."""
    found: dict[str, dict[int, list[PassageTrial]]] = {}
    for row in manifest.rows(folder):
        named = re.fullmatch(r"seed_(\d+)/evaluate/(\w+)", row["phase"])
        if named and named[2] in arms:
            found.setdefault(named[2], {}).setdefault(int(named[1]), []).append(PassageTrial.from_dict(row))
    return {arm: found[arm] for arm in arms if arm in found}


def reference_edit(passage: Passage, writer: str, arm: str) -> SelfEdit:
    """Return another writer's notes about ``passage`` as a self-edit, empty and with a reason if the writer failed.

    Raises:
        DataError: the passage has no notes by that writer.
    """
    if writer in passage.unwritten and writer not in passage.references:
        return SelfEdit(f"{passage.id}/{writer}", passage.id, "", writer, unwritten=passage.unwritten[writer])
    if writer not in passage.references:
        has = ", ".join(passage.references) or "none"
        raise DataError(
            f"arm {arm!r}: passage {passage.id} has no notes by {writer!r} (it has {has}); drop the arm, or say who "
            "writes for the arm external: external=FILE of completions, or external=MODEL@URL."
        )
    return SelfEdit(f"{passage.id}/{writer}", passage.id, passage.references[writer], writer)


def result_rows(experiment: str, arm: str, trials: ArmTrials, *, grader: str, **label: str) -> list[dict]:
    """Return an arm's rows of ``results.csv``: accuracy (mean of passages), micro, F1, containment, blanks, failures.

    The passage is the unit of every row. A failed trial has no accuracy: it is dropped from the means, and counted in
    ``dropped`` and ``failed_rate``. Rows ``left_out:<kind>`` give what was left out of texts and questions, per trial.
    ``label`` is protocol and model, here and below.
    """
    flat = [t for several in trials.values() for t in several] if isinstance(trials, Mapping) else list(trials)
    rows = []
    for metric, of in {"accuracy": grader, "blank_rate": "blank", "f1": "f1", "contains": "contains"}.items():
        estimate = stats.mean_over_loops(values_of(trials, methodcaller("mean", of)), stats.SHARE)
        rows.append(estimate.row(experiment, arm, metric, grader="" if of == "blank" else of, **label))
    grades = values_of(trials, methodcaller("scores", grader))
    micro = stats.ratio_over_loops(
        {
            loop: {p: (sum(map(sum, several)), sum(map(len, several))) for p, several in units.items()}
            for loop, units in grades.items()
        }
    )
    rows.insert(1, micro.row(experiment, arm, "accuracy_micro", grader=grader, **label))
    untrained = all(t.edit is None and not t.steps and t.outcome == "ok" for t in flat)  # so that nothing can diverge
    failed = values_of(trials, lambda t: float(t.outcome not in ("ok", "empty_edit")))
    failures = stats.mean_over_loops(failed, stats.SHARE, constant=untrained)
    rows.append(failures.row(experiment, arm, "failed_rate", **label))
    for kind in sorted({kind for t in flat for kind in t.left_out}):
        lost = values_of(trials, lambda t, kind=kind: float(t.left_out.get(kind, 0)))
        rows.append(stats.mean_over_loops(lost, stats.ANY).row(experiment, arm, f"left_out:{kind}", **label))
    if any(t.edit for t in flat):
        empty = values_of(trials, lambda t: float(t.outcome == "empty_edit" or _blank(t.edit)))
        rows.append(stats.mean_over_loops(empty, stats.SHARE).row(experiment, arm, "empty_edit_rate", **label))
    return rows


def token_row(experiment: str, arm: str, trials: ArmTrials, **label: str) -> dict:
    """Return the row of an arm's cost: tokens trained on per passage, all epochs, failed trials included."""
    spent = values_of(trials, lambda t: float(t.tokens))
    return stats.mean_over_loops(spent, stats.ANY).row(experiment, arm, "tokens_per_edit", **label)


def _blank(edit: SelfEdit | None) -> bool:
    return edit is not None and not edit.unwritten and not edit.text.strip()


def difference_rows(
    experiment: str,
    trials: Mapping[str, ArmTrials],
    pairs: Sequence[tuple[str, str]],
    *,
    grader: str,
    **label: str,
) -> list[dict]:
    """Return paired differences over passages (and loops), arm ``"a - b"``, for each pair whose arms were both run.

    All differences are one family for Holm's ``p``. An arm with one loop is compared with every loop of the other.
    """
    values = {arm: values_of(several, lambda t: t.mean(grader)) for arm, several in trials.items()}
    return [
        estimate.row(experiment, difference_arm(a, b), "difference", grader=grader, **label)
        for (a, b), estimate in stats.compare(values, pairs).items()
    ]


def table_rows(
    experiment: str, trials: Mapping[str, ArmTrials], pairs: Sequence[tuple[str, str]], *, grader: str, **label: str
) -> list[dict]:
    """Return the rows of several arms and of their differences."""
    each = [result_rows(experiment, arm, several, grader=grader, **label) for arm, several in trials.items()]
    return [*chain(*each), *difference_rows(experiment, trials, pairs, grader=grader, **label)]


def edit_rows(
    experiment: str,
    arm: str,
    edits: Sequence[SelfEdit] | Mapping[int, Sequence[SelfEdit]],
    passages: Sequence[Passage],
    *,
    protocol: str,
    model: str,
    prompts: Prompts | None = None,
) -> list[dict]:
    """Return rows that describe self-edits: tokens and pieces for any text; style and coverage for passages of the made
    world. ``prompts`` is the format of the texts, if it has rules of its own.

    Coverage is the share of a passage's facts stated correctly from person to value. Intervals are over passages, and
    over loops where ``edits`` has several (loop -> self-edits).
    """
    from seal_lib.knowledge.world import NOTE_STYLES, describe_notes

    by_loop = edits if isinstance(edits, Mapping) else {0: edits}
    written = [edit for several in by_loop.values() for edit in several]
    if not written:
        return []
    known, kind = {p.id: p for p in passages if p.facts}, protocol.split()[0]  # a label begins with the protocol
    measures: dict[str, Callable[..., float]] = {
        "edit_tokens": lambda e: float(e.tokens) if e.tokens else math.nan,
        "edit_documents": lambda e: float(len(split_edit(e.text, protocol=kind, prompts=prompts))),
    }
    if all(e.unit_id in known for e in written):
        notes = {id(e): describe_notes(e.text, known[e.unit_id]) for e in written}
        measures["coverage"] = lambda e: notes[id(e)]["coverage"]
        measures["false_line_share"] = lambda e: notes[id(e)]["false"] / max(1, notes[id(e)]["lines"])
        for style in [s for s in NOTE_STYLES if s != "mixed"] + ["false", "other", "empty"]:
            measures[f"style_share:{style}"] = lambda e, style=style: float(notes[id(e)]["style"] == style)
    left_out = {id(edit): read_edit(edit.text, protocol=kind, prompts=prompts)[1] for edit in written}
    for what in sorted({what for counts in left_out.values() for what in counts}):
        measures[f"edit_left_out:{what}"] = lambda e, what=what: float(left_out[id(e)].get(what, 0))
    rows = []
    for metric, of in measures.items():
        bounds = stats.ANY if metric.startswith("edit_") else stats.SHARE
        estimate = stats.mean_over_loops(values_of(by_loop, of), bounds)
        if estimate.n:
            rows.append(estimate.row(experiment, arm, metric, protocol, model))
    return rows
