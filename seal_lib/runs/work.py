"""What a part of a phase asks of whoever does it, and what comes back: :class:`Work`, :class:`Done`, :class:`Executor`.

Knows a policy only as :class:`Portable`: weights that can be left out, since their source says how to make them again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from seal_lib.errors import RunError


class Recorder(Protocol):
    """What the loops need of a run (:class:`seal_lib.runs.lifecycle.Run`): rows, artifacts and counters that are kept."""

    def map(self, phase: str, units: Sequence, fn: Callable[[list], list[dict]], chunk: int = 32) -> list[dict]:
        """One row per unit from ``fn``, which is called with at most ``chunk`` units; finished chunks are kept."""

    def artifact(self, name: str, build: Callable[[Path], object]) -> Path:
        """The folder of that name, made by ``build(folder)`` unless it is there."""

    def count(self, **counts: float) -> None:
        """Add to counters: tokens trained, questions asked, …"""


class WeightSource(Protocol):
    """Where weights come from: a base by name, and adapter folders merged into it (`seal_lib.loops.policy.Source`)."""

    adapters: tuple[str, ...]

    def follows(self, other: "WeightSource") -> bool: ...

    def load(self, device: str) -> tuple[object, object]: ...

    def merge(self, model: object, first: int = 0) -> object: ...


class Portable(Protocol):
    """A dataclass whose weights another process makes again from ``source`` (`seal_lib.loops.policy.Policy`)."""

    name: str
    model: object
    tokenizer: object
    source: WeightSource | None


@dataclass(frozen=True)
class Work:
    """``unit(policy, part, count)`` gives one row per unit of ``part``; calling it does that in this process.

    ``unit``: a module's function, or ``functools.partial`` of one with plain settings, so that another process can
    import it. ``count``: takes counters, as :meth:`seal_lib.runs.lifecycle.Run.count` does.
    """

    unit: Callable[["Portable", Sequence, Callable], list[dict]]
    policy: "Portable"
    count: Callable[..., None]

    def __call__(self, part: Sequence) -> list[dict]:
        return self.unit(self.policy, part, self.count)

    def portable(self) -> tuple[Callable, "Portable"]:
        """What a worker needs: the function, and the policy without its weights, which the worker loads by itself."""
        if self.policy.source is None:
            way = "make it as Policy(name, model, tokenizer, source=Source(model_name, dtype))"
            raise RunError(f"policy {self.policy.name!r} does not say where its weights come from; {way}.")
        return self.unit, replace(self.policy, model=None, tokenizer=None)


@dataclass(frozen=True)
class Done:
    """What a part gave: rows, counters, and the seconds of whoever did it."""

    rows: object
    counts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Executor(Protocol):
    """Workers by number; only ``event`` waits.

    Events are ``("ready", worker, facts)``, ``("done", worker, Done)``, ``("error", worker, exception)`` (the unit
    itself failed, the worker lives) and ``("died", worker, why)``; None after ``limit`` seconds without any.
    """

    def start(self) -> int: ...

    def greet(self, worker: int) -> None: ...

    def submit(self, worker: int, unit: Callable, policy: object, part: Sequence) -> None: ...

    def event(self, limit: float | None) -> tuple[str, int, object] | None: ...

    def close(self) -> None: ...
