"""Models that are not the policy: a judge, a stronger writer. A name → texts, each asked once and kept on disk.

``MODEL@URL`` is an OpenAI-compatible endpoint (`seal_lib.generation.endpoint`); any other name is a model as the
policy's (`seal_lib.models`), which the engines of this package run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from seal_lib.generation.contract import Completion, Generator, Request, Sampling
from seal_lib.generation.endpoint import Address, Endpoint
from seal_lib.generation.kept import Kept, key_of


def uncounted(**counts: float) -> None:
    """Ignore the counters; the default where no run keeps them."""


@dataclass(frozen=True)
class Other:
    """A model by name. Plain settings, so that it can be sent to a worker, which opens it by itself.

    ``key_env``: environment variable with an endpoint's key. ``calls``, ``seconds``: budget of an endpoint in each
    process (`seal_lib.generation.endpoint.Address`). ``device``, ``dtype``: of a model that runs here.
    """

    name: str
    key_env: str = ""
    calls: int = 100_000
    seconds: float = 86_400.0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        _ = self.address  # what is no address is refused now

    @property
    def address(self) -> Address | None:
        """The endpoint; None: the model runs here."""
        model, at, rest = self.name.rpartition("@http")
        return Address(model, f"http{rest}", self.key_env, self.calls, self.seconds) if at else None

    @property
    def identity(self) -> str:
        """What is asked, by content where that can be known: a name that a server gives may change its meaning."""
        if self.address:
            return f"{self.address.model}@{self.address.target}"
        return f"{self.name} {_weights(self.name)} {self.dtype}"

    def check(self) -> None:
        """Raises DataError where it cannot be asked, before there is anything to ask."""
        if self.address:
            self.address.key()

    def texts(self, requests: Sequence[Request], sampling: Sampling,
              count: Callable[..., None] = uncounted) -> list[Completion]:  # fmt: skip
        """One completion per request (``sampling.n`` is 1). What is on disk is not asked again, and what failed is.

        Args:
            count: takes counters: ``other_kept``, ``other_failed``, and an endpoint's ``other_calls``, ``other_…``.
        """
        store, identity = Kept(), self.identity
        keys = [key_of(identity, request, sampling) for request in requests]
        found = store.read(dict.fromkeys(keys))
        wanted = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
        count(other_kept=len(found))
        if wanted:
            names, engine = list(wanted), _opened(self)
            before = dict(getattr(engine, "counts", {}))
            try:
                for number, completion in _each(engine, list(wanted.values()), sampling):
                    found[names[number]] = completion
                    if completion.finish not in ("failed", "too_long"):
                        store.write(names[number], completion)
            finally:
                spent = {k: n - before.get(k, 0) for k, n in getattr(engine, "counts", {}).items() if k != "failed"}
                count(
                    other_failed=sum(c.finish in ("failed", "too_long") for c in found.values()),
                    **{f"other_{name}": n for name, n in spent.items() if n},
                )
        return [found[key] for key in keys]

    def facts(self) -> dict[str, Any]:
        """For the record of a run: what was asked, and what this process has spent on it; never a key."""
        engine = _opened(self) if self.address else None
        about: dict[str, Any] = {"name": self.name}
        if isinstance(engine, Endpoint):
            about |= {"served": sorted(engine.served), **engine.counts, "reasons": dict(engine.reasons)}
        return about


def _each(engine: Generator, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
    """(number of the request, completion) as they come, from an engine here all together."""
    if isinstance(engine, Endpoint):
        yield from engine.finished(requests, sampling)
    else:
        for number, (completion,) in enumerate(engine.generate(requests, sampling)):
            yield number, completion


@lru_cache
def _weights(name: str) -> str:
    from seal_lib import models

    return models.weight_hash(name)


@lru_cache(maxsize=4)
def _opened(other: Other) -> Generator:
    if other.address:
        return Endpoint(other.address)
    return _Asked(other)


class _Asked:
    """A model that runs here and is asked as a person asks it: by its chat template where it has one."""

    def __init__(self, other: Other):
        from seal_lib import models
        from seal_lib.generation import engines

        model, self.tokenizer = models.load(other.name, other.device, other.dtype)
        self.engine = engines.generator(model, self.tokenizer, "auto")
        self.positions = self.engine.positions

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        return self.engine.generate([Request(self._said(r.prompt), r.seed) for r in requests], sampling)

    def _said(self, prompt: str) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            return prompt
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        first = self.tokenizer.bos_token or ""
        written = self.tokenizer("", add_special_tokens=True)[
            "input_ids"
        ]  # a BOS that is added anyway is not said twice
        return text.removeprefix(first) if written else text

    def close(self) -> None:
        self.engine.close()
