"""Augmenters: the toy vectors, inverses, the four switches, the two translations, colour permutations."""

import random
from collections import Counter

import numpy as np
import pytest

from seal_lib.arc import augment
from seal_lib.arc.augment import SWITCHES, augmenters, colour_permutation, recolour, rotate, transpose
from seal_lib.arc.tasks import Pair
from seal_lib.errors import DataError

TOY = ((1, 2, 3), (4, 5, 6))
ALL = {a.name: a for a in augmenters(SWITCHES)}


def rows(text: str) -> tuple:
    return tuple(tuple(map(int, row)) for row in text.split())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rot90", "36 25 14"),
        ("rot270", "41 52 63"),
        ("flip0", "456 123"),
        ("flip1", "321 654"),
        ("reflect0", "123 456 456 123"),
        ("reflect0rev", "456 123 123 456"),
        ("reflect1", "123321 456654"),
        ("transpose", "14 25 36"),
        ("rot90+res2", "3366 3366 2255 2255 1144 1144"),
        ("repeat2", "123123 456456 123123 456456"),
    ],
)
def test_the_toy_grid(name, expected) -> None:
    assert ALL[name](TOY) == rows(expected)


def draw(random_: random.Random) -> tuple:
    shape = random_.randint(1, 9), random_.randint(1, 9)
    return tuple(tuple(random_.randint(0, 9) for _ in range(shape[1])) for _ in range(shape[0]))


def test_every_grid_map_agrees_with_numpy() -> None:
    theirs = {
        **{f"rot{90 * k}": lambda g, k=k: np.rot90(g, k) for k in (1, 2, 3)},
        **{f"flip{a}": lambda g, a=a: np.flip(g, a) for a in (0, 1)},
        **{f"reflect{a}": lambda g, a=a: np.concatenate([g, np.flip(g, a)], a) for a in (0, 1)},
        **{f"reflect{a}rev": lambda g, a=a: np.concatenate([np.flip(g, a), g], a) for a in (0, 1)},
        "transpose": np.transpose,
        "res2": lambda g: np.kron(g, np.ones((2, 2), int)),
        "height2": lambda g: np.repeat(g, 2, 0),
        "width2": lambda g: np.repeat(g, 2, 1),
        **{f"repeat{i}": lambda g, r=r: np.tile(g, r) for i, r in enumerate(((2, 1), (1, 2), (2, 2)))},
    }
    assert set(theirs) == {name for name in ALL if "+" not in name and name != "shift"}
    random_ = random.Random(1)
    for _ in range(50):
        grid = draw(random_)
        for name, map_ in theirs.items():
            assert ALL[name](grid) == tuple(map(tuple, map_(np.array(grid)).tolist())), name
        assert augment.rolled(grid, 2, 3) == tuple(map(tuple, np.roll(np.array(grid), (2, 3), (0, 1)).tolist()))


def test_inverses_undo_and_chains_have_one_only_if_both_parts_do() -> None:
    assert {name for name, a in ALL.items() if a.inverse} == {
        *("rot90", "rot180", "rot270", "flip0", "flip1", "shift", "transpose")
    }
    chain = rotate(90).then(transpose())
    assert chain.name == "rot90+transpose" and rotate(90).then(ALL["res2"]).inverse is None
    random_ = random.Random(2)
    for _ in range(50):
        grid = draw(random_)
        assert chain.inverse(chain(grid)) == grid != ()
        for a in ALL.values():
            if a.inverse:
                assert a.inverse(a(grid)) == grid and a.inverse.inverse(grid) == a(grid)


def test_switches_select_families_in_a_fixed_order() -> None:
    sizes = {switch: len(augment.family(switch)) for switch in SWITCHES}
    assert list(sizes.values()) == [11, 3, 6, 3]
    assert [a.name for a in augmenters(reversed(SWITCHES))] == list(ALL) and len(ALL) == 23
    assert augmenters(()) == ()
    for call in (lambda: augmenters(["use_magic"]), lambda: augment.family(SWITCHES[0], "theirs")):
        with pytest.raises(DataError, match="is not one of"):
            call()


def test_clean_translation_moves_input_and_output_alike_and_differs_by_task() -> None:
    grid = tuple(tuple(range(5 * i, 5 * i + 5)) for i in range(5))
    seen = set()
    for task in range(40):
        shift = next(a for a in augmenters(SWITCHES[:1], seed=3, unit=f"t{task}") if a.name == "shift")
        moved = shift.pair(Pair(grid, grid))
        assert moved.input == moved.output != grid
        seen.add(moved.input)
    assert len(seen) > 4


@pytest.mark.parametrize(
    ("side", "first", "second"),
    [(5, (0, 3), (1, 0)), (4, (0, 3), (1, 0)), (3, (0, 1), (0, 1)), (2, (0, 1), (1, 0)), (1, (0, 0), (0, 0))],
)
def test_authors_translation_has_the_constants_of_the_released_code(side, first, second) -> None:
    grid = tuple(tuple(range(side * i, side * i + side)) for i in range(side))
    shift = next(a for a in augmenters(SWITCHES[:1], "authors") if a.name == "shift")
    moved = shift.pair(Pair(grid, grid))
    assert moved == Pair(augment.rolled(grid, *first), augment.rolled(grid, *second))
    with pytest.raises(DataError, match="pairs only"):
        shift(grid)


def test_colour_permutations_move_every_used_colour_and_have_an_inverse() -> None:
    random_ = random.Random(0)
    for _ in range(2000):
        used = set(random_.sample(range(10), random_.randint(0, 10)))
        mapping = colour_permutation(used, random_)
        assert mapping[0] == 0 and sorted(mapping) == list(range(10))
        colours = used - {0}
        still = {colour for colour in colours if mapping[colour] == colour}
        assert not still if len(colours) < 9 else len(still) == 1  # nine colours swap in pairs, one stays
        free = 9 - len(colours)
        assert sum(mapping[colour] not in colours for colour in colours) == min(free, len(colours))
        paint = recolour(mapping)
        assert paint.inverse(paint(TOY)) == TOY
    for used in ({1}, {1, 2, 3}):  # each colour goes to every colour not in use, equally often
        drawn = [colour_permutation(used, random_) for _ in range(900)]
        free = set(range(1, 10)) - used
        for colour in used:
            counts = Counter(mapping[colour] for mapping in drawn)
            assert set(counts) == free and min(counts.values()) > 0.7 * 900 / len(free), (used, colour, counts)
    with pytest.raises(DataError, match="not a permutation"):
        recolour((0,) * 10)
