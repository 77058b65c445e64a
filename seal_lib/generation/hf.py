"""The Hugging Face engine: batched decoding with left padding, a KV cache, and one adapter per row.

Each sample draws from its own seed, so it does not depend on the rest of the batch.

Rounding: another type of CPU sums in another order, so its logits differ by a relative ε. This changes fewer than 10·ε
of the sampled tokens (tested; about 1 in a million at ε = 1e-6), but after the first changed token the whole text
differs, and training on that text carries the difference further. Rounding the logits to a grid first does not help
(tested): two samplers differ at least as often as their distributions do, and a grid makes the differences larger by as
much as it makes them rarer. Equal rows are therefore promised for one type of CPU only.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase, StaticCache

from seal_lib.errors import DataError
from seal_lib.generation.contract import Completion, Request, Row, Sampling, completed, finish, has_stop
from seal_lib.models.tokens import ends
from seal_lib.training.attached import attached

_TOKENS_PER_CHECK = 8  # tokens that a GPU generates between two checks whether every row has ended


class HFGenerator:
    """The generator of a Hugging Face causal LM.

    Args:
        batch: the largest number of rows decoded at once.
        cache_tokens: size of the KV cache in tokens over all rows; long generations decode fewer rows at once (a 7B
            model of Qwen2.5's shape takes 57 kB per token).
        fixed: decode with a cache of fixed size, so that a GPU can replay each step as a CUDA graph. Default: True on a
            GPU for a model with full attention in every layer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch: int = 256,
        cache_tokens: int = 100_000,
        fixed: bool | None = None,
    ):
        self.model, self.tokenizer, self.batch, self.cache_tokens = model, tokenizer, batch, cache_tokens
        if fixed is None:
            fixed = next(model.parameters()).device.type == "cuda" and _sees_all(model)
        self.fixed = fixed

    @property
    def positions(self) -> int:
        return self.model.config.max_position_embeddings

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        if sampling.schema is not None:
            raise DataError("engine hf cannot hold a text to a JSON schema; use engine vllm or leave the schema out.")

        def decode(rows: list[Row]) -> list[Completion]:
            longest = max((len(row.ids) for row in rows), default=0) + sampling.max_tokens
            at_once = max(1, min(self.batch, self.cache_tokens // longest))
            parts = (rows[first : first + at_once] for first in range(0, len(rows), at_once))
            return [completion for part in parts for completion in self._decode(part, sampling)]

        return completed(requests, self.tokenizer, sampling, self.positions, decode)

    def _decode(self, rows: Sequence[Row], sampling: Sampling) -> list[Completion]:
        prompts, seeds, adapters = zip(*rows, strict=True)
        distinct = list({id(a): a for a in adapters if a is not None}.values())
        index = {id(a): slot for slot, a in enumerate(distinct)} | {id(None): -1}
        slots = torch.tensor([index[id(a)] for a in adapters])
        with attached(self.model, distinct, slots) if distinct else nullcontext(), torch.no_grad():
            sampled = _decode_tokens(self.model, self.tokenizer, prompts, seeds, sampling, self.fixed)
        return [finish(ids, self.tokenizer, sampling, ends(self.model, self.tokenizer)) for ids in sampled]

    def close(self) -> None:
        self.model = None


def _sees_all(model: PreTrainedModel) -> bool:
    """Return True if the cache holds plain keys and values of every token: no sliding window, no recurrent state."""
    if not model._can_compile_fullgraph:  # transformers' flag for models that support a static cache
        return False
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return {*kinds} == {"full_attention"} and not (getattr(config, "sliding_window", None) and len(kinds) == 1)


def _decode_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    fixed: bool = False,
) -> list[list[int]]:
    """Generate token ids for each row, including the id that ended it (one of `models.tokens.ends`), if any."""
    device = next(model.parameters()).device
    rows, width = len(prompts), max(map(len, prompts))
    ids = torch.full((rows, width), tokenizer.pad_token_id)
    mask = torch.zeros(rows, width, dtype=torch.long)
    for row, prompt in enumerate(prompts):  # left padding: every row ends at the same column
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    # inverse-CDF sampling from pre-drawn numbers: the tokens of a row depend on its own seed only
    draws = np.stack([np.random.default_rng(seed).random(sampling.max_tokens) for seed in seeds])  # (B, max_tokens)
    draws = torch.from_numpy(draws).to(device)
    out: list[list[int]] = [[] for _ in prompts]
    open_rows, last = set(range(rows)), ends(model, tokenizer)
    for chosen in (_fixed_steps if fixed else _steps)(model, ids, mask, draws, sampling):
        for row, tokens in enumerate(chosen.tolist()):
            for token in tokens:
                if row not in open_rows:
                    break
                out[row].append(token)
                if token in last or (sampling.stop and has_stop(tokenizer, out[row], sampling.stop)):
                    open_rows.discard(row)
        if not open_rows:
            break
    return out


def _steps(model: PreTrainedModel, ids: Tensor, mask: Tensor, draws: Tensor, sampling: Sampling) -> Iterator[Tensor]:
    """Yield the next token of every row, [B, 1], at each step, with a growing cache."""
    positions, cache = (mask.cumsum(1) - 1).clamp_min(0), None
    for step in range(sampling.max_tokens):
        logits, cache = _next(model, ids, mask, positions, cache)
        ids = next_tokens(logits, sampling, draws[:, step])[:, None]
        yield ids
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1


def _next(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None
) -> tuple[Tensor, Cache]:
    """Return the logits [B, V] of the next token after ``ids`` [B, T], and the cache with these columns added."""
    result = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return result.logits[:, -1], result.past_key_values


def _fixed_steps(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, draws: Tensor, sampling: Sampling
) -> Iterator[Tensor]:
    """Yield the same tokens as `_steps`, up to `_TOKENS_PER_CHECK` columns at a time, with a cache of fixed size.

    A GPU replays the step as a CUDA graph: launching the kernels of one token from Python takes many times as long as
    running them, and so does checking after each token whether a row has ended.
    """
    (rows, width), total = ids.shape, sampling.max_tokens
    cache = StaticCache(config=model.config, max_cache_len=width + total)
    seen = torch.zeros(rows, 1, 1, width + total, dtype=torch.bool, device=ids.device)
    seen[:, 0, 0, :width] = mask.bool()
    position = (mask.cumsum(1) - 1).clamp_min(0)
    out = torch.zeros(rows, total, dtype=torch.long, device=ids.device)
    at = torch.zeros(1, dtype=torch.long, device=ids.device)

    def write(ids: Tensor, mask: Tensor, positions: Tensor) -> None:
        logits, _ = _next(model, ids, mask, positions, cache)
        chosen = next_tokens(logits, sampling, draws.index_select(1, at)[:, 0])[:, None]
        out.index_copy_(1, at, chosen)
        token.copy_(chosen)

    def step() -> None:
        seen.index_fill_(3, at + width, True)
        at.add_(1)
        position.add_(1)
        write(token, seen, position)

    token = ids[:, -1:].clone()
    write(ids, mask, position)
    position = position[:, -1:].clone()
    graph, told = None, 0
    for done in range(1, total + 1):  # tokens generated in each row so far
        if done - told == _TOKENS_PER_CHECK or done == total:
            yield out[:, told:done]
            told = done
        if done == total:
            return
        if graph is not None:
            graph.replay()
        elif ids.device.type != "cuda" or done == 1:  # the first step warms up
            step()
        else:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            graph.replay()


def next_tokens(logits: Tensor, sampling: Sampling, draws: Tensor) -> Tensor:
    """Choose the next token of each row, [B], from logits [B, V] and uniform draws [B] in [0, 1).

    Decoding is greedy at temperature 0 (ties go to the lowest id), else nucleus sampling.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.double() / sampling.temperature, -1)
    ordered, order = torch.sort(probabilities, stable=True, dim=-1, descending=True)
    total = ordered.cumsum(-1)
    kept = torch.where(total - ordered < sampling.top_p, ordered, 0.0)  # the smallest set reaching top_p
    total = kept.cumsum(-1)
    picked = (total <= draws[:, None] * total[:, -1:]).sum(-1).clamp_max(logits.shape[-1] - 1)
    return order.gather(-1, picked[:, None])[:, 0]
