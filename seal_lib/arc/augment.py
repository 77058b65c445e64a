"""Augmenters: small objects that map a grid, or a pair of grids, to another, with an inverse where one exists.

``turn.then(grow)`` composes two augmenters. ``augmenter.inverse`` is an augmenter or None: adding a mirror image,
enlarging and tiling have no inverse that is defined on every grid. Each of the four switches of a self-edit stands for
a family of augmenters.

There are two protocols. ``clean`` (default): the translation shifts input and output by the same offset, drawn from the
seed and the task. ``authors``: as released, offsets come from a generator that is copied for each pair, so that input
and output shift differently but always by the same constants; kept because the published numbers were produced with it.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from seal_lib.arc.grids import Grid, size
from seal_lib.arc.tasks import Pair
from seal_lib.errors import DataError, must_be_one_of
from seal_lib.seeds import rng

ARC_PROTOCOLS = ("clean", "authors")
#: the JSON keys of a self-edit, in the order of its schema
SWITCHES = (
    "use_basic_augmentations",
    "use_size_augmentations",
    "use_chain_augmentations",
    "use_repeat_augmentations",
)


@dataclass(frozen=True)
class Augmenter:
    """A named map of grids; ``backward`` undoes ``forward`` on every grid, or is None."""

    name: str
    forward: Callable[[Grid], Grid]
    backward: Callable[[Grid], Grid] | None = None

    def __call__(self, grid: Grid) -> Grid:
        return self.forward(grid)

    def pair(self, pair: Pair) -> Pair:
        return Pair(self.forward(pair.input), self.forward(pair.output))

    @property
    def inverse(self) -> "Augmenter | None":
        return Augmenter(f"undo {self.name}", self.backward, self.forward) if self.backward else None

    def then(self, other: "Augmenter") -> "Augmenter":
        """Return the augmenter that applies this one, then ``other``; it has an inverse if both have one."""
        back = (lambda grid: self.backward(other.backward(grid))) if self.backward and other.backward else None
        return Augmenter(f"{self.name}+{other.name}", lambda grid: other.forward(self.forward(grid)), back)


IDENTITY = Augmenter("identity", lambda grid: grid, lambda grid: grid)


def transposed(grid: Grid) -> Grid:
    return tuple(zip(*grid, strict=True))


def rotate(degrees: int) -> Augmenter:
    """Return the rotation by 90, 180 or 270 degrees, counter-clockwise."""
    turns: dict[int, Callable[[Grid], Grid]] = {
        90: lambda grid: transposed(grid)[::-1],
        180: lambda grid: tuple(row[::-1] for row in grid[::-1]),
        270: lambda grid: transposed(grid[::-1]),
    }
    return Augmenter(f"rot{degrees}", turns[degrees], turns[360 - degrees])


def flip(axis: int) -> Augmenter:
    """Return the mirroring that exchanges top and bottom (axis 0) or left and right (axis 1)."""
    turned = (lambda grid: grid[::-1]) if axis == 0 else (lambda grid: tuple(row[::-1] for row in grid))
    return Augmenter(f"flip{axis}", turned, turned)


def transpose() -> Augmenter:
    return Augmenter("transpose", transposed, transposed)


def reflect(axis: int, mirror_first: bool) -> Augmenter:
    """Return the augmenter that joins a grid and its mirror image along ``axis``, the mirror image first or second."""
    mirror = flip(axis)

    def forward(grid: Grid) -> Grid:
        left, right = (mirror(grid), grid) if mirror_first else (grid, mirror(grid))
        return left + right if axis == 0 else tuple(a + b for a, b in zip(left, right, strict=True))

    return Augmenter(f"reflect{axis}" + ("rev" if mirror_first else ""), forward)


def enlarge(rows: int, columns: int, name: str) -> Augmenter:
    """Return the augmenter that turns each cell into a block of ``rows`` × ``columns`` cells."""

    def forward(grid: Grid) -> Grid:
        wide = (tuple(cell for cell in row for _ in range(columns)) for row in grid)
        return tuple(row for row in wide for _ in range(rows))

    return Augmenter(name, forward)


def tile(rows: int, columns: int, name: str) -> Augmenter:
    """Return the augmenter that repeats a grid ``rows`` times downwards and ``columns`` times to the right."""
    return Augmenter(name, lambda grid: tuple(row * columns for row in grid) * rows)


def rolled(grid: Grid, down: int, right: int) -> Grid:
    """Return the grid shifted cyclically."""
    rows, columns = size(grid)
    down, right = down % rows, right % columns
    turned = grid[rows - down :] + grid[: rows - down]
    return tuple(row[columns - right :] + row[: columns - right] for row in turned)


def translate(down: int, right: int) -> Augmenter:
    """Return the augmenter that shifts every grid cyclically by the same offset."""
    return Augmenter("shift", lambda grid: rolled(grid, down, right), lambda grid: rolled(grid, -down, -right))


class AuthorsTranslate(Augmenter):
    """The released translation: offsets that depend only on the shapes and usually differ between input and output."""

    def __init__(self) -> None:
        super().__init__("shift", self._needs_pair)

    @staticmethod
    def _needs_pair(grid: Grid) -> Grid:
        raise DataError("the authors' translation is defined on pairs only; use translate(down, right) on a grid.")

    def pair(self, pair: Pair) -> Pair:
        first, second = _authors_offsets(size(pair.input), size(pair.output))
        return Pair(rolled(pair.input, *first), rolled(pair.output, *second))


@cache
def _authors_offsets(first: tuple[int, int], second: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the offsets (down, right) of input and output for their sizes (rows, columns).

    They are four draws in 0..min(4, side) - 1 from a generator with seed 0.
    """
    import numpy as np

    draws = np.random.RandomState(0)  # numpy's legacy stream is frozen, so these are constants
    down, right, down_2, right_2 = (int(draws.randint(0, min(4, side))) for side in first + second)
    return (down, right), (down_2, right_2)


