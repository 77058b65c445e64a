"""The unit of a plan, a `Phase` of work. Knows no notebook, model, device or price."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

#: most rows and tokens that the Hugging Face engine decodes at once (`seal_lib.generation.hf.HFGenerator`)
ROWS, CACHE_TOKENS = 256, 100_000


@dataclass(frozen=True)
class Phase:
    """Work of one kind in one phase.

    The kinds are ``write`` (sampled texts), ``answer`` (greedy texts), ``train`` (adapters), ``sft`` (an M-step),
    ``read`` (log-probabilities of whole texts) and ``factor`` (eigenvectors of the inputs' covariances).
    """

    kind: str
    phase: str
    units: float  # number of texts, adapters, kept self-edits or matrices
    tokens: float = 0.0  # tokens written, trained on or read, over all units
    prompt: float = 0.0  # tokens of the prompt of each text
    longest: float = 0.0  # tokens written until the last text of a batch is done
    steps: float = 0.0  # adapter-steps of all units (train), optimizer steps (sft)
    slots: int = 1  # adapters trained side by side
    batch: int = 1
    rows: int = 1
    adapters: int = 0  # distinct adapters in one batch of generation
    targets: str = "all-linear"
    rank: int = 0

    def times(self, count: float) -> "Phase":
        """Return the phase repeated ``count`` times."""
        return replace(self, units=self.units * count, tokens=self.tokens * count, steps=self.steps * count)

    def joined(self, other: "Phase") -> "Phase":
        """Return both phases as one: sums, the mean ``prompt``, and the maximum of what is done at once."""
        sums = {key: getattr(self, key) + getattr(other, key) for key in ("units", "tokens", "steps")}
        prompt = (self.units * self.prompt + other.units * other.prompt) / sums["units"]
        most = ("longest", "slots", "batch", "rows", "adapters", "rank")
        return replace(
            self, **sums, prompt=prompt, **{key: max(getattr(self, key), getattr(other, key)) for key in most}
        )


def totals(work: Sequence[Phase]) -> dict[str, float]:
    """Return units and tokens by kind: ``written``, ``trainings``, ``steps``, ``answers``, and their tokens."""

    def total(kind: str, value: str) -> float:
        return sum(getattr(w, value) for w in work if w.kind == kind)

    return {
        "written": total("write", "units"),
        "written_tokens": total("write", "tokens"),
        "trainings": total("train", "units"),
        "steps": total("train", "steps"),
        "trained_tokens": total("train", "tokens"),
        "answers": total("answer", "units"),
        "answered_tokens": total("answer", "tokens"),
        "sft_steps": total("sft", "steps"),
        "sft_tokens": total("sft", "tokens"),
        "read_tokens": total("read", "tokens"),
    }
