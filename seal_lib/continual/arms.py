"""The arms of the forgetting study as figures show them: family, colour, label, order.

Knows names and colours only; labels are those of `seal_lib.report.arms`, rules are made elsewhere (`rules`).
"""

from seal_lib.report.arms import arm_label, plain
from seal_lib.report.marks import OTHER_ARMS

#: family -> (colour, what it does); Okabe and Ito's palette
FAMILIES = {
    "reference": ("#222222", "no training, passage at hand"),
    "plain": ("#D55E00", "plain editing and its strength"),
    "rehearsal": ("#0072B2", "rehearsal, distillation"),
    "penalty": ("#CC79A7", "penalties, frozen parts, gate"),
    "projection": ("#009E73", "projection (null space)"),
    "both": ("#56B4E9", "projection and rehearsal"),
    "merging": ("#E69F00", "merging independent edits"),
    "isolation": ("#7A68A6", "isolated adapters"),
    "joint": ("#5c5c5c", "joint retraining"),
}
_FAMILY_OF = {  # family -> its arms
    "reference": "frozen passage_in_context rag",
    "plain": "sequential_authors sequential delta_scaling",
    "penalty": "freeze_lower l2 ewc o_lora gated_merge",
    "rehearsal": "kl generative_replay replay kl_replay",
    "projection": "null_space_calibration null_space inflora",
    "both": "null_space_replay",
    "merging": "merge ties",
    "isolation": "isolation isolation_oracle",
    "joint": "joint",
}
ARMS = {  # arm -> (label, family); the order is that of tables and figures
    arm: (arm_label(arm), family) for family, arms in _FAMILY_OF.items() for arm in arms.split()
}


def family(arm: str) -> str | None:
    """The family of the arm's rule; None for an arm of another study."""
    return ARMS[plain(arm)][1] if plain(arm) in ARMS else None


def colour(arm: str) -> str:
    """The colour of the arm's family."""
    return FAMILIES[family(arm)][0] if family(arm) else OTHER_ARMS


def rank(arm: str) -> tuple[int, str]:
    """Sort key."""
    return (list(ARMS).index(plain(arm)) if family(arm) else len(ARMS), arm)


def notes_by(arm: str, writer: str) -> str:
    """Who wrote the notes that an arm trains on; ``writer`` is the parameter of that name."""
    if arm.endswith("_live"):
        return "the edited model, before each edit"
    if arm.endswith("_own") or writer == "policy":
        return "the unedited model, once"
    return "–" if plain(arm) in _FAMILY_OF["reference"].split() else writer.partition(":")[2]


def stores_text(arm: str) -> bool:
    """Whether the rule of a trained arm keeps text (`Rule.stores`; rules are too heavy to ask here)."""
    return plain(arm) in ("replay", "kl_replay", "null_space_replay", "joint", "isolation")
