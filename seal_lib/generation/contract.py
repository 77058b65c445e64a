"""Prompts → texts: the contract of every engine, and what engines share: reading prompts, order, seeds, endings.

Knows prompts, sampling, seeds, stop texts and one adapter per prompt; nothing of passages or rewards. An engine is a
row of `seal_lib.generation.engines.ENGINES`.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from seal_lib.errors import DataError
from seal_lib.models.tokens import read_ids
from seal_lib.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from seal_lib.training.adapters import Adapter


@dataclass(frozen=True)
class Sampling:
    """How to decode. ``temperature=0`` is greedy (then ``n`` must be 1); ``stop`` ends a text and is not part of it.

    ``schema``: a JSON schema, as JSON text, that every text ended by the model fits; not every engine can do it.
    ``skip_long``: a prompt that leaves no room for ``max_tokens`` has completions of finish ``too_long``, which its
    caller counts, and the others go on; else it is an error.
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


@dataclass(frozen=True)
class Request:
    """One prompt; ``seed`` decides all its samples; ``adapter`` is applied to this prompt only (None: the base)."""

    prompt: str
    seed: int = 0
    adapter: "Adapter | None" = None


@dataclass(frozen=True)
class Completion:
    """A generated text, its number of tokens, and why it ended: ``eos``, ``stop`` or ``length`` (by ``max_tokens``).

    ``too_long``: nothing was generated, since the prompt left no room for it (`Sampling`, ``skip_long``).
    ``failed``: nothing came from a model elsewhere (`seal_lib.generation.endpoint`), for the given ``reason``.
    """

    text: str
    tokens: int
    finish: str
    reason: str = ""


class Generator(Protocol):
    """The interface of every engine.

    ``generate`` returns, in the order of ``requests``, ``sampling.n`` completions each. Same request, same seed → same
    completions, whatever the rest of the batch. Prompts with and without adapter may be mixed in one call.
    ``positions``: most tokens of a prompt and its completion. ``close`` gives memory back.
    """

    @property
    def positions(self) -> int: ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]: ...

    def close(self) -> None: ...


#: of a prompt that was not read
TOO_LONG = Completion("", 0, "too_long")


def read(
    requests: Sequence[Request], tokenizer: "PreTrainedTokenizerBase", sampling: Sampling, room: int
) -> list[list[int] | None]:
    """Token ids of each prompt; None: longer than ``room`` positions leave it, where ``sampling`` skips those.

    Raises:
        DataError: a prompt is empty, or too long and not to be skipped; its first words are in the message.
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


def rows_of(
    requests: Sequence[Request], tokens: Sequence[list[int] | None], sampling: Sampling
) -> list[tuple[int, Request, int]]:
    """(number of the request, request, number of the sample) of everything to decode, rows of one adapter together."""
    rows = [(i, request, k) for i, request in enumerate(requests) if tokens[i] for k in range(sampling.n)]
    # equal prompts together cost the least padding
    group = {id(request.adapter): n for n, request in reversed(list(enumerate(requests)))}
    return sorted(rows, key=lambda row: (group[id(row[1].adapter)], row[0], row[2]))


def sample_seed(request: Request, k: int) -> int:
    """The seed of the k-th sample; it depends on the request's seed alone."""
    return derive_seed(request.seed, "sample", k)


def finish(
    ids: list[int], tokenizer: "PreTrainedTokenizerBase", sampling: Sampling, last: Collection[int]
) -> Completion:
    """The completion of generated ids; a final id that is one of ``last`` ends it and is not part of the text."""
    ended = bool(ids) and ids[-1] in last
    text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
    cuts = [text.find(stop) for stop in sampling.stop if stop in text]
    if cuts:
        return Completion(text[: min(cuts)], len(ids), "stop")
    return Completion(text, len(ids), "eos" if ended else "length")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def stopped(tokenizer: "PreTrainedTokenizerBase", ids: list[int], stop: tuple[str, ...]) -> bool:
    """Whether the decoded ids contain a stop text."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return any(s in text for s in stop)
