"""The rows of the paper's table as data: which text an arm trains on, its trials, and its lines in ``results.csv``.

A baseline is a row of :data:`ARMS`; to add one, add a row. Every number gets an interval over passages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seal_lib import stats
from seal_lib.errors import DataError
from seal_lib.inner_loop import Candidate, InnerLoop
from seal_lib.knowledge.documents import split_edit
from seal_lib.knowledge.prompts import Prompts
from seal_lib.records import Passage, SelfEdit, Trial, by_passage
from seal_lib.restem import OuterLoop, Policy, ask, candidates_of, score, write_self_edits
from seal_lib.seeds import derive_seed


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    ``text``: ``none`` (no training), ``passage`` (train on it alone), ``policy`` (the policy's own self-edit), or
    ``reference:<writer>`` (notes that come with the passage). ``in_context``: the passage is shown when asking.
    """

    text: str
    meaning: str
    in_context: bool = False


ARMS: dict[str, Arm] = {
    "frozen": Arm("none", "the model as it is, asked without the passage"),
    "passage_in_context": Arm("none", "the model as it is, passage in view: the ceiling", in_context=True),
    "passage_only": Arm("passage", "trained on the passage text alone"),
    "own_untrained": Arm("policy", "passage and the untrained policy's self-edit"),
    "external": Arm("reference:external", "passage and the notes of a stronger writer (the paper's GPT-4.1)"),
    "gold_notes": Arm("reference:gold", "passage and hand-written notes: forward statements, every fact"),
    "notes_half": Arm("reference:half", "hand-written forward statements on half of the facts"),
    "notes_questions": Arm("reference:questions", "hand-written question-and-answer lines"),
    "notes_verbatim": Arm("reference:verbatim", "hand-written notes that repeat the passage's sentences"),
    "notes_remark": Arm("reference:remark", "hand-written remarks that state no fact"),
}


def evaluate_arm(run, policy: Policy, passages: Sequence[Passage], arm: str, prompts: Prompts, inner: InnerLoop,
                 outer: OuterLoop, *, seed: int, name: str | None = None, group: str = "") -> list[Trial]:  # fmt: skip
    """Trials of one arm, one per passage, recorded as phase ``<group>evaluate/<name>``.

    ``name`` is the row's name when a later policy stands in ``own_untrained``'s place (``seal_round_1``, …).
    """
    if arm not in ARMS:
        raise DataError(f"arms: {arm!r} is not one of {', '.join(ARMS)}.")
    kind, name = ARMS[arm].text, name or arm
    phase = f"{group}evaluate/{name}"
    if kind == "none":
        return ask(run, policy, passages, name, prompts, inner, phase=phase, in_context=ARMS[arm].in_context)
    if kind == "policy":
        edits = write_self_edits(run, policy, passages, prompts, outer, phase=f"{phase}/write", seed=seed, samples=1)
        return score(run, policy, candidates_of(edits, passages, name, seed), prompts, inner, phase=phase)
    writer = kind.removeprefix("reference:")
    seeds = {p.id: derive_seed(seed, p.id, writer) for p in passages}
    edits = {p.id: None if kind == "passage" else reference_edit(p, writer, arm) for p in passages}
    candidates = [Candidate(f"{p.id}/{writer}", p, edits[p.id], name, seeds[p.id]) for p in passages]
    return score(run, policy, candidates, prompts, inner, phase=phase)


def evaluate_arms(run, policy: Policy, passages: Sequence[Passage], arms: Sequence[str], prompts: Prompts,
                  inner: InnerLoop, outer: OuterLoop, *, seeds: Sequence[int]) -> dict[str, list[Trial]]:  # fmt: skip
    """Trials by arm: one whose text is sampled is run once per seed, any other with the first seed only.

    Sampling is that of a loop with the same seed, so that rounds are compared with the same untrained self-edits.
    """
    trials: dict[str, list[Trial]] = {}
    for arm in arms:
        sampled = arm in ARMS and ARMS[arm].text == "policy"
        for seed in seeds if sampled else seeds[:1]:
            group = f"seed_{seed}/"
            trials.setdefault(arm, []).extend(
                evaluate_arm(run, policy, passages, arm, prompts, inner, outer, seed=seed, group=group)
            )
    return trials


