"""Errors whose message is one sentence for a person: what is wrong, where, and the way out.

`command_line` is the one place where they, and what a disk or a terminal refuses, become that sentence.
"""

import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class SealError(ValueError):
    """Something the user can mend; the message names the file, key or value and what to do."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ParameterError(SealError):
    """A parameter set does not fit its notebook."""


class RunError(SealError):
    """A run folder cannot be used as asked (taken, foreign, damaged)."""


class DataError(SealError):
    """Input data is missing or malformed."""


class DiskError(SealError):
    """A file or folder cannot be written or read: no room, no right, no such place."""


class DivergedError(SealError):
    """Training produced a loss that is not a finite number."""


_PLACE = "give a folder that can be written (SEAL_HOME for runs, HOME for what Jupyter keeps)"
_WAY = "remove the file or the link that stands in its way, or give another folder by SEAL_HOME"
#: what the system refuses → the way out
_WAYS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "raise the limit on the size of a file (`ulimit -f`)",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.EIO: "the disk fails; use another",
    errno.ENAMETOOLONG: "give a shorter name",
} | dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _PLACE)
_WAYS |= dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP), _WAY)


def way_out(message: str) -> str:
    """What to do about a refusal of the system that a message tells (Python's ``[Errno 28]`` or Rust's ``os error
    28``); "" if it tells none."""
    return _WAYS.get(_number(message) or 0, "")


def _number(message: str) -> int | None:
    found = re.search(r"\[Errno (\d+)\]|\bos error (\d+)", message)
    return int(found[1] or found[2]) if found else None


def refused(error: OSError, path: str | Path | None = None) -> DiskError:
    """The sentence for what the system refuses. ``path``: the file that was meant, if the error does not name it."""
    where, way = str(path or error.filename or "a file"), _WAYS.get(error.errno or 0, "")
    where = where if len(where) < 300 else f"{where[:100]}…"
    return DiskError(f"{where} cannot be used ({error.strerror or error}){f'; {way} and run again' if way else ''}.")


@contextmanager
def on_disk(path: str | Path) -> Iterator[None]:
    """What the system refuses while a file is written becomes a `DiskError` that names it, also where a library of
    another language tells it in words."""
    try:
        yield
    except SealError:
        raise
    except OSError as error:
        raise refused(error, path) from error
    except Exception as error:
        if (number := _number(str(error))) is None:
            raise
        raise refused(OSError(number, os.strerror(number)), path) from error


def command_line(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """A command line that ends with one sentence, never with a traceback, where the user can mend what is wrong.

    Exit code: the command's own; 2 for such a sentence; 130 if it was stopped by hand.
    """

    @functools.wraps(main)
    def run(arguments: list[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):  # a terminal without UTF-8 must not end a run
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            code = main(arguments)
            sys.stdout.flush()
            return code
        except SealError as error:
            print(error, file=sys.stderr)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            print(refused(error), file=sys.stderr)
        except MemoryError:
            print("There is too little memory; choose smaller batches or a smaller scale.", file=sys.stderr)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        return 2

    return run
