"""Leave-one-out training sets: what is in them, caps, seeds, independence of the hash seed."""

import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
from conftest import REPOSITORY

from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.examples import PuzzleExample, augmented, fits, leave_out, permuted, steps, training_set
from seal_lib.arc.tasks import Pair, Task


def made(pairs: int, side: int = 3) -> Task:
    """A task whose grids have no symmetry, so that no two augmentations of one coincide."""

    def grid(k: int) -> tuple:
        return tuple(tuple((7 * i * i + 3 * i * j + 5 * j + k) % 8 + 1 for j in range(side)) for i in range(side))

    train = tuple(Pair(grid(k), grid(k + 1)[::-1]) for k in range(pairs))
    return Task("made", train, (grid(7),), (grid(5),))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_leave_out_is_n_then_n_times_n_minus_one(n) -> None:
    task = made(n)
    one, two = leave_out(task.train, 1), leave_out(task.train, 2)
    assert (len(one), len(two)) == (n, n * (n - 1))
    for left, shown in ((one, n - 1), (two, n - 2)):
        assert all(len(e.demonstrations) == shown and e.target not in e.demonstrations for e in left)
        assert len(set(left)) == len(left)


def test_sizes_with_every_switch_and_none() -> None:
    assert len(training_set(made(3), SWITCHES, cap=None)) == 2 * 9 * 24
    assert len(training_set(made(3), SWITCHES)) == 250
    assert len(training_set(made(2), SWITCHES, cap=None)) == 2 * 4 * 24
    assert 4 == len(training_set(made(2), ()))  # one demonstration has one order, and no colour is changed
    assert training_set(made(3), SWITCHES, cap=7) == training_set(made(3), SWITCHES)[:7]
    without = training_set(made(2), SWITCHES, keep=lambda e: len(e.demonstrations) > 0)
    assert len(without) == 96 and all(e.demonstrations for e in without)


def test_what_is_too_large_is_dropped_but_originals_stay() -> None:
    large = made(3, side=16)
    found = augmented(large.train, 1, ())
    grown = training_set(large, SWITCHES[1:2], cap=None)
    assert len(found) == 3 and all(fits(e) for e in grown)
    assert set(found) <= set(grown) and len(grown) <= 2 * 9  # 2 × 16 is above 30
    assert len(training_set(made(3, side=15), SWITCHES[1:2], cap=None)) == 2 * 9 * 4


def test_the_test_input_is_never_trained_on() -> None:
    task = made(4)
    hidden = {task.tests[0], task.solutions[0]}
    plain = [e for n in (1, 2) for e in augmented(task.train, n, ())]
    assert not any({p.input, p.output} & hidden for e in plain for p in e.pairs)
    other = Task(task.id, task.train, (((9,),),))
    assert training_set(task, SWITCHES) == training_set(other, SWITCHES)


def flat(pairs: tuple) -> list[int]:
    return [cell for p in pairs for grid in (p.input, p.output) for row in grid for cell in row]


def test_a_permuted_copy_is_the_same_task_in_other_colours_and_order() -> None:
    example = PuzzleExample(made(4).train[:3], made(4).train[3])
    copies = {permuted(example, seed) for seed in range(30)}
    assert len(copies) > 20
    cells = flat(example.pairs)
    for copy in copies:
        orders = [flat((*shown, copy.target)) for shown in permutations(copy.demonstrations)]
        maps = [set(zip(cells, turned, strict=True)) for turned in orders]
        # in one order, each colour goes to one other and no two to the same
        assert any(len(m) == len(dict(m)) == len({b for _, b in m}) and all(a != b for a, b in m) for m in maps)
    assert {permuted(example, s, colours=False).target for s in range(9)} == {example.target}


def test_further_copies_are_other_permutations_and_leave_the_first_as_it_was() -> None:
    task = made(3)
    plain, once, thrice = (training_set(task, SWITCHES, seed=4, cap=None, copies=n) for n in (0, 1, 3))
    assert (len(plain), len(once), len(thrice)) == (216, 432, 864)  # 9 examples, 24 ways: no two permutations agree
    assert set(plain) < set(once) < set(thrice)
    by_hand = {permuted(e, 4, task.id, "permute", 1, i) for i, e in enumerate(augmented(task.train, 1, ()))}
    assert len(by_hand) == 3 and by_hand <= set(once)


def test_seeds_decide_and_hash_seeds_do_not() -> None:
    task = made(4)
    assert training_set(task, SWITCHES, seed=1) == training_set(task, SWITCHES, seed=1)
    assert training_set(task, SWITCHES, seed=1) != training_set(task, SWITCHES, seed=2)
    code = (
        "from test_arc_examples import made, training_set, SWITCHES; import hashlib;"
        "both = [(on, p) for on in (SWITCHES, ()) for p in ('clean', 'authors')];"
        "sets = [training_set(made(n), on, 5, p) for n in (2, 4) for on, p in both];"
        "print(hashlib.sha256(repr(sets).encode()).hexdigest())"
    )
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests"), str(Path(__file__).parent)))
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(printed) == 1 and len(printed.pop()) == 65


@pytest.mark.parametrize(
    ("epochs", "examples", "allowed"),
    [
        *((3, 250, True), (4, 250, False), (3, 192, True), (4, 192, False)),
        *((7, 96, True), (8, 96, False), (15, 50, True), (16, 47, False)),
    ],
)
def test_the_step_rule(epochs, examples, allowed) -> None:
    assert (steps(epochs, examples) <= 375) == allowed
