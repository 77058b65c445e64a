"""Errors whose message is one sentence for the user: what is wrong, where, and what to do.

`command_line` prints that sentence in place of a traceback, also for errors of the operating system.
"""

import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class SealError(ValueError):
    """An error that the user can fix; the message names the file, key or value and what to do."""

    def _render_traceback_(self) -> list[str]:
        """Return what Jupyter shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ParameterError(SealError):
    """A parameter set does not fit its notebook."""


class RunError(SealError):
    """A run folder cannot be used as asked (taken, foreign, damaged)."""


class DataError(SealError):
    """Input data is missing or malformed."""


class DiskError(SealError):
    """A file or folder cannot be read or written: the disk is full, access is denied or the path does not exist."""


class DivergedError(SealError):
    """Training produced a loss that is not a finite number."""


def must_be_one_of(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raise DataError if ``value`` is not allowed; the message names the ``key`` and what is."""
    if value not in (known := list(allowed)):
        raise DataError(f"{key}: {value!r} is not one of {', '.join(map(str, known))}.")


_PLACE = "give a folder that can be written (SEAL_HOME for runs, HOME for what Jupyter keeps)"
_WAY = "remove the file or the link that stands in its way, or give another folder by SEAL_HOME"
#: error number of the operating system → what to do
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
    """Return what to do about the operating system error that a message quotes, "" if it quotes none.

    Recognises Python's ``[Errno 28]`` and Rust's ``os error 28``.
    """
    return _WAYS.get(_number(message) or 0, "")


def _number(message: str) -> int | None:
    found = re.search(r"\[Errno (\d+)\]|\bos error (\d+)", message)
    return int(found[1] or found[2]) if found else None


def refused(error: OSError, path: str | Path | None = None) -> DiskError:
    """Return the DiskError for an OSError. ``path`` takes precedence over the file that the error names."""
    where, way = str(path or error.filename or "a file"), _WAYS.get(error.errno or 0, "")
    where = where if len(where) < 300 else f"{where[:100]}…"
    return DiskError(f"{where} cannot be used ({error.strerror or error}){f'; {way} and run again' if way else ''}.")


@contextmanager
def on_disk(path: str | Path) -> Iterator[None]:
    """Turn operating system errors in the block into a `DiskError` that names ``path``.

    This includes errors that a library in another language reports as text only (see `way_out`).
    """
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
    """Decorate the main function of a command line to print one sentence in place of a traceback.

    This covers every `SealError`, operating system errors and lack of memory. The exit code is the command's own, 2
    after such an error, and 130 after an interrupt.
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
        except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
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
