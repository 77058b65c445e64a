"""What the loops ask of a run (`Recorder`) and what workers are given and return (`Work`, `Done`).

Knows a policy only as `Portable`: its weights need not travel, since its source says how to load them again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from seal_lib.errors import RunError


class Recorder(Protocol):
    """What the loops need of a run (`seal_lib.runs.lifecycle.Run`): rows, artifacts and counters that are kept."""

    def map(self, phase: str, units: Sequence, fn: Callable[[list], list[dict]], chunk: int = 32) -> list[dict]:
        """One row per unit from ``fn``, which is called with at most ``chunk`` units; finished chunks are kept."""

    def artifact(self, name: str, build: Callable[[Path], object]) -> Path:
        """The folder of that name, made by ``build(folder)`` unless it is there."""

    def forget(self, phase: str) -> None:
        """Drop the rows of a phase that cannot go on, so that `map` makes them again."""

    def adapters(self, phase: str) -> Path | None:
        """The folder in which the trained adapters of a phase are kept; None: they are thrown away."""

    def count(self, **counts: float) -> None:
        """Add to counters: tokens trained, questions asked, …"""


def once(run: Recorder, phase: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``make`` gives, made once a run: one that goes on finds it recorded."""
    (row,) = run.map(phase, [phase], lambda part: [make() for _ in part])
    return row


class WeightSource(Protocol):
    """Where weights come from: a base by name, and adapter folders merged into it (`seal_lib.loops.policy.Source`)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def adapters(self) -> tuple[str, ...]: ...

    def follows(self, other: Any) -> bool: ...

    def load(self, device: str) -> tuple[Any, Any]: ...

    def merge(self, model: Any, first: int = 0) -> Any: ...


class Portable(Protocol):
    """A dataclass whose weights another process loads again from ``source`` (`seal_lib.loops.policy.Policy`)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> WeightSource | None: ...


@dataclass(frozen=True)
class Work:
    """``unit(policy, part, count)`` returns one row per unit of ``part``; a call does that in this process.

    ``unit``: a module's function, or ``functools.partial`` of one with plain settings, so that another process can
    import it. ``count``: takes counters, as `seal_lib.runs.lifecycle.Run.count` does.
    """

    unit: Callable[["Portable", Sequence, Callable], list[dict]]
    policy: "Portable"
    count: Callable[..., None]

    def __call__(self, part: Sequence) -> list[dict]:
        return self.unit(self.policy, part, self.count)

    def portable(self) -> tuple[Callable, "Portable"]:
        """The function and the policy without its weights, which the worker loads by itself."""
        if self.policy.source is None:
            way = "make it as Policy(name, model, tokenizer, source=Source(model_name, dtype))"
            raise RunError(f"policy {self.policy.name!r} does not say where its weights come from; {way}.")
        return self.unit, replace(self.policy, model=None, tokenizer=None)


@dataclass(frozen=True)
class Done:
    """The result of one part: its rows, its counters, and the seconds that the worker spent."""

    rows: object
    counts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Executor(Protocol):
    """Starts workers and gives them work; workers are known by number, and only ``event`` waits.

    Events are ``("ready", worker, facts)``, ``("done", worker, Done)``, ``("error", worker, exception)`` (the unit
    failed, the worker lives) and ``("died", worker, reason)``; None if ``limit`` seconds pass without an event.
    """

    def start(self) -> int: ...

    def greet(self, worker: int) -> None: ...

    def submit(self, worker: int, unit: Callable, policy: object, part: Sequence) -> None: ...

    def event(self, limit: float | None) -> tuple[str, int, Any] | None: ...

    def close(self) -> None: ...
