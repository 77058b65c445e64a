"""Grows a seedling: trains a small Llama from random weights on the documents of a recipe, resumable at checkpoints.

The recipe decides the documents and which of their tokens are in the loss. Everything random depends only on the recipe
and the step, so that two growths give the same weights bit by bit. Run it as ``python -m seal_lib.seedling``.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import paths

if TYPE_CHECKING:
    import torch
    from tokenizers.pre_tokenizers import PreTokenizer
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: token ids, and for each whether it is in the loss (the first never is)
EncodedDocument = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Recipe:
    """The architecture and the training of a seedling; each world's recipe adds its documents."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    head_size: int = 32
    mlp: int = 384
    vocabulary: int = 1800
    positions: int = 2048
    rope_theta: float = 10000.0
    embedding_std: float = 0.1  # the usual 0.02 drowns a token's identity and delays copying from context threefold
    steps: int = 2400
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    threads: int = 1  # more threads would change the order of sums and thus the weights
    checkpoint_every: int = 200

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        raise NotImplementedError

    def documents(self, step: int, tokenizer: "PreTrainedTokenizerBase") -> dict[str, list[EncodedDocument]]:
        """Return the encoded documents of one step by kind; they depend only on the recipe and the step."""
        raise NotImplementedError

    def weight(self, kind: str) -> float:
        """Return the weight of a kind's mean loss."""
        return 1.0

    def sources(self) -> list[Path]:
        """Return the files whose text determines the documents."""
        raise NotImplementedError


def train_tokenizer(corpus: list[str], vocabulary: int, pieces: "PreTokenizer") -> "PreTrainedTokenizerBase":
    """Train a byte-level BPE tokenizer, which can encode any text, on a recipe's corpus.

    ``pieces`` cuts a text before merges are learned.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_max_length=2048
    )


def loss_of(model: "PreTrainedModel", documents: Sequence[EncodedDocument]) -> "Tensor":
    """Return the sum of the cross-entropy over the tokens in the loss.

    Padding is on the right, so causal attention needs no mask.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    columns = zip(*documents, strict=True)
    ids, voiced = (pad_sequence([*map(torch.tensor, rows)], batch_first=True) for rows in columns)  # (B, T) each
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # (B, T-1, D)
    kept = voiced[:, 1:]  # logits are computed only where a token is in the loss
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[kept]), ids[:, 1:][kept], reduction="sum")


def new_model(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.mlp,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            head_dim=recipe.head_size,
            rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
            max_position_embeddings=recipe.positions,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=recipe.embedding_std)
    return model


def train_step(
    model: "PreTrainedModel",
    optimizer: "torch.optim.Optimizer",
    recipe: Recipe,
    step: int,
    tokenizer: "PreTrainedTokenizerBase",
) -> dict[str, float]:
    """Run one update and return the mean loss of each kind of document. Only the step's documents are random."""
    import torch

    rate = min(1, (step + 1) / recipe.warmup) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps))
    optimizer.param_groups[0]["lr"] = recipe.lr * rate
    losses = {}
    for kind, documents in recipe.documents(step, tokenizer).items():
        losses[kind] = 0.0
        documents.sort(key=lambda document: len(document[0]))
        voiced = sum(sum(predicted[1:]) for _, predicted in documents)
        half = len(documents) // 2
        for part in filter(None, (documents[:half], documents[half:])):  # the short and the long half, for less padding
            loss = loss_of(model, part) / voiced
            (loss * recipe.weight(kind)).backward()
            losses[kind] += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad()
    return losses


def grow(
    recipe: Recipe, out: Path, watch: Callable[[int, dict], None] | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Train from random weights and save model and tokenizer to ``out``, a standard Hugging Face folder.

    Every ``checkpoint_every`` steps, the full training state goes to ``<out>/.partial``. A killed training continues
    from there and ends with the same weights, because the documents of a step depend only on the recipe and the step.

    Args:
        watch: called as ``watch(step, losses)`` after each step.
    """
    import torch

    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    tokenizer = recipe.tokenizer()
    model = new_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    partial = out / ".partial"
    first = _restore(partial, recipe, model, optimizer)
    for step in range(first, recipe.steps):
        losses = train_step(model, optimizer, recipe, step, tokenizer)
        if watch:
            watch(step, losses)
        if (step + 1) % recipe.checkpoint_every == 0 and step + 1 < recipe.steps:
            _checkpoint(partial, recipe, step + 1, model, optimizer)
    model.eval().requires_grad_(False)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    shutil.rmtree(partial, ignore_errors=True)
    return model, tokenizer


def _fingerprint(recipe: Recipe) -> str:
    """Return the SHA-256 of the recipe's values, this module's text, and the texts of `Recipe.sources`."""
    sources = [path.read_text("utf-8") for path in (Path(__file__), *recipe.sources())]
    return hashlib.sha256("\0".join([json.dumps(asdict(recipe)), *sources]).encode()).hexdigest()


def _checkpoint(
    partial: Path, recipe: Recipe, step: int, model: "PreTrainedModel", optimizer: "torch.optim.Optimizer"
) -> None:
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors[f"{name}:weight"] = parameter.detach()
        tensors |= {f"{name}:{key}": state[key] for key in ("exp_avg", "exp_avg_sq", "step")}
    with paths.whole(partial / "state.safetensors") as file:
        save_file(tensors, file, {"step": str(step), "made_by": _fingerprint(recipe)})


def _restore(partial: Path, recipe: Recipe, model: "PreTrainedModel", optimizer: "torch.optim.Optimizer") -> int:
    """Load the last checkpoint of the same recipe and return the step to continue with, 0 without a checkpoint."""
    import torch
    from safetensors import safe_open

    file = partial / "state.safetensors"
    if not file.is_file():
        return 0
    with safe_open(file, "pt") as state:
        about = state.metadata()
        if about["made_by"] != _fingerprint(recipe):
            return 0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state.get_tensor(f"{name}:weight"))
                optimizer.state[parameter] = {
                    key: state.get_tensor(f"{name}:{key}") for key in ("exp_avg", "exp_avg_sq", "step")
                }
    return int(about["step"])
