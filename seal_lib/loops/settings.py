"""Settings of the outer loop and of continued pretraining on a corpus."""

from dataclasses import dataclass, field

from seal_lib.errors import DataError, must_be_one_of
from seal_lib.generation.contract import Sampling
from seal_lib.loops.rewards import FILTERS, RATED, REWARDS
from seal_lib.runs.params import RARE
from seal_lib.training.jobs import SCHEDULES

METHODS, COPIES = ("full", "lora"), ("once", "each")


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
    sft_batch: int = 10  # pairs per optimiser step, however they are split into forward passes
    sft_schedule: str = "linear"
    sft_warmup_ratio: float = 0.0  # share of the steps
    sft_weight_decay: float = 0.0
    sft_clip: float = 1.0  # largest gradient norm; 0: no bound
    sft_targets: str = "all-linear"
    update: str = "restem"  # the outer algorithm
    #: number of self-edits of each unit that are tried, those that the domain rates highest; 0: all
    finalists: int = field(default=0, metadata=RARE)
    cards: int = field(default=1, metadata=RARE)  # number of GPUs of the M-step (`seal_lib.training.several`)

    def __post_init__(self):
        for key, registry in (("reward", (*REWARDS, *RATED)), ("filter", FILTERS)):
            must_be_one_of(key, getattr(self, key), registry)
        if self.finalists and (self.reward in RATED or self.finalists > self.samples):
            why = f"by reward {self.reward} none is tried" if self.reward in RATED else f"there are {self.samples}"
            raise DataError(f"finalists: {self.finalists} cannot be tried, {why}; give 0 for no choice beforehand.")

    def sampling(self, samples: int = 1, schema: str | None = None) -> Sampling:
        """Return the sampling settings of self-edits, ``samples`` of each prompt."""
        return Sampling(self.edit_tokens, self.temperature, self.top_p, samples, schema=schema, skip_long=True)


@dataclass(frozen=True)
class Pretraining:
    """Settings of continued pretraining: one model on all documents of a corpus (paper Table 4, released code).

    ``cpt_method``: ``full`` trains every weight (paper v2); ``lora`` trains an adapter (v1) with ``cpt_rank``,
    ``cpt_alpha`` and ``cpt_targets``.
    ``cpt_lines``: True makes every line of a text a document, as for one passage; False makes the whole text one.
    ``cpt_passages``: the passage is added as a document ``once``, or once for ``each`` of its texts (v1).
    """

    cpt_method: str = "full"
    cpt_lr: float = 7e-5
    cpt_epochs: int = 1
    cpt_batch: int = 8  # documents per optimiser step, however they are split into forward passes
    cpt_schedule: str = "linear"
    cpt_warmup_ratio: float = 0.03  # share of the steps
    cpt_weight_decay: float = 0.0
    cpt_clip: float = 1.0
    cpt_length: int = 2048  # longest document in tokens
    cpt_rank: int = 32
    cpt_alpha: float = 64.0
    cpt_targets: str = "all-linear"
    cpt_lines: bool = False
    cpt_passages: str = "once"
    cards: int = field(default=1, metadata=RARE)  # number of GPUs that train it (`seal_lib.training.several`)

    def __post_init__(self):
        choices = {"cpt_method": METHODS, "cpt_schedule": SCHEDULES, "cpt_passages": COPIES}
        for key, allowed in choices.items():
            must_be_one_of(key, getattr(self, key), allowed)
