"""Files that survive a kill: a journal of JSON lines with checksums, and a lock that ends with its process."""

import fcntl
import json
import math
import os
import re
import time
import zlib
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import RunError, on_disk


def json_form(value: Any, where: str = "row") -> Any:
    """Convert a value to its JSON form: numpy scalars and tuples become plain, non-finite numbers become None.

    RunError if it has none; ``where`` names it in the message.
    """
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): json_form(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_form(item, where) for item in value]
    raise RunError(f"{where} is a {type(value).__name__}, which JSON cannot keep; turn it into numbers, text or lists.")


_LINE = re.compile(rb'(\{.*), "crc": "([0-9a-f]{8})"\}\n', re.DOTALL)


def _encoded(line: dict) -> bytes:
    """Encode a line as JSON whose last key is a checksum of the rest, so that edits and flipped bits are detected."""
    body = json.dumps(line, ensure_ascii=False, allow_nan=False).encode()
    return body[:-1] + f', "crc": "{zlib.crc32(body):08x}"}}\n'.encode()


def _decoded(raw: bytes) -> dict:
    """Decode a line; raise ValueError if it is torn or its checksum does not match."""
    match = _LINE.fullmatch(raw)
    if match is None or zlib.crc32(match[1] + b"}") != int(match[2], 16):
        raise ValueError("the checksum does not fit")
    return json.loads(match[1] + b"}")


def read(path: Path) -> list[dict]:
    """Return the lines of a finished journal, none if there is no file; RunError if a line is not what was written."""
    lines = []
    for number, raw in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else (), 1):
        try:
            lines.append(_decoded(raw))
        except ValueError as error:
            raise RunError(f"{paths.short(path)}:{number} is damaged ({error}); run again with FORCE=1.") from error
    return lines


class Journal:
    """An append-only file of JSON lines, in which each `append` is written as a whole or not at all.

    On opening, a last line that a kill cut short is removed. If an earlier line is not what was written, that line and
    everything after it move to a file of their own, so that they are computed again, and ``note`` says so.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict] = []
        self.ends: list[int] = []  # offset after each line, bytes
        self.note = ""
        data = path.read_bytes() if path.exists() else b""
        end = 0
        for raw in data.splitlines(keepends=True):
            try:
                line = _decoded(raw)
            except ValueError:
                if end + len(raw) < len(data):
                    self._set_aside(data[end:], end)
                break
            end += len(raw)
            self.lines.append(line)
            self.ends.append(end)
        if end < len(data):
            self.cut(len(self.lines))

    def _set_aside(self, rest: bytes, end: int) -> None:
        number = 1 + len(list(self.path.parent.glob(f"{self.path.name}.damaged-*")))
        aside = self.path.with_name(f"{self.path.name}.damaged-{number}")
        with on_disk(aside):
            aside.write_bytes(rest)
        self.note = (
            f"{paths.short(self.path)} is damaged at byte {end}: what follows moved to {aside.name} and is made again"
        )
        print(self.note, flush=True)

    def cut(self, count: int) -> None:
        """Keep only the first ``count`` lines, on disk and in memory."""
        self.lines, self.ends = self.lines[:count], self.ends[:count]
        with open(self.path, "r+b") as file:
            file.truncate(self.ends[-1] if self.ends else 0)
            os.fsync(file.fileno())

    def append(self, lines: list[dict]) -> None:
        """Write lines in one block and flush them to disk; after an error the file ends where it ended before."""
        encoded = [_encoded(line) for line in lines]
        before = self.ends[-1] if self.ends else 0
        with on_disk(self.path):
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    block = memoryview(b"".join(encoded))
                    while block:
                        block = block[os.write(descriptor, block) :]
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, before)
                raise
        for raw in encoded:
            before += len(raw)
            self.lines.append(_decoded(raw))  # as a resumed run will read it
            self.ends.append(before)


class Lock:
    """An exclusive lock on a file, which the system releases when its process dies.

    The file holds the process id of the holder.

    Args:
        wait: seconds to wait for another holder.
        shared: only test whether another process holds the lock; nothing is written.

    Raises:
        RunError: another process still holds the lock after ``wait`` seconds.
    """

    def __init__(self, path: Path, wait: float = 0.0, shared: bool = False) -> None:
        with on_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self.descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                holder = os.read(self.descriptor, 32).decode(errors="replace").strip() or "unknown"
                os.close(self.descriptor)
                folder = paths.short(path.parent)
                raise RunError(f"{folder} is in use by process {holder}; wait for it or stop it.") from error
        if shared:  # the caller only tests whether the lock is held
            return
        with on_disk(path):
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, f"{os.getpid()}\n".encode(), 0)
        os.register_at_fork(after_in_child=self.release)  # a forked worker must not keep a dead run's lock

    def release(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
