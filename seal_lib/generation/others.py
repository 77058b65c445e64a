"""Models other than the policy, such as a judge or a stronger writer; each request is sent once and cached on disk.

A name ``MODEL@URL`` is an OpenAI-compatible endpoint (`seal_lib.generation.endpoint`); any other name is a model of
`seal_lib.models`, which runs here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from seal_lib import models
from seal_lib.generation import engines
from seal_lib.generation.contract import Completion, Generator, Request, Sampling
from seal_lib.generation.endpoint import Address, Endpoint
from seal_lib.generation.kept import Kept, key_of
from seal_lib.runs.work import Count, uncounted


@dataclass(frozen=True)
class Other:
    """A model by name. It holds plain settings only, so that it can be sent to a worker, which loads the model itself.

    ``key_env`` is the environment variable with an endpoint's key. ``calls`` and ``seconds`` are the budget of an
    endpoint in each process (`seal_lib.generation.endpoint.Address`). ``device`` and ``dtype`` apply to a model that
    runs here.
    """

    name: str
    key_env: str = ""
    calls: int = 100_000
    seconds: float = 86_400.0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        _ = self.address  # refuse an invalid address now

    @property
    def address(self) -> Address | None:
        """The endpoint, or None if the model runs here."""
        model, at, rest = self.name.rpartition("@http")
        return Address(model, f"http{rest}", self.key_env, self.calls, self.seconds) if at else None

    @property
    def identity(self) -> str:
        """The identity of the model for the cache.

        It is the hash of the weights for a local model, the commit for a Hub model, and the name and URL for an
        endpoint, where the model behind the name may change.
        """
        if self.address:
            return f"{self.address.model}@{self.address.target}"
        return f"{self.name} {models.weight_hash(self.name)} {self.dtype}"

    def check(self) -> None:
        """Raise DataError, before there is anything to ask, if the key of an endpoint is not set."""
        if self.address:
            self.address.key()

    def texts(self, requests: Sequence[Request], sampling: Sampling, count: Count = uncounted) -> list[Completion]:
        """Return one completion per request; ``sampling.n`` must be 1.

        Completions in the cache are not requested again. Failed requests and too long prompts are not cached.

        Args:
            count: receives the counters ``other_kept``, ``other_failed`` and those of an endpoint, ``other_calls`` etc.
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
                asked = list(wanted.values())
                answers: Iterable[tuple[int, Completion]] = (
                    engine.finished(asked, sampling)  # one by one
                    if isinstance(engine, Endpoint)
                    else enumerate(completion for (completion,) in engine.generate(asked, sampling))
                )
                for number, completion in answers:
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
        """Return what a run records about the model: its name and what this process has spent on it, never a key."""
        engine = _opened(self) if self.address else None
        about: dict[str, Any] = {"name": self.name}
        if isinstance(engine, Endpoint):
            about |= {"served": sorted(engine.served), **engine.counts, "reasons": dict(engine.reasons)}
        return about


@lru_cache(maxsize=4)
def _opened(other: Other) -> Generator:
    if other.address:
        return Endpoint(other.address)
    return _Asked(other)


class _Asked:
    """A model that runs here; the prompt is put into its chat template if it has one."""

    def __init__(self, other: Other):
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
        # the tokenizer may add a BOS itself, which must not be there twice
        written = self.tokenizer("", add_special_tokens=True)["input_ids"]
        return text.removeprefix(self.tokenizer.bos_token or "") if written else text

    def close(self) -> None:
        self.engine.close()
