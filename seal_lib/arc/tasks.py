"""A puzzle as a value: demonstrations, test inputs, and the test outputs where they are known. Reads no files."""

from dataclasses import dataclass

from seal_lib.arc.grids import Grid, to_html


@dataclass(frozen=True)
class Pair:
    """A demonstration."""

    input: Grid
    output: Grid


@dataclass(frozen=True)
class Task:
    """One puzzle: demonstrations and *all* its test inputs; ``solutions`` is empty when they are not known."""

    id: str
    train: tuple[Pair, ...]
    tests: tuple[Grid, ...]
    solutions: tuple[Grid, ...] = ()

    def _repr_html_(self) -> str:
        shown = "".join(f"<p>{to_html(pair.input)} → {to_html(pair.output)}</p>" for pair in self.train)
        answers = [to_html(grid) for grid in self.solutions] or ["?"] * len(self.tests)
        asked = "".join(f"<p>{to_html(g)} → {a}</p>" for g, a in zip(self.tests, answers, strict=True))
        return f"<h4>{self.id}</h4>{shown}<h5>test</h5>{asked}"
