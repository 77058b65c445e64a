"""The arms of the forgetting study as figures show them: family, colour, label, order.

Knows names and colours only; labels are those of `seal_lib.arms`, rules are made elsewhere (`rules`).
"""

from seal_lib.arms import arm_label
from seal_lib.marks import OTHER_ARMS

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
    "plain": "sequential_authors sequential low_lr few_epochs delta_scaling",
    "penalty": "freeze_lower l2 ewc o_lora gated_merge",
    "rehearsal": "kl generative_replay replay kl_replay",
    "projection": "null_space_calibration null_space inflora",
    "both": "null_space_replay",
    "merging": "merge_sum merge_mean ties",
    "isolation": "isolation isolation_oracle",
    "joint": "joint",
}
ARMS = {  # arm -> (label, family); the order is that of tables and figures
    arm: (arm_label(arm), family) for family, arms in _FAMILY_OF.items() for arm in arms.split()
}


def label(arm: str) -> str:
    """What a person reads for an arm."""
    return ARMS[arm][0] if arm in ARMS else arm.replace("_", " ")


def colour(arm: str) -> str:
    """The colour of the arm's family."""
    return FAMILIES[ARMS[arm][1]][0] if arm in ARMS else OTHER_ARMS


def rank(arm: str) -> tuple[int, str]:
    """Sort key."""
    return (list(ARMS).index(arm) if arm in ARMS else len(ARMS), arm)


def stores_text(arm: str) -> bool:
    """Whether the rule of a trained arm keeps text (`Rule.stores`; rules are too heavy to ask here)."""
    return arm in ("replay", "kl_replay", "null_space_replay", "joint", "isolation")
