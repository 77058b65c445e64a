"""ARC tasks by id: read, checked, and scored as whole tasks, never as sub-tasks in file order.

==================  ==================================================================================================
two Kaggle files    ``load_tasks(challenges, solutions)``: ``{id: {train, test}}`` and ``{id: [grid, …]}``
one original file   ``load_tasks("<id>.json")``: ``{train: [{input, output}], test: [{input, output}]}``
a folder            ``load_tasks(folder)``: original files, one per task, ids from the file names, sorted
the Hub             ``load_tasks("hub:owner/name:split")``: through ``datasets``, at one commit
the made world      ``load_tasks("world:heldout:24")``: 24 tasks with rules the shipped model has never seen;
                    ``world:mixed-heldout:24``: tasks with three kinds of rule
==================  ==================================================================================================

A Hub dataset has one task per row: lists ``train`` and ``test`` of ``{input, output}``, and the id in ``id`` or
``task_id``; without such a column, ids are ``<split>-00000``, … in row order. The default split is ``training``.
``lordspline/arc-agi`` (``training`` and ``evaluation``, 400 tasks each, no ids) is pinned below; for any other dataset,
such as ``dataartist/arc-agi`` (the same splits, with ids), pass the commit as ``revision``.

The authors cut lists of sub-tasks and therefore score other tasks than they train on; here tasks are chosen by explicit
ids.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.arc.grids import Grid, as_grid
from seal_lib.arc.tasks import Pair, Task
from seal_lib.errors import DataError

#: Hub dataset → the commit at which it is read
HUB_REVISIONS = {"lordspline/arc-agi": "f323416db0d359989e3e88630ca0c21911f31754"}


def load_tasks(
    challenges: str | Path,
    solutions: str | Path | None = None,
    ids: Sequence[str] | None = None,
    revision: str | None = None,
    seed: int = 0,
) -> list[Task]:
    """Return the tasks of a source (see the module docstring) in file order, or exactly ``ids`` in the order given.

    Args:
        challenges: a challenges file, a file with one task, a folder, ``hub:owner/name:split`` or ``world:name:count``.
        solutions: the second file of the Kaggle format; without it, solutions are those in the task files, if any.
        revision: the commit of a Hub dataset; overrides the pinned one.
        seed: the seed with which tasks of the made world are drawn.

    Raises:
        DataError: one sentence that names the file, the task and the entry that is missing or malformed.
    """
    if isinstance(challenges, str) and challenges.startswith("world:"):
        from seal_lib.arc import mixed_world, world

        population, _, count = challenges.removeprefix("world:").partition(":")
        if not (count.isascii() and count.isdecimal()) or int(count) < 1:
            raise DataError(f"tasks: {challenges} does not say how many; write world:{population}:24, say.")
        tasks = (mixed_world if population.startswith("mixed-") else world).tasks(population, int(count), seed)
        return tasks if ids is None else tasks_by_id(tasks, ids, challenges)
    if isinstance(challenges, str) and challenges.startswith("hub:"):
        if solutions is not None:
            raise DataError(f"solutions: {solutions} goes with a challenges file; {challenges} has its own.")
        tasks = _hub(challenges, revision)
        return tasks if ids is None else tasks_by_id(tasks, ids, challenges)
    if revision is not None:
        raise DataError(f"revision: {revision!r} goes with a source hub:owner/name, but {challenges} is a path.")
    source = paths.given(challenges)
    if source.is_dir():
        tasks = _folder(source)
        if solutions is not None:
            raise DataError(f"solutions: {solutions} goes with one challenges file, but {source} is a folder.")
    else:
        table = _read(source)
        if isinstance(table, list):
            if solutions is not None:
                raise DataError(f"solutions: {solutions} goes with a challenges file; {source} is a list of tasks.")
            tasks = _rows(table, source.name.split(".")[0], str(source), "row")
        elif "train" in table and "test" in table:
            if solutions is not None:
                raise DataError(f"solutions: {solutions} goes with a challenges file; {source} is one task by itself.")
            tasks = [_original(source)]
        else:
            tasks = _kaggle(source, table, None if solutions is None else paths.given(solutions))
    return tasks if ids is None else tasks_by_id(tasks, ids, str(source))


def tasks_by_id(tasks: Iterable[Task], ids: Sequence[str], where: str = "the tasks given") -> list[Task]:
    """Return exactly the tasks ``ids``, in that order.

    Raises:
        DataError: an id is unknown or repeated.
    """
    table = {task.id: task for task in tasks}
    for name in ids:
        if name not in table:
            raise DataError(f"task {name!r} is not in {where}, which has {len(table)} tasks; check the id.")
        if list(ids).count(name) > 1:
            raise DataError(f"task {name!r} is asked for twice; list each id once.")
    return [table[name] for name in ids]


def _folder(source: Path) -> list[Task]:
    """Return the tasks of a folder, one per file.

    Raises:
        DataError: the folder holds no JSON file or other folders of tasks, or a task or its id occurs twice.
    """
    files = paths.json_files(source)
    seen = [path for path in sorted(source.iterdir()) if not path.name.startswith(".")]
    deeper = [path.name for path in seen if path.is_dir() and any(map(paths.is_json, path.rglob("*")))]
    if deeper:
        also = "tasks and folders" if files else "folders"
        names = ", ".join(deeper[:4])
        raise DataError(f"{source} holds {also} of tasks ({names}); give one of them, without others in it.")
    if not files:
        raise DataError(f"{source} holds no .json file; give a folder with one task per file or a challenges file.")
    tasks = [_original(path) for path in files]
    names = [task.id for task in tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{source}: task {twice!r} occurs twice; ids are unique, so remove a file.")
    first: dict[tuple, str] = {}
    for task in tasks:
        other = first.setdefault((task.train, task.tests), task.id)
        if other != task.id:
            raise DataError(f"{source}: {task.id!r} is the same task as {other!r}; remove one of the files.")
    return tasks


def _original(path: Path) -> Task:
    entry = _read(path)
    if not isinstance(entry, dict) or not {"train", "test"} <= set(entry):
        raise DataError(
            f"{path} is not one task (keys 'train' and 'test'); a challenges file is given by name, not in a folder."
            + _of_pairs(entry)
        )
    return _task(paths.JSON.sub("", path.name), entry, str(path), None)


def _of_pairs(entry: object) -> str:
    """Return a hint for the error message where a list of pairs stands in place of a task, else ""."""
    pairs = entry if isinstance(entry, list) else []
    if not pairs or not all(isinstance(pair, dict) and {"input", "output"} <= set(pair) for pair in pairs):
        return ""
    return (
        " It is a list of pairs, as RE-ARC has them, which does not say what is shown and what is asked: write "
        "{'train': the first few, 'test': others}."
    )


def _hub(source: str, revision: str | None) -> list[Task]:
    """Return the tasks of a Hub dataset in row order."""
    name, _, split = source.removeprefix("hub:").partition(":")
    split = split or "training"
    if not all(part.strip() for part in name.split("/")) or name.count("/") != 1:
        raise DataError(f"tasks: {source!r} is not of the form hub:owner/name or hub:owner/name:split.")
    revision = revision or HUB_REVISIONS.get(name)
    if revision is None:
        raise DataError(f"tasks: hub:{name} has no pinned revision; give the commit as parameter `revision`.")
    if len(revision) != 40 or set(revision) - set("0123456789abcdef"):
        raise DataError(f"revision: {revision!r} is not a commit; give its 40 hexadecimal digits, as names may move.")
    from datasets import load_dataset

    return _rows(load_dataset(name, split=split, revision=revision), split, source, "split")


def _rows(rows: Iterable[Any], name: str, where: str, other: str) -> list[Task]:
    """Return the tasks of a table, one per row."""
    tasks: dict[str, Task] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{where} is a list of {type(row).__name__}; expected tasks, each with 'train' and 'test'.")
        key = next((key for key in ("id", "task_id") if row.get(key) is not None), None)
        if {"input", "output"} <= set(row):
            raise DataError(f"{where} holds no task.{_of_pairs([row])}")
        task = _task(str(row[key]) if key else f"{name}-{number:05d}", row, f"{where}, row {number}", None)
        if task.id in tasks:
            raise DataError(f"{where}, row {number}: task {task.id!r} occurs twice; ids are unique.")
        tasks[task.id] = task
    if not tasks:
        raise DataError(f"{where} holds no task; choose another {other}.")
    return list(tasks.values())


def _without_nulls(row: dict) -> dict:
    """Return a task without its nulls, since unknown outputs are null in some files and missing in others."""
    entry = {key: row[key] for key in ("train", "test") if row.get(key) is not None}
    for key, pairs in entry.items():
        if isinstance(pairs, list) and all(isinstance(pair, dict) for pair in pairs):
            entry[key] = [{k: grid for k, grid in pair.items() if grid is not None} for pair in pairs]
    return entry


def _kaggle(path: Path, table: dict, answers: Path | None) -> list[Task]:
    if not table:
        raise DataError(f"{path} holds no task; expected an object of tasks by id.")
    known = None if answers is None else _read(answers)
    if isinstance(known, list):
        raise DataError(f"{answers} holds a list; expected an object of solutions by task.")
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
        kind = type(entry).__name__
        raise DataError(f"{where} is a {kind}; expected an object with 'train' and 'test'.{_of_pairs(entry)}")
    entry, parts = _without_nulls(entry), {}
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
    known = ["output" in test for test in parts["test"]]
    if any(known) and not all(known):
        raise DataError(f"{where}: test[{known.index(False)}] has no 'output' but others do; give all or none.")
    own = tuple(_grid(test, "output", f"{where}, test[{i}]") for i, test in enumerate(parts["test"]) if known[i])
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


def _read(path: Path) -> Any:
    """Return the JSON object or list of a file.

    Raises:
        DataError: there is no such file, it holds another value, or a key occurs twice (JSON would silently drop one).
    """
    if not path.is_file():
        what = "is a link to nothing" if path.is_symlink() else "is no file"
        raise DataError(f"tasks: {path} {what}; give a challenges file, a task file or a folder of task files.")
    value = paths.read_data(path)
    if not isinstance(value, dict | list):
        raise DataError(f"{path} holds a {type(value).__name__}; expected a JSON object of tasks, or of one task.")
    return value
