"""The settings of an outer loop."""

from dataclasses import dataclass, field

from seal_lib.errors import DataError
from seal_lib.loops.rewards import FILTERS, RATED, REWARDS
from seal_lib.runs.params import RARE


@dataclass(frozen=True)
class OuterLoop:
    """Settings of a round. The ``sft_*`` values train the policy on the kept self-edits (paper Table 3, B.3)."""

    samples: int = 5  # self-edits per unit
    temperature: float = 1.0
    top_p: float = 0.95
    edit_tokens: int = 8192
    reward: str = "accuracy"
    reward_seeds: int = 1  # inner-loop runs averaged into one reward
    filter: str = "best_of_k"
    threshold: float = 0.0
    sft_rank: int = 64
    sft_alpha: float = 128.0
    sft_lr: float = 3e-4
    sft_epochs: int = 2
    sft_batch: int = 10  # pairs per optimiser step, however they are cut into passes
    sft_schedule: str = "linear"
    sft_warmup_ratio: float = 0.0  # of the steps
    sft_weight_decay: float = 0.0
    sft_clip: float = 1.0  # largest gradient norm; 0: no bound
    sft_targets: str = "all-linear"
    update: str = "restem"  # the outer algorithm
    #: only so many of a unit's self-edits are tried, those that the domain rates highest; 0: all
    finalists: int = field(default=0, metadata=RARE)

    def __post_init__(self):
        for key, registry in (("reward", (*REWARDS, *RATED)), ("filter", FILTERS)):
            if getattr(self, key) not in registry:
                raise DataError(f"{key}: {getattr(self, key)!r} is not one of {', '.join(registry)}.")
        if self.finalists and (self.reward in RATED or self.finalists > self.samples):
            why = f"by reward {self.reward} none is tried" if self.reward in RATED else f"there are {self.samples}"
            raise DataError(f"finalists: {self.finalists} cannot be tried, {why}; give 0 for no choice beforehand.")
