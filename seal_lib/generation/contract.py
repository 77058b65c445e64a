"""The interface of all generation engines, and the code that they share: tokenizing prompts, order, seeds, endings.

A request is a prompt with a seed and at most one adapter. The engines that run here are the rows of
`seal_lib.generation.engines.ENGINES`; `seal_lib.generation.endpoint` has the same interface.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from seal_lib.errors import DataError
from seal_lib.models.tokens import read_ids
from seal_lib.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from seal_lib.training.adapters import Adapter


@dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    ``temperature=0`` is greedy decoding, for which ``n`` must be 1. A text of ``stop`` ends a completion and is not
    part of it. ``schema`` is a JSON schema, as JSON text, to which decoding is constrained; not every engine supports
    it. With ``skip_long`` a prompt that leaves no room for ``max_tokens`` gets completions of finish ``too_long``,
    which the caller counts, and the other prompts go on; without it such a prompt is an error.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    stop: tuple[str, ...] = ()
    schema: str | None = None
    skip_long: bool = False

    def __post_init__(self):
        if self.temperature == 0 and self.n > 1:
            raise DataError(f"sampling: n={self.n} greedy samples would all be equal; set temperature > 0 or n=1.")
        if self.max_tokens < 1 or self.n < 1 or not 0 < self.top_p <= 1 or self.temperature < 0:
            raise DataError(f"sampling: max_tokens ≥ 1, n ≥ 1, 0 < top_p ≤ 1, temperature ≥ 0 are needed, got {self}.")
        if self.schema is not None and not _is_object(self.schema):
            raise DataError(f"sampling: schema {self.schema[:60]!r} is not a JSON object; give json.dumps of a schema.")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@dataclass(frozen=True)
class Request:
    """One prompt. ``seed`` determines all its samples; ``adapter`` applies to this prompt only (None: the base)."""

    prompt: str
    seed: int = 0
    adapter: "Adapter | None" = None


@dataclass(frozen=True)
class Completion:
    """A generated text, its number of tokens, and why it ended.

    ``finish`` is ``eos``, ``stop``, ``length`` (``max_tokens`` was reached), ``too_long`` (nothing was generated, since
    the prompt left no room; see ``skip_long`` of `Sampling`) or ``failed`` (a model behind an endpoint gave no answer,
    for the given ``reason``; see `seal_lib.generation.endpoint`).
    """

    text: str
    tokens: int
    finish: str
    reason: str = ""


class Generator(Protocol):
    """The interface of every engine.

    ``generate`` returns ``sampling.n`` completions for each request, in the order of ``requests``. Equal requests get
    equal completions, whatever else is in the batch. Prompts with and without adapter may be mixed in one call.
    ``positions`` is the largest number of tokens of a prompt and its completion. ``close`` frees memory.
    """

    @property
    def positions(self) -> int: ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]: ...

    def close(self) -> None: ...


#: completion of a prompt that leaves no room for ``max_tokens``
_TOO_LONG = Completion("", 0, "too_long")


def prompt_ids(
    requests: Sequence[Request], tokenizer: "PreTrainedTokenizerBase", sampling: Sampling, room: int
) -> list[list[int] | None]:
    """Return the token ids of each prompt; None for a skipped prompt.

    A prompt is too long if it does not fit into ``room`` positions together with ``sampling.max_tokens``; it is skipped
    if ``sampling.skip_long`` is set.

    Raises:
        DataError: a prompt is empty, or too long and not skipped; the message quotes its first words.
    """
    tokens: list[list[int] | None] = [read_ids(request.prompt, tokenizer) for request in requests]
    for number, (ids, request) in enumerate(zip(tokens, requests, strict=True)):
        if not ids:
            raise DataError(f"prompt {number} is empty; a prompt needs at least one token.")
        if len(ids) + sampling.max_tokens <= room:
            continue
        if not sampling.skip_long:
            raise DataError(
                f"prompt {number} has {len(ids)} tokens and max_tokens is {sampling.max_tokens}, together more "
                f"than the model's {room} positions; shorten the prompt or lower max_tokens (it begins "
                f"{' '.join(request.prompt[:400].split())[:120]!r})."
            )
        tokens[number] = None
    return tokens


class Row(NamedTuple):
    """A text to decode: the token ids of its prompt, the seed of its draws, and its adapter."""

    ids: list[int]
    seed: int
    adapter: "Adapter | None"


def completed(
    requests: Sequence[Request],
    tokenizer: "PreTrainedTokenizerBase",
    sampling: Sampling,
    room: int,
    decode: Callable[[list[Row]], list[Completion]],
) -> list[list[Completion]]:
    """Return the completions of all requests that `prompt_ids` takes; ``decode`` makes those of rows, by adapter."""
    tokens = prompt_ids(requests, tokenizer, sampling, room)
    # the samples of one prompt stay together, which needs the least padding
    group = {id(request.adapter): n for n, request in reversed(list(enumerate(requests)))}
    order = sorted((i for i, ids in enumerate(tokens) if ids), key=lambda i: group[id(requests[i].adapter)])
    rows = {
        (i, k): Row(tokens[i] or [], sample_seed(requests[i], k), requests[i].adapter)
        for i in order
        for k in range(sampling.n)
    }
    found = dict(zip(rows, decode([*rows.values()]), strict=True))
    return [[found.get((i, k), _TOO_LONG) for k in range(sampling.n)] for i in range(len(requests))]


def sample_seed(request: Request, k: int) -> int:
    """Return the seed of the k-th sample, which depends on the request's seed and k alone."""
    return derive_seed(request.seed, "sample", k)


def finish(
    ids: list[int], tokenizer: "PreTrainedTokenizerBase", sampling: Sampling, last: Collection[int]
) -> Completion:
    """Make the completion of generated ids. A final id in ``last`` ends the text and is not part of it."""
    ended = bool(ids) and ids[-1] in last
    text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
    cuts = [text.find(stop) for stop in sampling.stop if stop in text]
    if cuts:
        return Completion(text[: min(cuts)], len(ids), "stop")
    return Completion(text, len(ids), "eos" if ended else "length")


def has_stop(tokenizer: "PreTrainedTokenizerBase", ids: list[int], stop: tuple[str, ...]) -> bool:
    """Return True if the decoded ids contain a stop text."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return any(s in text for s in stop)
