"""The Hugging Face engine: batched decoding, left padding, KV cache, adapters applied per row.

Each sample draws from its own seed, so it does not depend on what else is in the batch.

Rounding. Another kind of CPU adds in another order, so its logits differ by a relative ε. That changes fewer than 10·ε
of the sampled tokens (tested; about 1 in a million at ε = 1e-6), but after the first changed token the text is another,
and a text that is trained on carries the change further. Rounding the logits to a grid first does not help (tested):
two samplers differ at least as often as their distributions do, and a grid makes changes as much larger as rarer. So
equal rows are promised for one kind of CPU only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seal_lib.errors import DataError
from seal_lib.generation.contract import (
    TOO_LONG,
    Completion,
    Request,
    Sampling,
    finish,
    read,
    rows_of,
    sample_seed,
    stopped,
)
from seal_lib.models.tokens import ends

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seal_lib.training.adapters import Adapter


class HFGenerator:
    """Batched decoding with a Hugging Face causal LM: left padding, KV cache, adapters applied per row.

    Args:
        batch: rows decoded at once, at most.
        cache_tokens: room for keys and values, in tokens over all rows; long generations get fewer rows at once (a
            7B model of Qwen2.5's shape takes 57 kB a token).
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch: int = 256,
        cache_tokens: int = 100_000,
    ):
        self.model, self.tokenizer, self.batch, self.cache_tokens = model, tokenizer, batch, cache_tokens

    @property
    def positions(self) -> int:
        return self.model.config.max_position_embeddings

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        if sampling.schema is not None:
            raise DataError("engine hf cannot hold a text to a JSON schema; use engine vllm or leave the schema out.")
        tokens = read(requests, self.tokenizer, sampling, self.positions)
        rows = rows_of(requests, tokens, sampling)
        out: dict[tuple[int, int], Completion] = {}
        longest = max((len(ids) for ids in tokens if ids), default=0) + sampling.max_tokens
        at_once = max(1, min(self.batch, self.cache_tokens // longest))
        for first in range(0, len(rows), at_once):
            part = rows[first : first + at_once]
            seeds = [sample_seed(request, k) for _, request, k in part]
            done = self._decode([tokens[i] or [] for i, _, _ in part], seeds, [r.adapter for _, r, _ in part], sampling)
            for (i, _, k), completion in zip(part, done, strict=True):
                out[i, k] = completion
        return [[out.get((i, k), TOO_LONG) for k in range(sampling.n)] for i in range(len(requests))]

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        adapters: "Sequence[Adapter | None]",
        sampling: Sampling,
    ) -> list[Completion]:
        """Decode one batch. prompts: token ids per row; seeds: one per row."""
        import contextlib

        import torch

        from seal_lib.training.adapters import attached

        distinct = list({id(a): a for a in adapters if a is not None}.values())
        index = {id(a): slot for slot, a in enumerate(distinct)} | {id(None): -1}
        slots = torch.tensor([index[id(a)] for a in adapters])
        scope = attached(self.model, distinct, slots) if distinct else contextlib.nullcontext()
        with scope, torch.no_grad():
            sampled = _decode_tokens(self.model, self.tokenizer, prompts, seeds, sampling)
        return [finish(ids, self.tokenizer, sampling, ends(self.model, self.tokenizer)) for ids in sampled]

    def close(self) -> None:
        self.model = None


def _decode_tokens(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
) -> list[list[int]]:
    """Token ids generated per row, with the id that ended it (one of `models.tokens.ends`) if one did."""
    import numpy as np
    import torch

    device = next(model.parameters()).device
    rows, width = len(prompts), max(map(len, prompts))
    ids = torch.full((rows, width), tokenizer.pad_token_id)
    mask = torch.zeros(rows, width, dtype=torch.long)
    for row, prompt in enumerate(prompts):  # left padding: every row ends at the same column
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    # inverse-CDF sampling from pre-drawn numbers: a row's choices depend on its own seed only
    draws = np.stack([np.random.default_rng(seed).random(sampling.max_tokens) for seed in seeds])  # (B, max_tokens)
    draws = torch.from_numpy(draws).to(device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    out: list[list[int]] = [[] for _ in prompts]
    open_rows, last = set(range(rows)), ends(model, tokenizer)
    cache = None
    for step in range(sampling.max_tokens):
        result = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache = result.past_key_values
        chosen = choose(result.logits[:, -1], sampling, draws[:, step])  # (B,)
        for row, token in enumerate(chosen.tolist()):
            if row in open_rows:
                out[row].append(token)
                if token in last or (sampling.stop and stopped(tokenizer, out[row], sampling.stop)):
                    open_rows.discard(row)
        if not open_rows:
            break
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(rows, 1)], 1)
        positions = positions[:, -1:] + 1
    return out


def choose(logits: "Tensor", sampling: Sampling, draws: "Tensor") -> "Tensor":
    """Next token per row. logits: (B, V); draws: (B,) in [0, 1). Greedy at temperature 0 (ties: the lowest id), else
    nucleus sampling.
    """
    import torch

    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.double() / sampling.temperature, -1)
    ordered, order = torch.sort(probabilities, stable=True, dim=-1, descending=True)
    total = ordered.cumsum(-1)
    kept = torch.where(total - ordered < sampling.top_p, ordered, 0.0)  # the smallest set reaching top_p
    total = kept.cumsum(-1)
    picked = (total <= draws[:, None] * total[:, -1:]).sum(-1).clamp_max(logits.shape[-1] - 1)
    return order.gather(-1, picked[:, None])[:, 0]
