"""The lab of the update rules: the frozen base model, its tokenizer, prompts, inner-loop settings and measurements.

The measurements of a model (base + adapter) are log-probabilities, the inputs of its layers, squared gradients, and
texts it generates. Nothing here sees an evaluation question or depends on an update rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import StreamBank
from seal_lib.generation.contract import Completion, Generator, Request, Sampling
from seal_lib.knowledge.domain import InnerLoop, Knowledge
from seal_lib.loops.policy import Policy
from seal_lib.models.tokens import read_ids
from seal_lib.seeds import derive_seed
from seal_lib.training.adapters import Adapter, check_fits, merge, target_linears
from seal_lib.training.attached import attached, diverted, sibling_groups
from seal_lib.training.jobs import Example, pad_examples

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RuleT = TypeVar("RuleT")


@dataclass
class Lab:
    """The unedited policy and the knowledge domain, with the measurements that update rules take on them.

    Attributes:
        openings: prompts from which the model generates anchor texts; they hold no fact, passage or question.
        anchors: the number of texts that the *base* generates once, for calibration, KL and Fisher information.
        anchor_tokens: the maximum length of an anchor text in tokens.
        seed: the seed of the anchors.
        authors_pads: how pads enter the loss under the authors' protocol: ``full``, or ``probe:m`` for m weighted pads.
    """

    policy: Policy
    domain: Knowledge
    openings: Sequence[str] = ("Annals of", "Topic: Annals of")
    anchors: int = 64
    anchor_tokens: int = 48
    seed: int = 0
    authors_pads: str = "probe:16"
    cache: dict = field(default_factory=dict)  # shared by all arms: the anchors and the independent edits
    generator: Generator = field(init=False)

    def __post_init__(self):
        self.generator = self.policy.generator()

    @property
    def model(self) -> PreTrainedModel:
        return self.policy.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.policy.tokenizer

    @property
    def inner(self) -> InnerLoop:
        return self.domain.inner

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the policy and the cache, as arguments of `Lab`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in ("policy", "cache")}

    def with_inner(self, **changes: object) -> Lab:
        """Return this lab with some inner-loop settings changed."""
        return replace(self, domain=replace(self.domain, inner=replace(self.inner, **changes)))

    def bank(self, **settings: Any) -> StreamBank:
        """Return the bank that trains the edits of several streams side by side."""
        return StreamBank(self.model, **settings)

    def rule(self, kind: Callable[..., RuleT], **knobs: float) -> RuleT:
        """Return an update rule of class ``kind`` that works with this lab."""
        return kind(self, **knobs)

    # texts

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a training text, cut at ``max_length``; spelled-out control tokens stay plain text."""
        return read_ids(text, self.tokenizer, split_special_tokens=True)[: self.inner.max_length]

    def documents(self, stream: Stream, k: int) -> list[list[int]]:
        """Return the token ids of the training documents of edit k (0-based), without end-of-text."""
        documents = self.domain.documents(stream.passages[k], stream.edits[k])
        return [self.ids(document.text) for document in documents]

    def example(self, ids: Sequence[int], seed: int = 0, pad_loss: str | None = None) -> Example:
        """Return a document as a training example of the inner loop, with end-of-text or pads as the settings say."""
        return pad_examples(
            ids, pad_loss or self.inner.pad_loss, self.inner.max_length, self.tokenizer.eos_token_id, seed
        )

    def write(self, states: Sequence[Adapter | None], count: int, seeds: Sequence[int]) -> list[list[list[int]]]:
        """Generate ``count`` texts per state from the openings; return token ids, with end-of-text if it was generated.

        Texts that stop at the token limit are kept as they are.
        """
        requests = [
            Request(self.openings[n % len(self.openings)], derive_seed(seed, "anchor", n), state)
            for state, seed in zip(states, seeds, strict=True)
            for n in range(count)
        ]
        texts, sampling = [], Sampling(self.anchor_tokens, temperature=1.0)
        for request, completion in zip(requests, self.complete(requests, sampling), strict=True):
            end = [self.tokenizer.eos_token_id] if completion.finish == "eos" else []
            texts.append(self.ids(request.prompt + completion.text) + end)
        return [texts[i * count : (i + 1) * count] for i in range(len(states))]

    @property
    def base_texts(self) -> list[list[int]]:
        """The anchors: texts that the unedited model generates, the same for every stream and arm."""
        if "anchors" not in self.cache:
            (texts,) = self.write([None], self.anchors, [derive_seed(self.seed, "base anchors")])
            self.cache["anchors"] = [list(t) for t in dict.fromkeys(map(tuple, texts)) if len(t) > 1]
        return self.cache["anchors"]

    # measurements

    @cached_property
    def groups(self) -> list[tuple[str, ...]]:
        """The names of the target linears, grouped by the input that they share."""
        return [group.names for group in sibling_groups(target_linears(self.model, self.inner.targets))]

    @torch.no_grad()
    def logprobs(self, texts: Sequence[Sequence[int]], adapter: Adapter | None, at_once: int = 64) -> list[Tensor]:
        """Return per text the log-probabilities [T-1, vocabulary] of the next token, in float32."""
        out = []
        for first in range(0, len(texts), at_once):
            part = texts[first : first + at_once]
            logits = self._forward(part, adapter)
            out += [F.log_softmax(row[: len(t) - 1].float(), -1) for row, t in zip(logits, part, strict=True)]
        return out

    @torch.no_grad()
    def inputs(self, texts: Sequence[Sequence[int]], adapter: Adapter | None, at_once: int = 64) -> dict[str, Tensor]:
        """Return the inputs of each group of layers: first name of the group -> [tokens, in], float32."""
        found: dict[str, list[Tensor]] = {names[0]: [] for names in self.groups}
        mask: Tensor | None = None

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda module, given: found[name].append(given[0][mask].float())

        modules = dict(self.model.named_modules())
        handles = [modules[name].register_forward_pre_hook(hook(name)) for name in found]
        try:
            for first in range(0, len(texts), at_once):
                part = texts[first : first + at_once]
                width = max(map(len, part))
                mask = torch.tensor([[t < len(text) for t in range(width)] for text in part])
                mask = mask.to(self.model.device)
                self._forward(part, adapter)
        finally:
            for handle in handles:
                handle.remove()
        return {name: torch.cat(parts) for name, parts in found.items()}

    @contextmanager
    def serving(self, adapter: Adapter | None, rows: int | None = None) -> Iterator[bool]:
        """Make the model base + adapter within the block; yield whether this was possible.

        In float32 or wider, the layers use the summed weights for the length of the block, without low-rank products.
        In a narrower type the sum would round small edits away, so the adapter stays beside the weights, for batches of
        exactly ``rows``; if ``rows`` is None, the adapter is not applied and False is yielded.
        """
        wide = next(self.model.parameters()).dtype in (torch.float32, torch.float64)
        if adapter is None:
            yield True
        elif wide:
            with torch.no_grad():
                forwards = {
                    layer: _linear(layer.weight + adapter.delta(name).to(layer.weight), layer.bias)
                    for name, layer in check_fits(self.model, adapter).items()
                }
            with diverted(forwards):
                yield True
        elif rows is None:
            yield False
        else:
            with attached(self.model, [adapter], [0] * rows):
                yield True

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Return one completion per request.

        With engine hf, an adapter that at least 16 requests use is summed into its layers while they are answered.
        """
        if self.policy.engine != "hf":
            return [one for (one,) in self.generator.generate(requests, sampling)]
        groups: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(id(request.adapter), []).append(i)
        texts: dict[int, Completion] = {}
        rest: list[int] = []
        for members in groups.values():
            adapter = requests[members[0]].adapter
            if adapter is None or len(members) < 16:
                rest += members
                continue
            with self.serving(adapter) as done:
                if done:
                    plain = [replace(requests[i], adapter=None) for i in members]
                    found = self.generator.generate(plain, sampling)
                    texts |= {i: completion for i, (completion,) in zip(members, found, strict=True)}
            if not done:
                rest += members
        found = self.generator.generate([requests[i] for i in rest], sampling) if rest else []
        texts |= {i: completion for i, (completion,) in zip(rest, found, strict=True)}
        return [texts[i] for i in range(len(requests))]

    def _forward(self, texts: Sequence[Sequence[int]], adapter: Adapter | None) -> Tensor:
        """Return logits [texts, longest, vocabulary].

        Texts are padded on the right, where causal attention never sees the pads.
        """
        width = max(map(len, texts))
        ids = torch.tensor([list(t) + [0] * (width - len(t)) for t in texts], device=self.model.device)
        with self.serving(adapter, len(texts)):
            return self.model(input_ids=ids, use_cache=False).logits

    def fisher(self, texts: Sequence[Sequence[int]], adapter: Adapter | None) -> dict[str, Tensor]:
        """Return the diagonal of the Fisher information per dense weight [out, in], estimated on texts.

        It is the mean over texts of the squared gradient of the text's mean log-likelihood.
        """
        model = merge(self.model, adapter, copy=True) if adapter is not None else self.model
        linears = target_linears(model, self.inner.targets)
        total = {name: torch.zeros_like(layer.weight, dtype=torch.float32) for name, layer in linears.items()}
        flags = [(layer.weight, layer.weight.requires_grad) for layer in linears.values()]
        try:
            for layer in linears.values():
                layer.weight.requires_grad_(True)
            for text in texts:
                ids = torch.tensor([list(text)], device=model.device)
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
                loss = F.cross_entropy(logits.float(), ids[0, 1:])
                grads = torch.autograd.grad(loss, [layer.weight for layer in linears.values()])
                for name, grad in zip(total, grads, strict=True):
                    total[name] += grad.float().square() / len(texts)
        finally:
            for weight, flag in flags:
                weight.requires_grad_(flag)
        return total


def _linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, weight, bias)


def basis(inputs: Tensor, energy: float, known: Tensor | None = None) -> Tensor:
    """Return an orthonormal U [in, u], extending ``known``, that holds at least ``energy`` of the inputs' squared norm.

    The criterion is that of GPM (Saha et al. 2021): the smallest u with ||U^T X||^2 >= energy * ||X||^2, where
    directions are added in order of energy.

    Args:
        inputs: X^T, [tokens, in].
        energy: a share from 0 to 1.
        known: an orthonormal basis [in, v] that is kept.
    """
    x = inputs.double()
    total = x.square().sum()
    if known is not None:
        u = known.double()
        x = x - (x @ u) @ u.mT
    values, vectors = torch.linalg.eigh(x.mT @ x)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    have = 1 - values.sum() / total if known is not None else torch.zeros((), dtype=x.dtype)
    reached = have + values.cumsum(0) / total
    room = inputs.shape[1] - (0 if known is None else known.shape[1])
    need = 0 if have >= energy else min(int((reached < energy).sum()) + 1, room)
    fresh = vectors[:, :need]
    if known is None:
        return fresh.to(inputs.dtype)
    if need == 0:
        return known
    fresh = fresh - u @ (u.mT @ fresh)  # orthogonal already, up to rounding
    return torch.cat([known, torch.linalg.qr(fresh)[0].to(known.dtype)], 1)
