"""Sizes of the GPU benchmark: models, targets, slots, hyperparameters, and the documents of a self-edit."""

from dataclasses import dataclass

from seal_lib.models import budget
from seal_lib.plan import lengths

RANK, ALPHA, LR, EPOCHS = 32, 64.0, 1e-4, 10  # paper Table 3 except lr, as random weights must not diverge
QUESTIONS = 5


@dataclass(frozen=True)
class GpuPlan:
    """Sizes of a benchmark. ``models`` holds (name, share of the minutes)."""

    models: tuple[tuple[str, float], ...] = (("Qwen/Qwen2.5-7B", 0.75), ("meta-llama/Llama-3.2-1B-Instruct", 0.25))
    targets: tuple[str, ...] = ("qv", "all-linear")
    slots: tuple[int, ...] = (16, 4, 1, 64, 8, 32, 2)  # the most informative first, so that a short run has them
    epochs: int = EPOCHS
    padding: int = 2048
    padded_steps: int = 20  # steps in the authors' way
    answer_tokens: int = 64
    minutes: float = 9.0
    repetitions: int = 3
    documents: int | None = None  # largest number of documents per self-edit, each cut to `longest` tokens
    longest: int = 2048
    tiny: bool = False


TINY = GpuPlan(
    (("tiny", 1.0),),
    ("qv", "all-linear"),
    (2, 1),
    epochs=1,
    padding=64,
    padded_steps=2,
    answer_tokens=3,
    minutes=600.0,
    repetitions=1,
    documents=3,
    longest=24,
    tiny=True,
)
TINY_SHAPE = budget.Shape("tiny", 2, 64, 4, 2, 16, 128, 512, False, True, 512)


def documents(plan: GpuPlan) -> list[list[int]]:
    """Return the number of tokens of each document of each recorded self-edit, the passage last."""
    edits = lengths.profiles()["squad"].documents
    return [[min(n, plan.longest) for n in d[-(plan.documents or len(d)) :]] for d in edits]
