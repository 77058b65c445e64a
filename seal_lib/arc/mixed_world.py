"""Puzzles of three kinds of rule, each of which needs other training data: what suits one kind misleads another.

====================  ===============================================  ==================  ==================
kind                  rule                                             turned copies are   recoloured ones are
====================  ===============================================  ==================  ==================
``moves``             cells move (`seal_lib.arc.world`)                of another rule     fair
``around_black``      cells move *relative to the black ones*; the     fair, and needed    fair
                      test has them where no demonstration has them
``key_colour``        one colour becomes another one everywhere        fair                of another rule
====================  ===============================================  ==================  ==================

A copy is fair if it follows the rule of its task. Every switch of a self-edit also recolours copies, so ``moves`` needs
any switch but the one that turns, ``around_black`` needs the one that turns, and ``key_colour`` needs none. All grids
are 2 × 2, the size that the grid seedling reads. The seedling was trained on eight rules that move cells, so the other
two kinds are entirely new to it.
"""

import random
from functools import cache
from itertools import permutations, product

from seal_lib.arc import world
from seal_lib.arc.augment import IDENTITY, flip, rotate, transpose
from seal_lib.arc.grids import Grid
from seal_lib.arc.tasks import Pair, Task
from seal_lib.arc.world import cells, grid_of, task_of
from seal_lib.errors import DataError, must_be_one_of
from seal_lib.seeds import rng as seeded

RULE_KINDS = ("moves", "around_black", "key_colour")
#: places of the black cells before a grid is turned; cells are numbered 0 1 / 2 3
BLACK: dict[str, tuple[int, ...]] = {"corner": (0,), "side": (0, 1), "diagonal": (0, 3), "bend": (0, 1, 2)}
#: the eight ways to turn or mirror a square
SYMMETRIES = (
    *(IDENTITY, rotate(90), rotate(180), rotate(270)),
    *(flip(0), flip(1), transpose(), rotate(180).then(transpose())),
)
_NUMBERED: Grid = ((0, 1), (2, 3))


@cache
def around_black() -> tuple[tuple[str, world.GridRule], ...]:
    """Return (place of the black cells, cell map) for every rule that turning and recolouring leave unchanged.

    A cell map is such a rule if it commutes with every turn that leaves the black cells in place. Maps that differ only
    in which black cell they show are one rule; maps that change nothing or blacken everything are left out.
    """
    rules = []
    for place, black in BLACK.items():
        shown = [-1 if i in black else i for i in range(4)]  # black cells are indistinguishable
        kept = [cells(turn(_NUMBERED)) for turn in SYMMETRIES]
        kept = [turn for turn in kept if {i for i in range(4) if turn[i] in black} == set(black)]
        found: dict[tuple[int, ...], world.GridRule] = {}
        for rule in product(range(4), repeat=4):
            if all(shown[rule[turn[i]]] == shown[turn[rule[i]]] for turn in kept for i in range(4)):
                found.setdefault(tuple(shown[i] for i in rule), rule)
        rules += [(place, rule) for looks, rule in found.items() if looks != tuple(shown) and set(looks) != {-1}]
    return tuple(rules)


@cache
def populations() -> dict[str, dict[str, tuple]]:
    """Return population → kind → rules; no rule is in two populations."""
    around, keys = list(around_black()), list(permutations(range(1, world.N_COLOURS), 2))
    random.Random(0).shuffle(around)
    random.Random(0).shuffle(keys)
    names, moves = ("seen", "learning", "heldout"), world.populations()
    cuts = {"around_black": (0, 4, 16), "key_colour": (0, 12, 40)}
    cut = {"around_black": around, "key_colour": keys}
    return {
        f"mixed-{name}": {
            "moves": moves[name],
            **{kind: tuple(cut[kind][at[i] : (*at, None)[i + 1]]) for kind, at in cuts.items()},
        }
        for i, name in enumerate(names)
    }


def kind_of(task: Task | str) -> str:
    """Return the kind of a task of this world, read from its id; "unknown" for other tasks."""
    name = task if isinstance(task, str) else task.id
    return next((kind for kind in RULE_KINDS if f"-{kind}-" in name), "unknown")


def tasks(population: str, count: int, seed: int = 0, demonstrations: int = 4) -> list[Task]:
    """Return ``count`` tasks, a third of each kind in turn, each with a different rule.

    Raises:
        DataError: the population is unknown, three does not divide the count, or there are fewer rules than tasks.
    """
    must_be_one_of("tasks", f"world:{population}", [f"world:{name}" for name in populations()])
    each, left = divmod(count, len(RULE_KINDS))
    if left:
        raise DataError(f"tasks: {count} tasks of world:{population} cannot be a third of each kind; give 18, say.")
    made: dict[str, list[Task]] = {}
    for kind, rules in populations()[population].items():
        if each > len(rules):
            raise DataError(f"tasks: world:{population} has {len(rules)} rules {kind}; ask for {3 * len(rules)} tasks.")
        chosen = list(rules)
        seeded("mixed tasks", population, kind, seed).shuffle(chosen)
        made[kind] = [_TASKS[kind](f"{population}-{kind}", rule, seed, demonstrations) for rule in chosen[:each]]
    return [task for several in zip(*made.values(), strict=True) for task in several]


def _moves(name: str, rule: world.GridRule, seed: int, demonstrations: int) -> Task:
    name = f"{name}-{''.join(map(str, rule))}"
    draws = seeded("mixed task", name, seed)
    return task_of(name, [world.draw_pair(rule, draws) for _ in range(demonstrations + 1)])


def _around_black(name: str, rule: tuple[str, world.GridRule], seed: int, demonstrations: int) -> Task:
    """Make a task whose black cells have one place in all demonstrations and another one in the test."""
    place, moved = rule
    name, black = f"{name}-{place}-{''.join(map(str, moved))}", BLACK[place]
    draws = seeded("mixed task", name, seed)
    places = {
        frozenset(i for i, cell in enumerate(cells(turn(_NUMBERED))) if cell in black): turn for turn in SYMMETRIES
    }
    turns = [places[key] for key in sorted(places, key=sorted)]
    draws.shuffle(turns)
    pairs = []
    for turn in [turns[0]] * demonstrations + [turns[-1]]:
        colours = draws.sample(range(1, world.N_COLOURS), 4)
        grid = grid_of([0 if i in black else colours[i] for i in range(4)])
        pairs.append(turn.pair(Pair(grid, world.apply(moved, grid))))
    return task_of(name, pairs)


def _key_colour(name: str, rule: tuple[int, int], seed: int, demonstrations: int) -> Task:
    old, new = rule
    name = f"{name}-{old}{new}"
    draws = seeded("mixed task", name, seed)
    pairs = []
    for _ in range(demonstrations + 1):
        four = [old, *draws.sample([c for c in range(world.N_COLOURS) if c not in rule], 3)]
        draws.shuffle(four)
        pairs.append(Pair(grid_of(four), grid_of([new if cell == old else cell for cell in four])))
    return task_of(name, pairs)


_TASKS = {"moves": _moves, "around_black": _around_black, "key_colour": _key_colour}
