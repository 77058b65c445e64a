"""The paper's Figure 3 in a drawing of our own, filled with one puzzle of a finished run.

It shows demonstrations → a configuration, written as JSON → test-time training → two attempts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_lib.arc import augment, plots
from seal_lib.arc.data import load_tasks
from seal_lib.arc.domain import Attempt
from seal_lib.arc.self_edits import Config
from seal_lib.arc.tasks import Pair, Task
from seal_lib.report import diagrams
from seal_lib.report.arms import arm_label
from seal_lib.report.diagrams import GIVEN, RIGHT, TRAINED, WIDE, WRITTEN, WRONG
from seal_lib.report.marks import draws
from seal_lib.runs import manifest

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

EXPERIMENT = "arc/few_shot"
HIGH = 2.9  # inches
DEMONSTRATIONS, EXAMPLES = 3, 3  # maximum numbers shown


def pictures(
    own: pd.DataFrame, full: pd.DataFrame, rows: pd.DataFrame
) -> list[tuple[Callable, str, pd.DataFrame, dict]]:
    """Return the diagram of a run of ``arc/few_shot``, in the format of `seal_lib.report.plots.pictures`, or []."""
    folder = diagrams.run_of(own) if set(own["experiment"]) == {EXPERIMENT} else None
    table = example(folder) if folder else None
    return [] if table is None else [(one_configuration, "one_configuration", table, {})]


def example(folder: Path) -> pd.DataFrame | None:
    """Return the table of the diagram for the first puzzle that SEAL's last round solved in the run's first loop.

    It shows the first configuration that solved the puzzle. None if no puzzle was solved or the tasks are not
    available.
    """
    import pandas as pd

    p = manifest.read(folder)["parameters"]
    found = diagrams.recorded(folder, r"seed_\d+/evaluate/seal_round_\d+")
    last = diagrams.last_round(found)
    journal = ("phase", "unit", "crc")
    rows = [{key: row[key] for key in row if key not in journal} for row in found.get(last, ()) if row["config"]]
    tried = [Attempt.from_dict(row) for row in rows]
    solved = next((attempt for attempt in tried if attempt.pass_2), None)
    if solved is None:
        return None
    source = p["tasks"], p["solutions"], p["ids"]
    task = diagrams.unit_of(solved.unit_id, lambda: load_tasks(*source, seed=p["tasks_seed"]))
    if task is None or not task.solutions:
        return None
    lines: list[dict[str, Any]] = [
        *({"part": "demonstration", **_texts(pair)} for pair in task.train),
        {"part": "test", "input": json.dumps(task.tests[0]), "output": json.dumps(task.solutions[0])},
        {"part": "self-edit", "head": arm_label(last.rpartition("/")[2]), "text": solved.config.text()},
        *({"part": "example", "head": name, **_texts(pair)} for name, pair in _augmented(task, solved.config, p)),
        {
            "part": "training",
            "head": f"LoRA, rank {p['rank']}",
            "text": f"{solved.steps} steps, loss {solved.first_loss:.2f} → {solved.last_loss:.2f}",
        },
        *({"part": "attempt", "output": json.dumps(grid)} for grid in solved.attempts[0]),
    ]
    count = f"of {len(tried)} different configurations of that loop {sum(attempt.pass_2 for attempt in tried)} solved"
    text = f"The first puzzle that was solved ({count} theirs). Model {p['model']}, protocol {p['protocol']}, run "
    return pd.DataFrame([*lines, {"part": "about", "text": f"{text}{folder.parent.parent.name}/{folder.name}."}])


def _augmented(task: Task, config: Config, p: dict[str, Any]) -> list[tuple[str, Pair]]:
    """Return the first demonstration unchanged, and under one augmenter of each switch that is on."""
    first = {switch: augment.family(switch, p["protocol"], 0, task.id)[0] for switch in config.switches}
    changed = [(switch.split("_")[1], augmenter.pair(task.train[0])) for switch, augmenter in first.items()]
    return [("as it is", task.train[0]), *changed]


def _texts(pair: Pair) -> dict[str, str]:
    return {"input": json.dumps(pair.input), "output": json.dumps(pair.output)}


# ------------------------------------------------------------------------------------------ drawing


def _grid(ax: Axes, text: str, x: float, y: float, side: float, frame: str = "") -> None:
    """Draw a grid in a square of ``side`` inches whose upper left corner is at (x, y)."""
    (left, right), (low, _) = ax.get_xlim(), ax.get_ylim()
    inside = ax.inset_axes(((x - left) / (right - left), 1 - (y + side) / low, side / (right - left), side / low))
    plots.grid_picture(tuple(tuple(row) for row in json.loads(text)), inside, frame=frame)


def _pairs(ax: Axes, rows: list[dict], x: float, y: float, side: float, names: bool = False) -> None:
    for row in rows:
        _grid(ax, row["input"], x, y, side)
        diagrams.arrow(ax, (x + side + 0.06, y + side / 2), (x + side + 0.26, y + side / 2))
        _grid(ax, row["output"], x + side + 0.32, y, side)
        if names:
            diagrams.note(ax, x + 2 * side + 0.4, y + side / 2, row["head"], va="center")
        y += side + 0.1


def _settings(text: str) -> list[str]:
    """Return a self-edit as lines, one per value that it chose."""
    given = json.loads(text)
    lines = []
    for group, values in given.items():
        lines.append(f"{group.replace('_', ' ')}:")
        for name, value in values.items():
            name = name.removeprefix("use_").replace("_", " ")
            word = ("no", "yes")[value] if isinstance(value, bool) else str(value)
            lines.append(f"  {name}: {word.removeprefix('train_using_').replace('_', ' ')}")
    return lines


@draws("", lambda table: (WIDE + 0.1, HIGH + 0.35), "a configuration for test-time training")
def one_configuration(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw Figure 3: demonstrations → self-edit → training on augmented demonstrations → two attempts and the truth."""
    diagrams.sheet(ax, WIDE, HIGH)
    shown = diagrams.parts(table, "demonstration")[:DEMONSTRATIONS]
    (test,), (edit,), (training,) = (diagrams.parts(table, part) for part in ("test", "self-edit", "training"))
    top, high, middle = 0.05, 2.2, 1.15
    side = 0.5
    diagrams.box(ax, 0.0, top, 1.5, "demonstrations", [], GIVEN, high=high)
    _pairs(ax, shown, 0.09, top + 0.3, side)
    diagrams.arrow(ax, (1.5, middle), (1.9, middle), "writes")
    diagrams.box(ax, 1.9, top, 1.75, f"self-edit by {edit['head']}", _settings(edit["text"]), WRITTEN, high=high)
    diagrams.arrow(ax, (3.65, middle), (4.05, middle), "sets")
    diagrams.box(ax, 4.05, top, 1.75, f"training: {training['head']}", [training["text"]], TRAINED, high=high)
    _pairs(ax, diagrams.parts(table, "example")[:EXAMPLES], 4.13, top + 0.5, side - 0.05, names=True)
    diagrams.arrow(ax, (5.8, middle), (6.2, middle), "asks")
    diagrams.box(ax, 6.2, top, 1.1, "test input", [], GIVEN, high=high)
    _grid(ax, test["input"], 6.5, top + 0.26, side)
    diagrams.note(ax, 6.27, top + 0.83, "two attempts", fontweight="bold")
    for number, row in enumerate(diagrams.parts(table, "attempt")):
        paint = RIGHT if row["output"] == test["output"] else WRONG
        _grid(ax, row["output"], 6.27 + 0.52 * number, top + 1.0, 0.44, frame=paint)
        diagrams.note(ax, 6.49 + 0.52 * number, top + 1.46, "✓" if paint == RIGHT else "✗", color=paint, ha="center")
    diagrams.note(ax, 6.27, top + 1.62, "truth", fontweight="bold")
    _grid(ax, test["output"], 6.63, top + 1.7, 0.44)
    diagrams.footer(ax, table, WIDE, HIGH)
    return ax
