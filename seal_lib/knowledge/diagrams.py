"""The paper's Figures 1 and 2 in our own design, filled with one passage of a finished run.

An example is a table, which is also the figure's CSV. Everything in it was written, trained on and answered in that
run; the passage is chosen by a rule that the figure states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_lib.knowledge.data import batches, load_passages
from seal_lib.records import PassageTrial, values_of
from seal_lib.report import diagrams
from seal_lib.report.arms import arm_label
from seal_lib.report.diagrams import GIVEN, RIGHT, TRAINED, WIDE, WRITTEN, WRONG
from seal_lib.report.marks import draws
from seal_lib.runs import manifest

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

EXPERIMENT = "knowledge/restem"
_SHOWN_QUESTIONS = 5  # most questions that are shown


def pictures(
    own: pd.DataFrame, full: pd.DataFrame, rows: pd.DataFrame
) -> list[tuple[Callable, str, pd.DataFrame, dict]]:
    """Return the diagrams for which the run of ``knowledge/restem`` has an example, in the form of
    `seal_lib.report.plots.pictures`."""
    folder = diagrams.run_of(own) if set(own["experiment"]) == {EXPERIMENT} else None
    if folder is None:
        return []
    found = ((two_loops, loops_example(folder)), (one_self_edit, edit_example(folder)))
    return [(function, function.__name__, table, {}) for function, table in found if table is not None]


# ------------------------------------------------------------------------------------------ the examples


def _trials(folder: Path, pattern: str) -> dict[str, list[PassageTrial]]:
    """Return phase → trials for the phases that match a pattern."""
    found = diagrams.recorded(folder, pattern)
    return {phase: [PassageTrial.from_dict(row) for row in rows] for phase, rows in found.items()}


def _about(folder: Path, parameters: Mapping[str, Any], what: str) -> dict[str, str]:
    text = f"{what} Model {parameters['model']}, protocol {parameters['protocol']}, grader {parameters['grader']}"
    return {"part": "about", "text": f"{text}, run {folder.parent.parent.name}/{folder.name}."}


def edit_example(folder: Path) -> pd.DataFrame | None:
    """Return the self-edit of median accuracy in SEAL's last round of the first loop; None without evaluated rounds."""
    import pandas as pd

    p = manifest.read(folder)["parameters"]
    found = _trials(folder, r"seed_\d+/evaluate/seal_round_\d+|evaluate/frozen")
    last = diagrams.last_round(found)
    trials = [t for t in found.get(last, ()) if t.edit and t.answers and not math.isnan(t.accuracy)]
    if not trials:
        return None
    chosen = sorted(trials, key=lambda trial: trial.accuracy)[len(trials) // 2]
    before = {t.unit_id: t for t in found.get("evaluate/frozen", ())}.get(chosen.unit_id)
    old = {answer.question: answer for answer in before.answers} if before else {}
    source = p["passages"], p["n_passages"], p["passages_seed"]
    passage = diagrams.unit_of(chosen.unit_id, lambda: load_passages(*source))
    arm, title, text = arm_label(last.rpartition("/")[2]), chosen.unit_id, ""
    if passage:
        title, text = passage.title, passage.text
    lines: list[dict[str, Any]] = [
        {"part": "passage", "head": title, "text": text},
        {"part": "self-edit", "head": arm, "text": chosen.edit.text if chosen.edit else ""},
        {
            "part": "training",
            "head": f"LoRA, rank {p['rank']}",
            "text": f"{'each line is a document' if p['split_newlines'] else 'the self-edit is a document'}"
            f"{', and so is the passage' if p['add_passage'] else ''}\n\n{p['epochs']} passes, {chosen.steps} steps, "
            f"{chosen.tokens} tokens\n\nloss {chosen.first_loss:.2f} → {chosen.last_loss:.2f}",
        },
    ]
    for answer in chosen.answers:
        first = old.get(answer.question)
        lines.append(
            {
                "part": "question",
                "text": answer.question,
                "gold": answer.gold,
                "after": answer.text,
                "after_grade": answer.grades[p["grader"]],
                "before": first.text if first else "",
                "before_grade": first.grades[p["grader"]] if first else math.nan,
            }
        )
    rule = f"Of {len(trials)} held-out passages the one whose share of right answers is the middle one."
    return pd.DataFrame([*lines, _about(folder, p, rule)])


def loops_example(folder: Path) -> pd.DataFrame | None:
    """Return the self-edits of round 1 about one passage, in the first loop: the passage whose rewards differ most.
    Return None if nothing was rewarded."""
    import numpy as np
    import pandas as pd

    p = manifest.read(folder)["parameters"]
    found = _trials(folder, r"seed_\d+/seal_round_1/(score|fresh_seed)")
    scored = next((phase for phase in found if phase.endswith("/score")), "")
    tried = [trial for trial in found.get(scored, ()) if trial.edit and not math.isnan(trial.accuracy)]
    by_passage = values_of(tried, lambda trial: trial)[0]
    if not by_passage:
        return None

    unit, several = max(by_passage.items(), key=lambda item: np.ptp([trial.accuracy for trial in item[1]]))
    seed = int(scored.removeprefix("seed_").partition("/")[0])
    batch = batches(p["practice"], p["n_practice"], p["practice_seed"] + seed)
    passage, chosen = diagrams.unit_of(unit, lambda: batch(1)), found.get(scored.replace("/score", "/fresh_seed"), [])
    kept = {trial.id for trial in chosen}
    lines = [
        {"part": "passage", "head": passage.title if passage else unit, "text": passage.text if passage else ""},
        *(
            {"part": "self-edit", "text": t.edit.text if t.edit else "", "reward": t.accuracy, "kept": t.id in kept}
            for t in several
        ),
        {"part": "policy", "text": f"finetuned on the {len(kept)} kept self-edits of {len(by_passage)} passages"},
    ]
    rule = "Round 1; of the practised passages the one whose self-edits differ most."
    return pd.DataFrame([*lines, _about(folder, p, rule)])


# ------------------------------------------------------------------------------------------ the drawings


def _loop_boxes(table: pd.DataFrame) -> Iterator[tuple[dict, list[str]]]:
    for row in diagrams.parts(table, "self-edit"):
        yield row, diagrams.wrapped(row["text"] or "(empty)", 3.0, 3)


def _loops_size(table: pd.DataFrame) -> tuple[float, float]:
    high = sum(diagrams.height(len(lines)) + 0.08 for _, lines in _loop_boxes(table))
    return WIDE + 0.1, max(high, 2.2) + 1.5


@draws("", _loops_size, "the two loops, with self-edits about one passage")
def two_loops(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw Figure 1: the policy writes several self-edits, each trains an adapter, which is asked questions, and the
    policy learns to write the self-edits with the highest rewards."""
    high = _loops_size(table)[1] - 0.35
    diagrams.sheet(ax, WIDE, high)
    left, middle, right = 0.0, 2.15, 5.45
    (passage,), (policy,) = diagrams.parts(table, "passage"), diagrams.parts(table, "policy")
    top, y = 0.3, 0.3
    diagrams.note(ax, middle, 0.08, "inner loop: each trains an adapter, which is thrown away")
    middles = []
    for number, (row, lines) in enumerate(_loop_boxes(table), 1):
        paint = RIGHT if row["kept"] else WRITTEN
        low = diagrams.box(ax, middle, y, 3.0, f"self-edit {number}", lines, paint, bool(row["kept"]))
        at = (y + low) / 2
        middles.append(at)
        diagrams.arrow(ax, (middle + 3.0, at), (right, at))
        ax.barh(at, 1.1, 0.16, left=right, color="#ececec")
        ax.barh(at, 1.1 * row["reward"], 0.16, left=right, color=paint)
        worth = f"{100 * row['reward']:.0f} %{'  kept' if row['kept'] else ''}"
        weight = "bold" if row["kept"] else None
        diagrams.note(ax, right + 1.16, at - 0.06, worth, color=paint, fontweight=weight)
        y = low + 0.08
    diagrams.note(ax, right, 0.08, "reward, without passage")
    text = diagrams.wrapped(passage["text"] or "(its text is not at hand)", 1.75, 12)
    low = diagrams.box(ax, left, top, 1.75, passage["head"], text)
    box = low + 0.3
    diagrams.arrow(ax, (0.87, low), (0.87, box))
    does = diagrams.wrapped("reads the passage and writes self-edits", 1.75)
    low = diagrams.box(ax, left, box, 1.75, "policy", does, WRITTEN)
    for at in middles:
        diagrams.arrow(ax, (1.75, (box + low) / 2), (middle, at))
    end = max(y, low) + 0.22
    ax.plot([WIDE - 0.45, WIDE - 0.45, 0.87], [y - 0.02, end, end], color=WRITTEN, linewidth=1.4)
    diagrams.arrow(ax, (0.87, end + 0.01), (0.87, low))
    diagrams.note(ax, 1.05, end - 0.16, f"outer loop: the policy is {policy['text']}, and writes again", color=WRITTEN)
    diagrams.footer(ax, table, WIDE, high)
    return ax


def _columns(table: pd.DataFrame) -> list[tuple[str, str, list[str], str]]:
    """Return (heading, label of the arrow after it, lines, colour) for each box of Figure 2."""
    (passage,), (edit,), (training,) = (diagrams.parts(table, part) for part in ("passage", "self-edit", "training"))
    text = passage["text"] or "(its text is not at hand)"
    return [
        (f"passage: {passage['head']}", "writes", diagrams.wrapped(text, 2.1, 11), GIVEN),
        (f"self-edit by {edit['head']}", "trains", diagrams.wrapped(edit["text"], 2.55, 11), WRITTEN),
        (f"one adapter: {training['head']}", "", diagrams.wrapped(training["text"], 1.75), TRAINED),
    ]


def _edit_size(table: pd.DataFrame) -> tuple[float, float]:
    high = max(diagrams.height(len(lines)) for *_, lines, _ in _columns(table))
    return WIDE + 0.1, high + 0.165 * min(_SHOWN_QUESTIONS, len(diagrams.parts(table, "question"))) + 1.55


@draws("", _edit_size, "from a passage to answers without it")
def one_self_edit(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw Figure 2: passage → self-edit → one adapter → answers without the passage, next to those before training."""
    high = _edit_size(table)[1] - 0.35
    diagrams.sheet(ax, WIDE, high)
    boxes, x, low = _columns(table), 0.0, 0.0
    deep = max(diagrams.height(len(lines)) for *_, lines, _ in boxes)
    for (head, word, lines, paint), wide in zip(boxes, (2.1, 2.55, 1.75), strict=True):
        low = diagrams.box(ax, x, 0.05, wide, head, lines, paint, high=deep)
        if word:
            diagrams.arrow(ax, (x + wide, 0.05 + deep / 2), (x + wide + 0.45, 0.05 + deep / 2), word)
        x += wide + 0.45
    asked = diagrams.parts(table, "question")
    y = low + 0.36
    diagrams.arrow(ax, (6.0, low), (6.0, y - 0.02))
    columns = {  # of the example → place, width, heading
        "text": (0.02, 3.4, "asked without the passage"),
        "before": (3.45, 1.1, "before"),
        "gold": (4.55, 1.1, "right answer"),
        "after": (5.55, 1.75, "with the adapter"),
    }
    for at, _, head in columns.values():
        diagrams.note(ax, at, y, head, fontweight="bold")
    for row in asked[:_SHOWN_QUESTIONS]:
        y += 0.165
        for name, (at, room, _) in columns.items():
            grade = row.get(f"{name}_grade", math.nan)
            paint = "#222222" if math.isnan(grade) else RIGHT if grade == 1 else WRONG
            sign = "" if math.isnan(grade) else " ✓" if grade == 1 else " ✗"
            line = " ".join(diagrams.wrapped(str(row[name]).replace("\n", " "), room, 1)) or "(blank)"
            diagrams.note(ax, at, y, line + sign, color=paint, fontsize=diagrams.SIZE)
    right = sum(row["after_grade"] == 1 for row in asked)
    more = f"{right} of {len(asked)} right with the adapter; {min(_SHOWN_QUESTIONS, len(asked))} are shown."
    diagrams.note(ax, 0.02, y + 0.2, more)
    diagrams.footer(ax, table, WIDE, high)
    return ax
