"""The interfaces between the loops, a run and its workers: `Recorder`, `Work` and `Done`.

A policy is known only as `Portable`: its weights need not travel, since its source says how to load them again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from seal_lib.errors import RunError

#: a function that receives counters (tokens trained, questions asked, …) as keyword arguments
Count = Callable[..., None]


def uncounted(**counts: float) -> None:
    """Ignore the counters; the default outside a run."""


class Recorder(Protocol):
    """The part of a run (`seal_lib.runs.lifecycle.Run`) that loops need: it keeps rows, artifacts and counters."""

    def map(self, phase: str, units: Sequence, fn: Callable[[list], list[dict]], chunk: int = 32) -> list[dict]:
        """Return one row per unit from ``fn``, called with at most ``chunk`` units; finished chunks are kept."""

    def artifact(self, name: str, build: Callable[[Path], object]) -> Path:
        """Return the folder of that name, filled by ``build(folder)`` if it does not exist."""

    def forget(self, phase: str) -> None:
        """Drop the rows of a phase that cannot continue, so that `map` computes them again."""

    def adapters(self, phase: str) -> Path | None:
        """Return the folder that keeps the trained adapters of a phase, or None if they are not kept."""

    def count(self, **counts: float) -> None:
        """Add to counters, such as tokens trained or questions asked."""


def once(run: Recorder, phase: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the value of ``make``, which is called once per run; a continued run returns the recorded value."""
    (row,) = run.map(phase, [phase], lambda part: [make() for _ in part])
    return row


class Portable(Protocol):
    """A dataclass whose weights another process loads again (`seal_lib.loops.policy.Policy`).

    ``source``: a base model and the adapters merged into it (`seal_lib.loops.policy.Source`), or None.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> Any: ...


@dataclass(frozen=True)
class Work:
    """Work that another process can do: ``unit(policy, part, count)`` returns one row per unit of ``part``.

    Calling a `Work` does it in this process.

    Attributes:
        unit: a module's function, or a ``functools.partial`` of one with plain settings, so that another process can
            import it.
        count: takes counters, like `seal_lib.runs.lifecycle.Run.count`.
        ahead: the number of parts that may be at work before the earliest of them is recorded; None: as many as suit
            the workers. With ``ahead=n``, part i can rely on part i - n.
    """

    unit: Callable[["Portable", Sequence, Callable], list[dict]]
    policy: "Portable"
    count: Count
    ahead: int | None = None

    def __call__(self, part: Sequence) -> list[dict]:
        return self.unit(self.policy, part, self.count)

    def portable(self) -> tuple[Callable, "Portable"]:
        """Return the function, and the policy without its weights, which the worker loads itself from its source."""
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
