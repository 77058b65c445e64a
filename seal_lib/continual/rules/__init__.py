"""Update rules: how theta_k follows from theta_{k-1} and self-edit k. `RULES` maps each name to a small class.

Notation: dW_k = s B_k A_k is what edit k trains, L_k is its loss (the inner loop's), and theta_k = theta_0 + the sum of
the history. ``stores`` says what is kept beside the weights. Every class gives its references. The forms are those of
the study plan; where a paper leaves a choice, the docstring says which was made.
"""

from seal_lib.continual.rules import merging, penalties, plain, projections, rehearsal
from seal_lib.continual.rules.base import Rule

#: name -> class; an arm of the study names one of them
RULES: dict[str, type[Rule]] = {
    "frozen": plain.Frozen,
    "passage_in_context": plain.PassageInContext,
    "rag": plain.Rag,
    "sequential_authors": plain.SequentialAuthors,
    "sequential": plain.Sequential,
    "delta_scaling": plain.DeltaScaling,
    "freeze_lower": penalties.FreezeLower,
    "replay": rehearsal.Replay,
    "generative_replay": rehearsal.GenerativeReplay,
    "kl": rehearsal.Kl,
    "kl_replay": rehearsal.KlReplay,
    "l2": penalties.L2,
    "ewc": penalties.Ewc,
    "o_lora": penalties.OLora,
    "null_space_calibration": projections.NullSpaceCalibration,
    "null_space": projections.NullSpace,
    "null_space_replay": projections.NullSpaceReplay,
    "inflora": projections.InfLora,
    "merge": merging.Merge,
    "ties": merging.Ties,
    "gated_merge": merging.GatedMerge,
    "isolation": merging.Isolation,
    "isolation_oracle": merging.IsolationOracle,
    "joint": plain.Joint,
}


def equation(name: str) -> str:
    """Return the first paragraph of a rule's docstring, which notebooks show as its equation."""
    return " ".join((RULES[name].__doc__ or "").strip().split("\n\n")[0].split())
