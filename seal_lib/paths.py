"""Folders of the suite, and reading and writing files so that a killed process never leaves half a file.

Paths depend on the layout of a checkout and on two environment variables, never on the current directory, since
papermill, JupyterLab, make and pytest each start in another one.

* ``SEAL_HOME``: where ``runs/``, ``figures/`` and ``data/`` are written (default: the checkout).
* ``SEAL_SOURCE``: where ``notebooks/`` and ``params/`` are read (default: the checkout; tests point it elsewhere).
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from seal_lib.errors import DataError, on_disk

PACKAGE: Path = Path(__file__).resolve().parent
ROOT: Path = PACKAGE.parent


def _from_env(name: str) -> Path:
    value = os.environ.get(name, "")
    return expanded(value).resolve() if value else ROOT


def notebooks() -> Path:
    """Return the folder of the committed notebooks."""
    return _from_env("SEAL_SOURCE") / "notebooks"


def params() -> Path:
    """Return the folder of the parameter files, ``params/<notebook>/<scale>.yaml``."""
    return _from_env("SEAL_SOURCE") / "params"


def runs() -> Path:
    """Return the folder of all run folders, which may not exist yet."""
    return _from_env("SEAL_HOME") / "runs"


def figures() -> Path:
    """Return the folder of the published figures and tables, which may not exist yet."""
    return _from_env("SEAL_HOME") / "figures"


def labelled(scale: str) -> str:
    """Return the folder name of a scale's tables and figures: ``seedling``, or ``seedling-full`` under ``SET=full``."""
    return "-".join(filter(None, (scale, os.environ.get("SET", ""))))


def published(scale: str) -> Path:
    """Return the folder of a scale's committed tables and figures, which may not exist yet."""
    return figures() / labelled(scale)


def gallery(scale: str) -> Path:
    """Return the folder of the tables and figures that the runs of a scale produce, before they are published."""
    return runs() / f"gallery-{labelled(scale)}"


def data() -> Path:
    """Return the folder of downloaded and verified data, which may not exist yet."""
    return _from_env("SEAL_HOME") / "data"


def given(path: str | Path) -> Path:
    """Resolve a path from a parameter; a relative path counts from the checkout."""
    return ROOT / expanded(path)


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` expanded, or unchanged if there is no such user or this user has no home."""
    return Path(os.path.expanduser(path))


def short(path: Path) -> str:
    """Return a path for display, relative to the parent of the run folders or to the checkout if possible."""
    for base in (runs().parent, ROOT):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)


def importable() -> str:
    """Return the ``PYTHONPATH`` for a child process that imports this library."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables within the block, and restore them after it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically (temporary file, fsync, rename) and return its path.

    Raises:
        DiskError: the disk is full, access is denied or the path does not exist.
    """
    with whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; at the end of the block it replaces ``path``, or is removed on an error.

    Raises:
        DiskError: as `write_text`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # its folder may not be reachable either
                temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> Path:
    """Write ``value`` as indented JSON by `write_text`. NaN raises ValueError."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON file that holds an object.

    Raises:
        DataError: the file cannot be read, is not JSON or holds something else.
    """
    content = read_data(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__} where an object is wanted; restore the file.")
    return content


#: suffix of a JSON file
JSON = re.compile(r"\.json(?:\.gz)?$", re.IGNORECASE)


def is_json(path: Path) -> bool:
    """Return True if a path, other than a folder, is named as a JSON file.

    Hidden files do not count, since macOS puts a ``._x.json`` beside ``x.json``.
    """
    return bool(JSON.search(path.name)) and not path.name.startswith(".") and not path.is_dir()


def json_files(folder: Path) -> list[Path]:
    """Return the JSON files of a folder, sorted by name; broken links are included."""
    return [path for path in sorted(folder.iterdir()) if is_json(path)]


#: first bytes of other kinds of file → what the file is and what to do
_OTHERS = {
    b"PK\x03\x04": "is a zip archive; unpack it and give the file inside",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file; run `git lfs pull`",
    b"PAR1": "is a Parquet file; write its rows as JSON lines (datasets: to_json; pandas: to_json, lines=True)",
    b"ARROW1": "is an Arrow file; write its rows as JSON lines (datasets: to_json)",
} | dict.fromkeys((b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"), "is compressed, and not by gzip; unpack it")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object from its (key, value) pairs (an ``object_pairs_hook`` of `json.loads`).

    Raises:
        DataError: a key occurs twice; JSON would silently drop one value.
    """
    table = dict(pairs)
    if len(table) < len(pairs):
        seen = [key for key, _ in pairs]
        raise DataError(f"the key {next(key for key in seen if seen.count(key) > 1)!r} occurs twice; remove one.")
    return table


def read_data(path: Path) -> Any:
    """Read the JSON value of a file from the user; a file of JSON lines gives the list of their values.

    The text may be UTF-8, UTF-16 or UTF-32, with or without a byte order mark, and may be gzipped.

    Raises:
        DataError: the file cannot be read, is not JSON (archives, tables and Git LFS pointers are named as such), or an
            object has a key twice; the message names the file.
    """
    if path.exists() and not path.is_file():  # a device or a pipe may never end
        raise DataError(f"{path} is {'a folder' if path.is_dir() else 'a device'}, not a file; give a file.")
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); mend the file or fetch it again.") from error
    if other := next((told for head, told in _OTHERS.items() if raw.startswith(head)), ""):
        raise DataError(f"{path} {other}.")
    if path.suffix.lower() in (".csv", ".tsv"):
        raise DataError(f"{path} is a table; write its rows as JSON lines (pandas: to_json, lines=True).")
    try:
        text = raw.decode(json.detect_encoding(raw))
        try:
            return json.loads(text, object_pairs_hook=unique)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise
        return [json.loads(line, object_pairs_hook=unique) for line in text.split("\n") if line.strip()]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:  # not JSON, another encoding, a number too long, nested too deep
        raise DataError(f"{path} is not JSON text ({' '.join(str(error).split())[:120]}); mend the file.") from error