def recolour(mapping: tuple[int, ...]) -> Augmenter:
    """Return the augmenter that replaces colour ``c`` by ``mapping[c]``.

    Raises:
        DataError: ``mapping`` is not a permutation of 0 to 9.
    """
    if sorted(mapping) != list(range(10)):
        raise DataError(f"recolour: {mapping} is not a permutation of the colours 0 to 9.")
    back = tuple(mapping.index(colour) for colour in range(10))

    def using(table: tuple[int, ...]) -> Callable[[Grid], Grid]:
        return lambda grid: tuple(tuple(table[cell] for cell in row) for row in grid)

    return Augmenter("colours", using(mapping), using(back))


def colour_permutation(used: Iterable[int], random_: random.Random) -> tuple[int, ...]:
    """Return a random permutation of the colours that moves those in ``used``; 0 stays 0, as in the released code.

    Used colours go to unused ones while there are any; the others are swapped in pairs, and one that is left over takes
    a colour that became free. If all of 1 to 9 are used, none is free and one of them keeps its place.
    """
    left = sorted(set(used) - {0})
    free = [colour for colour in range(1, 10) if colour not in left]
    random_.shuffle(left)
    random_.shuffle(free)
    moved = dict(zip(left, free, strict=False))
    vacated, rest = list(moved), left[len(moved) :]
    while len(rest) > 1:
        one, other = rest.pop(), rest.pop()
        moved[one], moved[other] = other, one
    if rest and vacated:
        moved[rest[0]] = vacated[0]
    # unused colours take what is left of 1..9, so that the map has an inverse
    targets = [colour for colour in range(1, 10) if colour not in moved.values()]
    return (0, *(moved[c] if c in moved else targets.pop(0) for c in range(1, 10)))


_GROW = enlarge(2, 2, "res2")
_BASIC = (
    *(rotate(90), rotate(270), rotate(180), flip(0), flip(1)),
    *(reflect(0, True), reflect(1, True), reflect(0, False), reflect(1, False)),
)
_FAMILIES: dict[str, tuple[Augmenter, ...]] = {
    "use_size_augmentations": (_GROW, enlarge(2, 1, "height2"), enlarge(1, 2, "width2")),
    "use_chain_augmentations": tuple(
        first.then(_GROW) for first in (rotate(90), rotate(270), rotate(180), flip(0), flip(1), transpose())
    ),
    "use_repeat_augmentations": (tile(2, 1, "repeat0"), tile(1, 2, "repeat1"), tile(2, 2, "repeat2")),
}


def family(switch: str, protocol: str = "clean", seed: int = 0, unit: str = "") -> tuple[Augmenter, ...]:
    """Return the augmenters of one switch, in the released code's order; the four families have 11, 3, 6 and 3.

    ``seed`` and ``unit`` (the task's id) determine the translation of the clean protocol; nothing else here is random.

    Raises:
        DataError: the protocol or the switch is unknown.
    """
    must_be_one_of("protocol", protocol, ARC_PROTOCOLS)
    must_be_one_of("switch", switch, SWITCHES)
    if switch in _FAMILIES:
        return _FAMILIES[switch]
    if protocol == "authors":
        return (*_BASIC, AuthorsTranslate(), transpose())
    offset = divmod(rng(seed, unit, "translate").randrange(1, 9), 3)  # 0 to 2 each way, not both 0
    return (*_BASIC, translate(*offset), transpose())


def augmenters(
    switches: Iterable[str], protocol: str = "clean", seed: int = 0, unit: str = ""
) -> tuple[Augmenter, ...]:
    """Return the augmenters of the switches that are on, in the order of `SWITCHES` whatever the order given.

    Raises:
        DataError: a switch or the protocol is unknown.
    """
    on = set(switches)
    for switch in on:
        must_be_one_of("switch", switch, SWITCHES)
    return tuple(item for switch in SWITCHES if switch in on for item in family(switch, protocol, seed, unit))
