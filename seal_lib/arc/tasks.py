"""ARC tasks by id: read, checked and scored as whole tasks, never as sub-tasks in file order.

==================  ==================================================================================================
two Kaggle files    ``load_tasks(challenges, solutions)``: ``{id: {train, test}}`` and ``{id: [grid, …]}``
one original file   ``load_tasks("<id>.json")``: ``{train: [{input, output}], test: [{input, output}]}``
a folder            ``load_tasks(folder)``: original files, one per task, ids from the file names, sorted
==================  ==================================================================================================

Knows nothing of prompts, augmentation or models. The authors cut lists of sub-tasks and so score other tasks than
they train on (facts arc.md 1.4); here tasks are chosen by explicit ids.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seal_lib import paths
from seal_lib.arc.grids import Grid, as_grid, to_html
from seal_lib.errors import DataError


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


def load_tasks(
    challenges: str | Path, solutions: str | Path | None = None, ids: Sequence[str] | None = None
) -> list[Task]:
    """Tasks in file order, or exactly ``ids`` in the order given.

    ``solutions`` is the second file of the Kaggle format; without it, solutions are those in the task files, if any.

    Raises:
        DataError: one sentence naming the file, the task and the entry that is missing or malformed.
    """
    source = paths.given(challenges)
    if source.is_dir():
        files = sorted(source.glob("*.json"))
        if not files:
            raise DataError(f"{source} holds no .json file; give a folder with one task per file or a challenges file.")
        tasks = [_original(file) for file in files]
        if solutions is not None:
            raise DataError(f"solutions: {solutions} goes with one challenges file, but {source} is a folder.")
    else:
        table = _read(source)
        if "train" in table and "test" in table:
            if solutions is not None:
                raise DataError(f"solutions: {solutions} goes with a challenges file; {source} is one task by itself.")
            tasks = [_original(source)]
        else:
            tasks = _kaggle(source, table, None if solutions is None else paths.given(solutions))
    return tasks if ids is None else choose(tasks, ids, str(source))


def choose(tasks: Iterable[Task], ids: Sequence[str], where: str = "the tasks given") -> list[Task]:
    """Exactly the tasks ``ids``, in that order; an unknown or repeated id is an error."""
    table = {task.id: task for task in tasks}
    for name in ids:
        if name not in table:
            raise DataError(f"task {name!r} is not in {where}, which has {len(table)} tasks; check the id.")
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if list(ids).count(name) > 1)
        raise DataError(f"task {twice!r} is asked for twice; list each id once.")
    return [table[name] for name in ids]


def _original(path: Path) -> Task:
    entry = _read(path)
    if not {"train", "test"} <= set(entry):
        raise DataError(
            f"{path} is not one task (keys 'train' and 'test'); a challenges file is given by name, not in a folder."
        )
    return _task(path.stem, entry, str(path), None)


def _kaggle(path: Path, table: dict, answers: Path | None) -> list[Task]:
    if not table:
        raise DataError(f"{path} holds no task; expected an object of tasks by id.")
    known = None if answers is None else _read(answers)
    if known is not None and set(known) != set(table):
        name = sorted(set(known) ^ set(table))[0]
        raise DataError(f"task {name!r} is in only one of {path} and {answers}; the two files do not belong together.")
    tasks = []
    for name, entry in table.items():
        given = None if known is None else _list(known[name], f"{answers}, task {name}")
        tasks.append(_task(name, entry, f"{path}, task {name}", given))
    return tasks


def _task(name: str, entry: object, where: str, answers: list | None) -> Task:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is a {type(entry).__name__}; expected an object with 'train' and 'test'.")
    parts = {}
    for key in ("train", "test"):
        if key not in entry:
            raise DataError(f"{where}: the key {key!r} is missing; a task has 'train' and 'test'.")
        parts[key] = _list(entry[key], f"{where}, {key}")
        if not parts[key]:
            raise DataError(f"{where}: {key!r} is empty; a task needs at least one demonstration and one test.")
    train = tuple(
        Pair(_grid(pair, "input", f"{where}, train[{i}]"), _grid(pair, "output", f"{where}, train[{i}]"))
        for i, pair in enumerate(parts["train"])
    )
    tests = tuple(_grid(test, "input", f"{where}, test[{i}]") for i, test in enumerate(parts["test"]))
    told = ["output" in test for test in parts["test"]]
    if any(told) and not all(told):
        raise DataError(f"{where}: test[{told.index(False)}] has no 'output' but others do; give all or none.")
    own = tuple(_grid(test, "output", f"{where}, test[{i}]") for i, test in enumerate(parts["test"]) if told[i])
    if answers is None:
        return Task(name, train, tests, own)
    if len(answers) != len(tests):
        raise DataError(f"{where}: {len(tests)} test inputs but {len(answers)} solutions; each test needs one.")
    solutions = tuple(as_grid(grid, f"{where}, solution {i}") for i, grid in enumerate(answers))
    if own and own != solutions:
        raise DataError(f"{where}: the outputs in the challenges differ from the solutions file; keep one of them.")
    return Task(name, train, tests, solutions)


def _grid(holder: object, key: str, where: str) -> Grid:
    if not isinstance(holder, dict) or key not in holder:
        raise DataError(f"{where}: the key {key!r} is missing; expected an object with grids.")
    return as_grid(holder[key], f"{where}, {key}")


def _list(value: object, where: str) -> list:
    if not isinstance(value, list):
        raise DataError(f"{where} is a {type(value).__name__}; expected a list.")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen = [key for key, _ in pairs]
        raise DataError(f"the key {next(key for key in seen if seen.count(key) > 1)!r} stands twice; remove one.")
    return table


def _read(path: Path) -> dict:
    """A JSON object from a file; a key that stands twice is an error, not a silent loss."""
    if not path.is_file():
        raise DataError(f"tasks: no file {path}; give a challenges file, a task file or a folder of task files.")
    try:
        table = json.loads(path.read_text("utf-8"), object_pairs_hook=_unique)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number too long, nested too deep
        raise DataError(f"{path} is not JSON text ({' '.join(str(error).split())[:120]}); mend the file.") from error
    if not isinstance(table, dict):
        raise DataError(f"{path} holds a {type(table).__name__}; expected a JSON object of tasks, or of one task.")
    return table