def reference_edit(passage: Passage, writer: str, arm: str) -> SelfEdit:
    """Notes somebody else wrote about ``passage``, as a self-edit."""
    if writer not in passage.references:
        has = ", ".join(passage.references) or "none"
        raise DataError(f"arm {arm!r}: passage {passage.id} has no notes by {writer!r} (it has {has}); drop the arm.")
    return SelfEdit(f"{passage.id}/{writer}", passage.id, passage.references[writer], writer)


def result_rows(experiment: str, arm: str, trials: Sequence[Trial], *, protocol: str, model: str,
                grader: str) -> list[dict]:  # fmt: skip
    """Lines of ``results.csv`` for one arm: accuracy (mean of passages), micro, F1, containment, blanks, failures."""
    label = {"protocol": protocol, "model": model}
    right: dict[str, float] = {}
    asked: dict[str, int] = {}
    for trial in trials:  # several trials of a passage (loop seeds) are one unit
        if trial.answers:
            scores = trial.scores(grader)
            right[trial.passage_id] = right.get(trial.passage_id, 0.0) + sum(scores)
            asked[trial.passage_id] = asked.get(trial.passage_id, 0) + len(scores)
    micro = stats.micro(list(right.values()), list(asked.values()))
    failed = stats.bootstrap_mean([float(t.outcome not in ("ok", "empty_edit")) for t in trials], unit="trial")
    rows = [
        stats.bootstrap_mean(by_passage(trials, grader)).row(experiment, arm, "accuracy", **label),
        micro.row(experiment, arm, "accuracy_micro", **label),
        stats.bootstrap_mean(by_passage(trials, "blank")).row(experiment, arm, "blank_rate", **label),
        stats.bootstrap_mean(by_passage(trials, "f1")).row(experiment, arm, "f1", **label),
        stats.bootstrap_mean(by_passage(trials, "contains")).row(experiment, arm, "contains", **label),
        failed.row(experiment, arm, "failed_rate", **label),
    ]
    empty = [float(t.edit is not None and not t.edit.text.strip()) for t in trials]
    if any(t.edit for t in trials):
        rows.append(stats.bootstrap_mean(empty, unit="trial").row(experiment, arm, "empty_edit_rate", **label))
    return rows


def difference_rows(experiment: str, trials: Mapping[str, Sequence[Trial]], pairs: Sequence[tuple[str, str]], *,
                    protocol: str, model: str, grader: str) -> list[dict]:  # fmt: skip
    """Paired differences over passages, arm ``"a - b"``, for each pair whose arms were both run.

    An arm with several trials per passage (several loop seeds) enters as their mean per passage.
    """
    rows = []
    for a, b in pairs:
        if a in trials and b in trials:
            difference = stats.paired_difference(by_passage(trials[a], grader), by_passage(trials[b], grader))
            rows.append(difference.row(experiment, f"{a} - {b}", "difference", protocol=protocol, model=model))
    return rows


def edit_rows(experiment: str, arm: str, edits: Sequence[SelfEdit], passages: Sequence[Passage], *, protocol: str,
              model: str) -> list[dict]:  # fmt: skip
    """What self-edits are like: tokens and pieces for any text; style and coverage for passages of the made world.

    Coverage is the share of a passage's facts stated correctly from person to value. Intervals are over passages.
    """
    from seal_lib.seedling.world import NOTE_STYLES, describe_notes

    if not edits:
        return []
    known = {p.id: p for p in passages if p.facts}
    measures: dict[str, list[float]] = {
        "edit_tokens": [float(e.tokens) if e.tokens else math.nan for e in edits],
        # the label of the rows begins with the protocol
        "edit_documents": [float(len(split_edit(e.text, protocol=protocol.split()[0]))) for e in edits],
    }
    if all(e.passage_id in known for e in edits):
        told = [describe_notes(e.text, known[e.passage_id]) for e in edits]
        measures["coverage"] = [d["coverage"] for d in told]
        measures["false_line_share"] = [d["false"] / d["lines"] if d["lines"] else 0.0 for d in told]
        for style in [s for s in NOTE_STYLES if s != "mixed"] + ["false", "other", "empty"]:
            measures[f"style_share:{style}"] = [float(d["style"] == style) for d in told]
    rows = []
    for metric, values in measures.items():
        groups: dict[str, list[float]] = {}
        for edit, value in zip(edits, values, strict=True):
            groups.setdefault(edit.passage_id, []).append(value)
        means = {passage: sum(several) / len(several) for passage, several in groups.items()}
        if not all(math.isnan(mean) for mean in means.values()):
            rows.append(stats.bootstrap_mean(means).row(experiment, arm, metric, protocol, model))
    return rows
