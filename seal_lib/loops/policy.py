"""The policy: the model that writes self-edits, and where its weights come from.

A policy is a base with the adapters of finished rounds merged in, so another process makes the same weights from names.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import models
from seal_lib.generation import engines
from seal_lib.generation.contract import Generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """Where a policy's weights come from: a model by name, and adapter folders merged into it one after the other.

    Another process can load the same weights from it, bit for bit on a CPU, so weights need not be sent.
    """

    name: str
    dtype: str = "float32"
    revision: str | None = None
    adapters: tuple[str, ...] = ()

    def then(self, folder: Path) -> "Source":
        """The source with one more adapter."""
        return replace(self, adapters=(*self.adapters, str(folder.resolve())))

    def follows(self, other: "Source") -> bool:
        """Whether these weights are the other's with further adapters merged in."""
        first = len(other.adapters)
        return replace(self, adapters=self.adapters[:first]) == other

    def load(self, device: str = "cpu") -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """(model, tokenizer) with every adapter merged."""
        model, tokenizer = models.load(self.name, device, self.dtype, self.revision)
        return self.merge(model), tokenizer

    def merge(self, model: "PreTrainedModel", first: int = 0) -> "PreTrainedModel":
        """Merge the adapters from number ``first`` on into ``model``, in place."""
        from seal_lib.training.adapters import Adapter, merge

        for folder in self.adapters[first:]:
            model = merge(model, Adapter.load(folder))
        return model


@dataclass(frozen=True)
class Policy:
    """The model that writes self-edits and is trained on them; ``name`` says where it is in the loop.

    ``engine``: the generator of its texts (:mod:`seal_lib.generation.engines`); ``auto`` is resolved at once.
    ``source`` says where another process finds the same weights; without it all work stays in this process.
    """

    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    engine: str = "hf"
    source: Source | None = None

    def __post_init__(self):
        object.__setattr__(self, "engine", engines.resolve(self.engine, self.model))

    def generator(self) -> Generator:
        """The generator of this policy's texts, with and without adapters."""
        return engines.generator(self.model, self.tokenizer, self.engine)
