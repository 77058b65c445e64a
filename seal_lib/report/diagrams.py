"""Draw the boxes, arrows and wrapped text of method diagrams, in inches from the upper left corner of the axes.

The domains fill diagrams with an example from a finished run (``knowledge.diagrams``, ``arc.diagrams``).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_lib import paths
from seal_lib.errors import SealError
from seal_lib.report.marks import GREY, INK
from seal_lib.runs import manifest

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

GIVEN, WRITTEN, TRAINED, RIGHT, WRONG = "#6b6b6b", "#0072B2", "#7A68A6", "#00795A", "#B3441E"
WIDE = 7.3  # inches, of all diagrams
SIZE = 7.2  # font size of a diagram, in points
LINE = 1.32 * SIZE / 72  # line spacing in inches


def sheet(ax: Axes, wide: float, high: float) -> None:
    """Turn the axes into an empty sheet of the given size in inches."""
    ax.set(xlim=(-0.02, wide + 0.02), ylim=(high, 0))
    ax.axis("off")


def wrapped(text: str, wide: float, most: int = 99) -> list[str]:
    """Return the lines of a text in a box ``wide`` inches wide; beyond ``most`` lines it ends in an ellipsis."""
    room = max(8, int((wide - 0.14) * 72 / (0.545 * SIZE)))
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, room) or [""]]
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][: room - 2].rstrip()} …"]


def height(lines: int) -> float:
    """Return the height in inches of a box with a head and this many lines."""
    return 0.1 + LINE * (lines + 1.15)


def box(
    ax: Axes,
    x: float,
    y: float,
    wide: float,
    head: str,
    lines: list[str],
    paint: str = GIVEN,
    strong: bool = False,
    high: float = 0.0,
) -> float:
    """Draw a box with its upper left corner at (x, y), a coloured head and lines of text; return its lower edge."""
    from matplotlib.patches import FancyBboxPatch

    high = high or height(len(lines))
    shape = FancyBboxPatch((x, y), wide, high, boxstyle="round,pad=0,rounding_size=0.05")
    shape.set(linewidth=1.8 if strong else 0.9, edgecolor=paint, facecolor=f"{paint}0f")
    ax.add_patch(shape)
    ax.text(x + 0.07, y + 0.06, head, color=paint, fontsize=SIZE, fontweight="bold", va="top")
    ax.text(x + 0.07, y + 0.06 + 1.25 * LINE, "\n".join(lines), color=INK, fontsize=SIZE, va="top", linespacing=1.25)
    return y + high


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """Draw an arrow with a word above its middle."""
    style = {"arrowstyle": "-|>,head_width=0.22,head_length=0.4", "color": GREY, "linewidth": 1.2}
    ax.annotate("", end, start, arrowprops={**style, "shrinkA": 1, "shrinkB": 1})
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        ax.text(x, y - 0.05, text, color=GREY, fontsize=SIZE - 0.7, ha="center", va="bottom")


def note(ax: Axes, x: float, y: float, text: str, **how: Any) -> None:
    """Write text without a box, with its upper edge at y."""
    ax.text(x, y, text, **{"color": GREY, "fontsize": SIZE - 0.5, "va": "top", **how})


def parts(table: pd.DataFrame, part: str) -> list[dict]:
    """Return the rows of one part of an example; missing texts become empty."""
    return table[table["part"] == part].fillna({"head": "", "text": ""}).to_dict("records")


def footer(ax: Axes, table: pd.DataFrame, wide: float, high: float) -> None:
    """Write at the lower edge of the sheet what the example shows and how it was chosen."""
    lines = wrapped(parts(table, "about")[0]["text"], wide + 0.7)
    note(ax, 0.0, high - LINE * len(lines), "\n".join(lines))


def run_of(rows: pd.DataFrame) -> Path | None:
    """Return the folder of the one run that rows of results.csv come from, or None if it is not on this machine."""
    names = {str(name) for name in rows["run"]} if "run" in rows else set()
    folder = paths.runs() / names.pop() if len(names) == 1 else None
    return folder if folder and (folder / "run.json").exists() else None


def recorded(folder: Path, pattern: str) -> dict[str, list[dict]]:
    """Return phase → its rows, for the phases of a run that match a pattern."""
    found: dict[str, list[dict]] = {}
    for row in manifest.rows(folder):
        if re.fullmatch(pattern, row["phase"]):
            found.setdefault(row["phase"], []).append(row)
    return found


def last_round(phases: Iterable[str]) -> str:
    """Return the phase ``seed_N/…_round_M`` of the last round of the first loop; "" if there is none."""
    rounds = [phase for phase in phases if phase.startswith("seed_")]
    own = [phase for phase in rounds if phase.partition("/")[0] == rounds[0].partition("/")[0]]
    return max(own, key=lambda phase: int(phase.rpartition("_")[2]), default="")


def unit_of(name: str, load: Callable[[], Iterable[Any]]) -> Any:
    """Return the unit (a passage or a puzzle) with that id; None if it is not there or its source is not available."""
    try:
        return next((unit for unit in load() if unit.id == name), None)
    except SealError:
        return None
