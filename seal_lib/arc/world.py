"""The made world of puzzles: 2 × 2 grids in ten colours, and rules that move cells.

A rule says for each of the four output cells which input cell it shows, which gives 4⁴ = 256 rules: identity, mirror
images and arbitrary maps. Eight are seen when the model is trained. Of the other 248, some belong to the ``learning``
tasks of the outer loop and the rest to the ``heldout`` tasks, so that no rule of an evaluation was ever practised.
Colours carry no meaning, so copies with permuted colours are fair; turning a grid changes the rule, so turned copies
are not.
"""

import random
from collections.abc import Sequence
from functools import cache
from itertools import product

from seal_lib.arc.grids import Grid
from seal_lib.arc.tasks import Pair, Task
from seal_lib.errors import DataError, must_be_one_of
from seal_lib.seeds import rng as seeded

GridRule = tuple[int, int, int, int]

#: the rules of pretraining; cells are numbered 0 1 / 2 3
SEEN: dict[str, GridRule] = {
    "as it is": (0, 1, 2, 3),
    "left and right exchanged": (1, 0, 3, 2),
    "top and bottom exchanged": (2, 3, 0, 1),
    "turned by 180 degrees": (3, 2, 1, 0),
    "top row twice": (0, 1, 0, 1),
    "left column twice": (0, 0, 2, 2),
    "first cell everywhere": (0, 0, 0, 0),
    "last cell everywhere": (3, 3, 3, 3),
}
N_COLOURS = 10
LEARNING_RULES = 100  # number of unseen rules in the ``learning`` population


@cache
def populations() -> dict[str, tuple[GridRule, ...]]:
    """Return the rules of each population; the populations are disjoint."""
    unseen = [rule for rule in product(range(4), repeat=4) if rule not in SEEN.values()]
    random.Random(0).shuffle(unseen)
    return {
        "seen": tuple(SEEN.values()),
        "learning": tuple(unseen[:LEARNING_RULES]),
        "heldout": tuple(unseen[LEARNING_RULES:]),
    }


def cells(grid: Grid) -> tuple[int, ...]:
    return grid[0] + grid[1]


def grid_of(four: Sequence[int]) -> Grid:
    return tuple(four[:2]), tuple(four[2:])


def apply(rule: GridRule, grid: Grid) -> Grid:
    """Return the output grid, in which cell i shows input cell ``rule[i]``."""
    return grid_of([cells(grid)[i] for i in rule])


def draw_grid(draws: random.Random, distinct: bool = True) -> Grid:
    """Return a random grid; if ``distinct``, of four different colours, which leave no doubt where a cell came from."""
    colours = range(N_COLOURS)
    return grid_of(draws.sample(colours, 4) if distinct else draws.choices(colours, k=4))


def draw_pair(rule: GridRule, draws: random.Random, distinct: bool = True) -> Pair:
    grid = draw_grid(draws, distinct)
    return Pair(grid, apply(rule, grid))


def tasks(population: str, count: int, seed: int = 0, demonstrations: int = 4) -> list[Task]:
    """Return ``count`` tasks, each with a different rule that the id spells: ``heldout-2001`` shows cells 2 0 0 1.

    Raises:
        DataError: the population is unknown, or has fewer rules than tasks.
    """
    must_be_one_of("tasks", f"world:{population}", [f"world:{name}" for name in populations()])
    rules = list(populations()[population])
    if count > len(rules):
        raise DataError(f"tasks: world:{population} has {len(rules)} rules, {count} were asked for; ask for less.")
    seeded("grid tasks", population, seed).shuffle(rules)
    return [_task(population, rule, seed, demonstrations) for rule in rules[:count]]


def _task(population: str, rule: GridRule, seed: int, demonstrations: int) -> Task:
    name = f"{population}-{''.join(map(str, rule))}"
    draws = seeded("grid task", name, seed)
    return task_of(name, [draw_pair(rule, draws) for _ in range(demonstrations + 1)])


def task_of(name: str, pairs: Sequence[Pair]) -> Task:
    """Return the task whose test is the last pair."""
    return Task(name, tuple(pairs[:-1]), (pairs[-1].input,), (pairs[-1].output,))
