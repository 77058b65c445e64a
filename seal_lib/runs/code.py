"""Find the code that a run depends on: the modules its notebook imports, directly or not, and the data files they name.

Sources are parsed and never executed, lazy imports included, so the answer is known before anything runs. Comments,
docstrings and formatting do not count, since they cannot change a row. Knows nothing of runs.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from seal_lib import LAZY, paths

DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef  # what has a docstring
#: endings of the package's data files; a module depends on those that its strings name
DATA = (".yaml", ".json", ".jsonl", ".mplstyle")


@functools.cache
def _modules() -> dict[str, Path]:
    """Return the file of every module of the library, by dotted name."""
    files = sorted(paths.PACKAGE.rglob("*.py"))
    names = [".".join(path.relative_to(paths.ROOT).with_suffix("").parts) for path in files]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, files, strict=True)}


def imported(tree: ast.AST) -> set[str]:
    """Return the modules of the library that a source imports.

    ``seal_lib.name`` counts as the module that defines the name. A string that equals a module's name counts as well,
    since such a module may be started by its name.
    """
    known, taken = _modules(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            taken |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            taken |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            if node.module == "seal_lib":
                taken |= {f"seal_lib.{LAZY[alias.name]}" for alias in node.names if alias.name in LAZY}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "seal_lib":
            taken |= {f"seal_lib.{LAZY[node.attr]}"} if node.attr in LAZY else set()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # a module may be started by its name
            taken |= {node.value}
    return taken & set(known)


def _bare(tree: ast.AST) -> str:
    """Return a dump of a source's syntax tree without docstrings, comments and formatting."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


@functools.cache
def _read(name: str, stamp: int) -> tuple[str, frozenset[str], frozenset[Path]]:
    """Return a module's hash, the modules it imports and the data files it names.

    ``stamp`` is the file's modification time; it is part of the cache key, so that an edited file is read again.
    """
    path = _modules()[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    data = {file for text in texts if text.endswith(DATA) and (file := path.parent / text).is_file()}
    taken = imported(tree)
    return hashlib.sha256(_bare(tree).encode()).hexdigest(), frozenset(taken), frozenset(data)


def used(sources: Iterable[str]) -> dict[str, str]:
    """Return the hash of every module and data file that the code cells depend on.

    The keys are dotted module names and, for data files, paths relative to the library.
    """
    waiting: set[str] = set()
    for source in sources:
        with suppress(SyntaxError):  # the cell holds an IPython magic; its imports stay unknown
            waiting |= imported(ast.parse(source))
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        sha, taken, data = _read(name, _modules()[name].stat().st_mtime_ns)
        found[name] = sha
        for file in data:
            found[file.relative_to(paths.PACKAGE).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
        waiting |= taken - set(found)
    return dict(sorted(found.items()))


def changed(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names whose hash differs between the two mappings, or that only one of them has."""
    return sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
