"""The registry of arms (``arms.yaml``) that tables and figures share: order, label, family, colour and rounds.

A difference of two arms is an arm too: ``difference_arm(a, b)``, which is "a - b". An arm that did not run is shown as
a gap ("not run"), never as a zero.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seal_lib.runs import yaml_files

NOT_RUN = "not run"
OTHER = "#7A6A4F"  # colour of an arm that is not listed
_AMOUNT = re.compile(r"^(?P<arm>\w+)_(?P<kind>[xt])(?P<n>\d+)$")
_ROUND = re.compile(r"^(?:(?P<family>\w+?)_)?round_(?P<round>\d+)$")


@dataclass(frozen=True)
class Family:
    """Arms that share a colour; ``shades`` are the colours of later rounds, if its arms have rounds."""

    colour: str
    meaning: str
    shades: Sequence[str] = ()


@dataclass(frozen=True)
class ArmStyle:
    """The label of an arm, its family, and its own colour if it has one."""

    label: str
    family: str
    colour: str = ""


_TABLE = yaml_files.read(Path(__file__).with_name("arms.yaml"))
FAMILIES = {name: Family(**row) for name, row in _TABLE["families"].items()}
ARMS = {name: ArmStyle(**row) for name, row in _TABLE["arms"].items()}
#: endings that say who wrote an arm's notes; without an ending it is the writer that the experiment names
_WRITER_ENDINGS = {"_own": "own notes", "_live": "own live notes", "_external": "stronger writer's notes"}


def round_of(arm: str) -> tuple[str, int] | None:
    """Return the family and round of an arm, or None if it has none.

    seal_round_2 -> ("seal", 2), round_1 -> ("seal", 1), own_untrained -> ("seal", 0).
    """
    if arm == "own_untrained":
        return "seal", 0
    match = _ROUND.match(arm)
    return (match["family"] or "seal", int(match["round"])) if match else None


def with_amount(arm: str, kind: str, n: int) -> str:
    """Return the name of an arm trained on an amount.

    Kind ``x`` is n self-edits, kind ``t`` as many documents as fit into n tokens.
    """
    return f"{arm}_{kind}{n}"


def amount_of(arm: str) -> tuple[str, str, int] | None:
    """Return (arm, kind, n) of an arm with an amount, or None for any other arm."""
    found = _AMOUNT.match(arm)
    return (found["arm"], found["kind"], int(found["n"])) if found else None


def plain(arm: str) -> str:
    """Return the name of an arm without the ending that says who wrote its notes."""
    return next((arm.removesuffix(ending) for ending in _WRITER_ENDINGS if arm.endswith(ending)), arm)


def _listed(arm: str) -> str:
    """Return the listed arm that an arm belongs to: itself, its plain name, or the arm of its rounds; "" if none."""
    found = _ROUND.match(arm)
    names = (arm, plain(arm), (found["family"] or "seal") if found else "")
    return next((name for name in names if name in ARMS), "")


def family_of_arm(arm: str) -> str:
    """Return the family of an arm, or "" if it is not listed."""
    return ARMS[_listed(arm)].family if _listed(arm) else ""


def arm_label(arm: str) -> str:
    """Return the label of an arm; "a - b" becomes "a − b"."""
    if " - " in arm:
        return " − ".join(arm_label(part) for part in arm.split(" - ", 1))
    if amount := amount_of(arm):
        what = {"x": "self-edit" if amount[2] == 1 else "self-edits", "t": "tokens"}[amount[1]]
        return f"{arm_label(amount[0])}: {amount[2]} {what}"
    if found := _ROUND.match(arm):
        name = found["family"] or ""
        shown = ARMS[name].label if name in ARMS else name.replace("_", " ")
        return f"{shown}, round {found['round']}".removeprefix(", ")
    listed = _listed(arm)
    label = ARMS[listed].label if listed else arm.replace("_", " ")
    return f"{label}, {_WRITER_ENDINGS[arm.removeprefix(listed)]}" if listed and arm != listed else label


def arm_rank(arm: str) -> tuple[float, int, str]:
    """Return a sort key: the order of ``arms.yaml``, rounds in sequence, and arms that are not listed in the middle."""
    arm = arm.split(" - ", 1)[0]
    arm, kind, n = amount_of(arm) or (arm, "", 0)
    found, order = _ROUND.match(arm), list(ARMS)
    at = order.index(_listed(arm)) if _listed(arm) else len(order) / 2 + 0.5
    return at, int(found["round"]) if found else 0, f"{arm} {kind == 't':d} {n:012d}" if kind else arm


def colour(arm: str) -> str:
    """Return the fixed colour of an arm, whatever its amount; later rounds of a family are darker."""
    arm = (amount_of(arm) or (arm,))[0]
    listed, found = _listed(arm), _ROUND.match(arm)
    if not listed:
        return OTHER
    own = FAMILIES[ARMS[listed].family]
    shades = (ARMS[listed].colour or own.colour, *own.shades)
    return shades[max(1, min(int(found["round"]), len(shades))) - 1] if found else shades[0]


def difference_arm(a: str, b: str) -> str:
    """Return the name of the arm of a paired difference a − b."""
    return f"{a} - {b}"


def by_round(rows: list[dict]) -> list[tuple[str, dict]]:
    """Return (tick label, row) of the arms that are rounds, SEAL's first, and last the external writer, if there."""
    rounds = [(found[0] != "seal", found, row) for row in rows if (found := round_of(row["arm"]))]
    ticks = []
    for other, (name, k), row in sorted(rounds, key=lambda item: item[:2]):
        tick = "untrained" if row["arm"] == "own_untrained" else f"round {k}"
        ticks.append((textwrap.fill(arm_label(name), 14) + "\n" + tick if other else tick, row))
    return ticks + [("stronger\nwriter", row) for row in rows if row["arm"] == "external"]
