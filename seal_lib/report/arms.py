"""The names of arms, which figures and tables share: order, labels, rounds, and what is written where one did not run.

Knows names only; no numbers, colours or files. A difference of two arms is an arm too: `difference_arm(a, b)`, that is
"a - b". What did not run is shown as a gap ("not run"), never as a zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

NOT_RUN = "not run"
ARMS = {  # arm -> (rank, label); rounds of a family are added by `arm_label`
    "icl": (0, "in context only"),
    "frozen": (1, "frozen model"),
    "passage_only": (2, "passage only"),
    "notes_remark": (10, "notes: remarks only"),
    "notes_verbatim": (11, "notes: verbatim copy"),
    "notes_questions": (12, "notes: questions"),
    "notes_half": (13, "notes: half the facts"),
    "own_untrained": (30, "untrained self-edits"),
    "sequential": (31, "sequential edits"),
    "random_edit_sft": (41, "random self-edit kept"),
    "random_config_sft": (41, "random self-edits kept"),
    "dealt_config_sft": (42, "right self-edits, dealt blindly"),
    "external": (80, "stronger writer's notes"),
    "gold_notes": (85, "gold notes"),
    "joint": (86, "joint retraining"),
    "one_for_all": (88, "one configuration for all"),
    "kind_known": (89, "one for each kind"),
    "oracle": (90, "oracle"),
    "passage_in_context": (95, "passage in view"),
}
ARMS |= {  # of the forgetting study
    "rag": (94, "retrieval (BM25)"),
    "sequential_authors": (30.5, "sequential, authors' way"),
    "delta_scaling": (33, "ΔW / √k"),
    "freeze_lower": (33.25, "lower layers frozen"),
    "l2": (33.5, "L2 to base"),
    "ewc": (33.75, "online EWC"),
    "o_lora": (34, "O-LoRA"),
    "gated_merge": (34.25, "gated merge"),
    "kl": (34.5, "KL on own texts"),
    "generative_replay": (34.75, "generative replay"),
    "replay": (35, "replay"),
    "kl_replay": (35.25, "replay + KL"),
    "null_space_calibration": (35.5, "null space of base texts"),
    "null_space": (35.75, "null space + past edits"),
    "inflora": (36, "InfLoRA"),
    "null_space_replay": (36.25, "null space + replay"),
    "merge": (36.5, "scaled sum of edits"),
    "ties": (37, "TIES"),
    "isolation": (84, "isolation + BM25"),
    "isolation_oracle": (84.5, "isolation, oracle"),
}
#: endings that say who wrote an arm's notes; without one they are the writer's that the experiment names
WRITERS = {"_own": "own notes", "_live": "own live notes"}
FAMILIES = {"seal": (60, "SEAL"), "random": (40, "random choice"), "seal_proxy": (55, "SEAL, proxy reward")}
_ROUND = re.compile(r"^(?:(?P<family>\w+?)_)?round_(?P<round>\d+)$")


def round_of(arm: str) -> tuple[str, int] | None:
    """(family, round) of an arm: seal_round_2 -> ("seal", 2), round_1 -> ("seal", 1), own_untrained -> ("seal", 0)."""
    if arm == "own_untrained":
        return "seal", 0
    match = _ROUND.match(arm)
    return (match["family"] or "seal", int(match["round"])) if match else None


def plain(arm: str) -> str:
    """An arm's rule: its name without the ending that says who wrote the notes."""
    return arm.removesuffix("_own").removesuffix("_live")


def arm_label(arm: str) -> str:
    """What a person reads for an arm; "a - b" becomes "a − b" in labels."""
    if " - " in arm:
        return " − ".join(arm_label(part) for part in arm.split(" - ", 1))
    if arm in ARMS:
        return ARMS[arm][1]
    if (rule := plain(arm)) in ARMS:
        return f"{ARMS[rule][1]}, {WRITERS[arm.removeprefix(rule)]}"
    if found := _ROUND.match(arm):
        family = found["family"]
        name = FAMILIES[family][1] if family in FAMILIES else family.replace("_", " ") if family else ""
        return f"{name}, round {found['round']}".removeprefix(", ")
    return FAMILIES[arm][1] if arm in FAMILIES else arm.replace("_", " ")


def arm_rank(arm: str) -> tuple[float, str]:
    """Sort key: baselines first, then controls, SEAL by round, stronger references last."""
    arm = arm.split(" - ", 1)[0]
    if plain(arm) in ARMS:
        return ARMS[plain(arm)][0], arm
    if found := round_of(arm):
        return FAMILIES.get(found[0], (50, ""))[0] + found[1] / 100, arm
    return FAMILIES.get(arm, (50, ""))[0], arm


def difference_arm(a: str, b: str) -> str:
    """Name of the arm of a paired difference a − b."""
    return f"{a} - {b}"


def by_round(rows: list[dict]) -> list[tuple[str, dict]]:
    """(tick label, row) of the arms that are rounds, SEAL's first; the external writer, if there, last."""
    found = [(round_of(row["arm"]), row) for row in rows]
    found = sorted(((r[0] != "seal", r, row) for r, row in found if r), key=lambda item: item[:2])
    ticks = []
    for other, (family, k), row in found:
        name = "untrained" if row["arm"] == "own_untrained" else f"round {k}"
        ticks.append((family.split("_")[0] + "\n" + name if other else name, row))
    return ticks + [("stronger\nwriter", row) for row in rows if row["arm"] == "external"]


def round_ticks(arms: Iterable[str]) -> list[str]:
    """Tick labels of the rounds among some arms, in their order on an axis."""
    return [tick for tick, _ in by_round([{"arm": arm} for arm in dict.fromkeys(arms)])]
