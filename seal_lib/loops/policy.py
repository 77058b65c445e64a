"""The policy: the model that writes self-edits, and the source of its weights.

A policy is a base model with the adapters of finished rounds merged in, so that another process can rebuild the same
weights from names alone.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_lib import models
from seal_lib.errors import DataError
from seal_lib.generation import engines
from seal_lib.generation.contract import Generator
from seal_lib.loops.settings import OuterLoop, Pretraining
from seal_lib.runs.work import Recorder
from seal_lib.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seal_lib.training.bank import AdapterBank


@dataclass(frozen=True)
class Source:
    """The source of a policy's weights: a model name, and the adapter folders that are merged into it in order.

    Another process can load the same weights from it (bit for bit on a CPU), so weights need not be sent.
    """

    name: str
    dtype: str = "float32"
    revision: str | None = None
    adapters: tuple[str, ...] = ()

    def then(self, folder: Path) -> "Source":
        """Return the source with one more adapter folder."""
        return replace(self, adapters=(*self.adapters, str(folder.resolve())))

    def follows(self, other: "Source") -> bool:
        """Return True if these weights are the other's with zero or more adapters merged in."""
        first = len(other.adapters)
        return replace(self, adapters=self.adapters[:first]) == other

    def load(self, device: str = "cpu") -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the model and merge every adapter; return (model, tokenizer)."""
        model, tokenizer = models.load(self.name, device, self.dtype, self.revision)
        return self.merge(model), tokenizer

    def merge(self, model: "PreTrainedModel", first: int = 0) -> "PreTrainedModel":
        """Merge the adapters from index ``first`` on into ``model``, in place."""
        from seal_lib.training.adapters import Adapter, merge

        for folder in self.adapters[first:]:
            model = merge(model, Adapter.load(folder))
        return model


@dataclass(frozen=True)
class Policy:
    """The model that writes self-edits and is trained on them; ``name`` identifies its stage in the loop.

    ``engine`` names the engine that generates its texts (`seal_lib.generation.engines`); ``auto`` is resolved at once.
    ``source`` tells another process how to load the same weights; without it all work stays in this process.
    """

    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    engine: str = "hf"
    source: Source | None = None

    @property
    def base(self) -> Source:
        """The source of the weights.

        Raises:
            DataError: the policy has no source.
        """
        if self.source is None:
            raise DataError(f"policy {self.name!r} does not say which model it is; make it with source=Source(…).")
        return self.source

    def place(self, run: Recorder) -> tuple[str, str | None]:
        """Return (folder or Hub id, revision) of the policy's weights, so that its adapters can be loaded elsewhere.

        If finished rounds are merged into the weights, a copy is written once, as an artifact of the run.
        """
        source = self.base
        if not source.adapters:
            name, pinned = models.resolve(source.name)
            return name, None if Path(name).is_dir() else source.revision or pinned

        def build(folder: Path) -> None:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

        return str(run.artifact(f"models/{self.name}", build).resolve()), None

    def __post_init__(self):
        object.__setattr__(self, "engine", engines.resolve(self.engine, self.model))

    def generator(self) -> Generator:
        """Return the generator of this policy's texts, with and without adapters."""
        return engines.generator(self.model, self.tokenizer, self.engine)

    def bank(self, **settings: Any) -> "AdapterBank":
        """Return an adapter bank on this policy; ``settings`` are the arguments of `AdapterBank`."""
        from seal_lib.training.bank import AdapterBank

        return AdapterBank(self.model, **settings)

    def finetuned(
        self, run: Recorder, pairs: Sequence[tuple[list[int], list[int]]], outer: OuterLoop, *, name: str, seed: int
    ) -> "tuple[Policy, float]":
        """M-step: finetune a copy of the policy on (prompt ids, completion ids) pairs and call it ``name``.

        Return it and the last loss (NaN if it was not finite). The LoRA adapter, an artifact of the run, is merged in.
        """
        from seal_lib.training.adapters import Adapter, merge

        def build(folder: Path) -> None:
            how = recipe(outer, "sft_") | {"seed": derive_seed(seed, name, "sft")}
            adapter, report = self._trained(pairs, outer.cards, **how)
            # PEFT's AutoPeftModel needs a base name that exists; the report lists the adapters merged into it before
            adapter.save(folder / "adapter", getattr(self.model.config, "_name_or_path", "") or self.name)
            stands_on = list(self.source.adapters) if self.source else []
            (folder / "report.json").write_text(json.dumps(report | {"stands_on": stands_on}))

        folder = run.artifact(f"policies/{name}", build)
        merged = merge(self.model, Adapter.load(folder / "adapter"), copy=True)
        loss = json.loads((folder / "report.json").read_text())["last_loss"]
        source = self.source and self.source.then(folder / "adapter")
        return replace(self, name=name, model=merged, source=source), math.nan if loss is None else loss

    def pretrained(
        self,
        documents: Sequence[list[int]],
        settings: Pretraining,
        *,
        seed: int,
        on_step: Callable[[dict], None] | None = None,
    ) -> "tuple[Policy, dict]":
        """Continue pretraining on all documents (token ids) together; return the new policy and the report of `sft`.

        The new policy has no source, as its weights exist in this process only. This policy stays as it is.
        ``on_step`` is not called if there are several cards.

        Raises:
            DivergedError: a loss is not finite.
        """
        from seal_lib.training.adapters import Adapter, merge

        how = recipe(settings, "cpt_") | {"method": settings.cpt_method, "loss_on": "all", "seed": seed}
        if on_step and settings.cards == 1:
            how["on_step"] = on_step
        memory = next(self.model.parameters()).device.type != "cpu"
        pairs = [((), ids) for ids in documents]
        trained, report = self._trained(pairs, settings.cards, gradient_checkpointing=memory, **how)
        model = merge(self.model, trained, copy=True) if isinstance(trained, Adapter) else trained
        return replace(self, model=model, source=None), report

    def _trained(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], cards: int, *, batch: int, **settings: Any
    ) -> tuple:
        """Return what `sft` returns, trained in this process or, with several ``cards``, by one process per card."""
        settings["batch"], settings["accumulate"] = pieces(self.model, batch)
        if cards > 1:
            from seal_lib.training.several import sft_over

            return sft_over(cards, self.model, asdict(self.base), pairs, **settings)
        from seal_lib.training.finetune import sft

        return sft(self.model, pairs, **settings)


#: settings of a finetuning that rounds (``sft_…``) and continued pretraining (``cpt_…``) have alike
RECIPE = ("lr", "epochs", "batch", "rank", "alpha", "targets", "schedule", "warmup_ratio", "weight_decay", "clip")


def recipe(settings: OuterLoop | Pretraining, prefix: str) -> dict[str, Any]:
    """Return the settings of `RECIPE` as arguments of `seal_lib.training.finetune.sft`."""
    return {name: getattr(settings, prefix + name) for name in RECIPE}


def pieces(model: "PreTrainedModel", batch: int) -> tuple[int, int]:
    """Split a batch into (pairs per forward pass, forward passes per optimiser step); the loss is the same either way.

    On a GPU one pair fills a forward pass, and ten pairs of 2 000 tokens would not fit beside a 7B model
    (`seal_lib.plan`).
    """
    return (batch, 1) if next(model.parameters()).device.type == "cpu" else (1, batch)
