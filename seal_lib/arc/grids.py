"""Grids and their text: one immutable value type, one way to print it, and one strict way to read it back.

A grid is a tuple of equally long tuples of ints 0–9, 1 to 30 on a side; it is hashable and comparable, and JSON as
lists. Its text is what numpy prints for a 2-D array of digits, as in the released code; a demonstration is ``IN ->
OUT#``.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from seal_lib.errors import DataError
from seal_lib.generation.thoughts import without_thoughts

Grid = tuple[tuple[int, ...], ...]

MAX_SIDE = 30
#: the text between the two grids of a pair, and after the second
ARROW, GRID_END = " -> ", "#"
#: reason why a text or value is not a grid → its wording in messages; the reasons are counted
UNREADABLE = {
    "empty": "it has no cell",
    "ragged": "its rows differ in length",
    "values": "a cell is not one of 0 to 9",
    "too_large": f"a side is longer than {MAX_SIDE}",
    "not_a_grid": "it is not rows of numbers",
}
#: the boundary of two bracketed rows; brackets of several grids or among cells; the language tag of a code fence
_NEXT_ROW = re.compile(r"\][ \t]*(?:,[ \t]*)?(?:\n[ \t]*)?\[")
_UNCLEAR = re.compile(r"\]\s*\][\s,]*\[|\][ \t,]*[\d+-]|\d[ \t,]*\[")
_LANGUAGE = re.compile(r"^[A-Za-z][\w+-]*[ \t]*(?=\n)")
#: the usual colours of the digits 0 to 9
COLOURS = "#000000 #0074d9 #ff4136 #2ecc40 #ffdc00 #aaaaaa #f012be #ff851b #7fdbff #870c25".split()


@dataclass(frozen=True)
class Parsed:
    """The result of parsing a text: a grid, or None and a key of `UNREADABLE`."""

    grid: Grid | None
    reason: str = ""


def problem(value: object) -> str:
    """Return why ``value`` (lists or tuples of rows) is not a grid: a key of `UNREADABLE`, or "" if it is one."""
    if not isinstance(value, list | tuple) or not all(isinstance(row, list | tuple) for row in value):
        return "not_a_grid"
    if not value or not any(value):
        return "empty"
    if len({len(row) for row in value}) > 1:
        return "ragged"
    if len(value) > MAX_SIDE or len(value[0]) > MAX_SIDE:
        return "too_large"
    if not all(type(cell) is int and 0 <= cell <= 9 for row in value for cell in row):  # True is not a colour
        return "values"
    return ""


def as_grid(value: object, where: str) -> Grid:
    """Return ``value`` as a grid.

    Raises:
        DataError: it is not a grid; the message names ``where`` and what is wrong.
    """
    reason = problem(value)
    if reason:
        raise DataError(f"{where} is not a grid: {UNREADABLE[reason]}; expected rows of digits, at most 30 × 30.")
    return tuple(tuple(row) for row in value)


def size(grid: Grid) -> tuple[int, int]:
    """Return (rows, columns)."""
    return len(grid), len(grid[0])


def to_text(grid: Grid) -> str:
    """Return the grid as ``[[1 2]\\n [3 4]]``; at most 1890 characters."""
    return "[" + "\n ".join("[" + " ".join(map(str, row)) + "]" for row in grid) + "]"


def question_text(grid: Grid) -> str:
    return to_text(grid) + ARROW


def answer_text(grid: Grid) -> str:
    return to_text(grid) + GRID_END


def parse(text: str) -> Parsed:
    """Read an answer. Never raises; a text that is not exactly one grid is rejected with a reason that is counted.

    As in the authors' code, ``#`` is dropped, brackets are optional and each line is a row. Unlike there, a row also
    ends where one bracket closes and the next opens, so ``[[1 2] [3 4]]`` has two; commas may stand between cells and
    rows; thoughts are left out, and so is everything but the first code fence, closed or not. Ragged rows, empty texts,
    values outside 0–9 and sides above 30 are rejected instead of being reshaped, wrapped or counted as a vote.
    """
    text = _fenced(without_thoughts(text)[0].replace(GRID_END, ""))
    if _UNCLEAR.search(text):
        return Parsed(None, "not_a_grid")
    text = _NEXT_ROW.sub("\n", text)
    rows = [_cells(line) for line in text.replace("[", "").replace("]", "").strip().split("\n")]
    cells = [cell for row in rows for cell in row]
    if not cells:
        return Parsed(None, "empty")
    if any(not _number(cell) for cell in cells):
        return Parsed(None, "not_a_grid")
    # a cell of several digits stays text, so that a number of a million digits is never converted
    found = [[int(cell) if len(cell) == 1 else cell for cell in row] for row in rows]
    reason = problem(found)
    return Parsed(None, reason) if reason else Parsed(tuple(map(tuple, found)))


def _fenced(text: str) -> str:
    """Return the text between the first two fences, or after the only one (before it, if nothing follows)."""
    parts = text.split("```")
    if len(parts) == 1:
        return text.strip()
    inside = _LANGUAGE.sub("", parts[1])
    return (inside if len(parts) > 2 or inside.strip() else parts[0]).strip()


def _cells(line: str) -> list[str]:
    """Return the cells of a row as text.

    A comma between two cells, or after the last, separates them; any other comma is a cell of its own, which is no
    number.
    """
    words = line.replace(",", " , ").split()
    if words[-1:] == [","]:
        words.pop()
    return [w for i, w in enumerate(words) if w != "," or i == 0 or words[i - 1] == ","]


def _number(cell: str) -> bool:
    digits = cell[1:] if cell[0] in "+-" else cell
    return digits.isascii() and digits.isdigit()


def count_reasons(parsed: Iterable[Parsed]) -> dict[str, int]:
    """Return how many texts were grids (``ok``) and how many were rejected, by reason; every key is present."""
    seen = Counter(item.reason or "ok" for item in parsed)
    return {reason: seen[reason] for reason in ("ok", *UNREADABLE)}


def to_html(grid: Grid, cell: int = 12) -> str:
    """Return the grid in ARC's colours as an HTML table; ``cell`` is the side of a cell in pixels."""
    style = f"width:{cell}px;height:{cell}px;padding:0;border:1px solid #555;background:"
    rows = ("".join(f"<td style='{style}{COLOURS[value]}'></td>" for value in row) for row in grid)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table style='border-collapse:collapse;display:inline-table;margin:2px'>{body}</table>"
