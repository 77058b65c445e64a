"""``python -m seal_lib.arc facts CHALLENGES.json SOLUTIONS.json``: what is in an ARC file, as JSON on stdout.

The counts, hashes and sizes serve to check this implementation against another one. ``--samples`` adds the size of
every task's training set before the cap, which is slower.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from seal_lib.arc.augment import SWITCHES, Augmenter, augmenters
from seal_lib.arc.data import load_tasks
from seal_lib.arc.examples import LEAVE_OUT, augmented, leave_out, training_set
from seal_lib.arc.grids import Grid, answer_text, parse, to_text
from seal_lib.arc.tasks import Task
from seal_lib.arc.vote import rates, score, subsets, views
from seal_lib.errors import DataError, command_line

#: name of a row → switches that are on; the translation is the authors' throughout
SWITCH_SETS = {"none": (), "basic": SWITCHES[:1], "size": SWITCHES[1:2], "chain": SWITCHES[2:3], "repeat": SWITCHES[3:]}
SWITCH_SETS["all"] = SWITCHES


def facts(tasks: Sequence[Task], samples: bool = False) -> dict:
    """Return every fact of the tasks of one file.

    Raises:
        DataError: a task has no solutions.
    """
    for task in tasks:
        if not task.solutions:
            raise DataError(f"task {task.id} has no solutions; facts needs them, so give the solutions file.")
    grids = [grid for task in tasks for grid in _grids(task)]
    texts = [to_text(grid) for grid in grids]
    distinct = sum(len({e for n in LEAVE_OUT for e in leave_out(task.train, n)}) for task in tasks)
    left = {str(n): [example for task in tasks for example in leave_out(task.train, n)] for n in LEAVE_OUT}
    report = {
        "tasks": len(tasks),
        "sub_tasks": sum(len(task.tests) for task in tasks),
        "train_pairs": sum(len(task.train) for task in tasks),
        "train_pairs_histogram": _histogram(len(task.train) for task in tasks),
        "test_histogram": _histogram(len(task.tests) for task in tasks),
        "grids": len(grids),
        "cells": sum(len(grid) * len(grid[0]) for grid in grids),
        "sum_of_values": sum(sum(row) for grid in grids for row in grid),
        "grid_texts": {
            "count": len(texts),
            "characters": sum(map(len, texts)),
            "newlines": sum(text.count("\n") for text in texts),
            "longest": max(map(len, texts)),
            "sha256": _sha(texts),
            "round_trip": all(parse(answer_text(grid)).grid == grid for grid in grids),
        },
        "leave_out": {n: len(examples) for n, examples in left.items()}
        | {"all": sum(map(len, left.values())), "distinct": distinct},
        "distinct_leave_1": {
            name: sum(len(augmented(task.train, 1, augmenters(on, "authors"))) for task in tasks)
            for name, on in SWITCH_SETS.items()
        },
        "augmenters": {a.name: _first_pairs(tasks, a)[:16] for a in augmenters(SWITCHES, "authors")},
        "inverses": _inverses(tasks),
        "questions": {
            "distinct_leave_1": sum(len(subsets(task, test)) for task in tasks for test in range(len(task.tests))),
            "with_turned": sum(len(views(task, test)) for task in tasks for test in range(len(task.tests))),
        },
        "scoring": _scoring(tasks),
    }
    if samples:
        report["training_samples"] = {
            task.id: len(training_set(task, SWITCHES, protocol="authors", cap=None)) for task in tasks
        }
    return report


def _grids(task: Task) -> list[Grid]:
    """Return each demonstration's input and output, then each test input and its solution."""
    shown = [grid for pair in task.train for grid in (pair.input, pair.output)]
    return shown + [grid for both in zip(task.tests, task.solutions, strict=True) for grid in both]


def _histogram(counts: Iterable[int]) -> dict[str, int]:
    return {str(count): number for count, number in sorted(Counter(counts).items())}


def _sha(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n\n".join(texts).encode()).hexdigest()


def _first_pairs(tasks: Sequence[Task], augmenter: Augmenter) -> str:
    turned = [augmenter.pair(task.train[0]) for task in tasks]
    return _sha(to_text(grid) for pair in turned for grid in (pair.input, pair.output))


def _inverses(tasks: Sequence[Task]) -> dict[str, bool]:
    """Return augmenter → whether its inverse undoes it on every demonstration, for all that have an inverse."""
    grids = {grid for task in tasks for pair in task.train for grid in (pair.input, pair.output)}
    with_ = {a.name: a for a in augmenters(SWITCHES) if a.inverse}
    return {name: all(a.inverse(a(grid)) == grid for grid in grids) for name, a in with_.items()}


def _scoring(tasks: Sequence[Task]) -> dict[str, object]:
    """Score the true solutions as first or second attempt, and tasks with several tests without their last output."""
    other: Grid = ((0,),)
    second = [score(task, [(other, truth) for truth in task.solutions]) for task in tasks]
    first = [score(task, [(truth,) for truth in task.solutions]) for task in tasks]
    several = [task for task in tasks if len(task.tests) > 1]
    short = [score(task, [(truth,) for truth in task.solutions[:-1]]) for task in several]
    return {
        "true_first": rates(first),
        "true_second": rates(second)["pass_2"],
        "tasks_right": sum(item.pass_2 for item in first),
        "outputs_right": sum(sum(item.either) for item in first),
        "tasks_of_several_tests": len(several),
        "right_with_one_output_dropped": sum(item.pass_2 for item in short),
    }


@command_line
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m seal_lib.arc", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("facts", help="counts and hashes of an ARC file, as JSON")
    asked.add_argument("challenges", help="challenges file, one task file, or a folder of task files")
    asked.add_argument("solutions", nargs="?", help="solutions file, for a Kaggle challenges file")
    asked.add_argument("--samples", action="store_true", help="add the size of every task's training set")
    options = parser.parse_args(arguments)
    # a path on the command line counts from the current directory, not from the checkout
    given = (options.challenges, options.solutions)
    tasks = load_tasks(*(path and Path(path).expanduser().absolute() for path in given))
    print(json.dumps(facts(tasks, options.samples), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
