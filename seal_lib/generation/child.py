"""A Python child process that answers JSON messages within a time limit and ends with its parent.

It is meant for libraries that patch their process, hang, or keep memory, since a child process can be killed. `Child`
is the end in the parent, `serve` the end in the child. A message is one line of JSON on a socket; large data goes
through files. POSIX only.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from seal_lib.errors import DataError, SealError

_LOG = "log.txt"
_TICK = 1.0  # s between two heartbeats


class Refused(Exception):
    """Raised by a handler in the child to reject an input; the child keeps running."""


def scratch(prefix: str, room: int = 0) -> Path:
    """Create a scratch folder and return it.

    It is in memory (``/dev/shm``) if more than twice ``room`` bytes are free there, else in the temporary folder.
    Folders of the same prefix whose process no longer runs (killed together with its child by a batch system, for
    example) are removed first.
    """
    memory, usual = Path("/dev/shm"), Path(tempfile.gettempdir())
    for left in (*memory.glob(f"{prefix}*"), *usual.glob(f"{prefix}*")):
        owner = left.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not _runs(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(memory).free if memory.is_dir() and os.access(memory, os.W_OK) else 0
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=memory if free > 2 * room + 2**24 else usual))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process belongs to another user
        return True
    return True


class Child:
    """A running child process.

    Args:
        command: the program; the file descriptor of the child's socket and our process id are appended as its last two
            arguments.
        name: the child's name in error messages.
        folder: a scratch folder, which the child owns from now on; it is removed when the child ends.
        environment: the whole environment of the child.
        way_out: what the user can do if the child fails, for error messages.
    """

    def __init__(self, command: Sequence[str], name: str, folder: Path, environment: Mapping[str, str], way_out: str):
        self.name, self.folder, self.way_out, self._owner = name, folder, way_out, os.getpid()
        ours, theirs = socket.socketpair()
        with open(folder / _LOG, "wb") as log, theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                cwd=folder,
                env=dict(environment),
                start_new_session=True,  # an interrupt in the terminal must not reach it
            )
        self._socket, self._lines = ours, ours.makefile("rb")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, message: dict, limit: float, longer: str) -> dict:
        """Send a message and return the answer.

        Args:
            limit: the longest time in seconds without an answer or a heartbeat (see `serve`).
            longer: how the user can raise the limit, for the error message.

        Raises:
            DataError: the child rejected an input and keeps running.
            SealError: the child failed, died, or was silent for too long, and has been ended.
        """
        try:
            _send(self._socket, message, limit)
            while "tick" in (answer := _receive(self._socket, self._lines, limit)):
                pass
        except TimeoutError:
            self.close()
            raise SealError(
                f"{self.name} gave no sign of life for {limit:g} seconds and was ended; {longer}, {self.way_out}."
            ) from None
        except (EOFError, OSError):
            words, code = self._last_words(), self._code()
            self.close()
            raise SealError(f"{self.name} ended unexpectedly ({code}): {words}; {self.way_out}.") from None
        except BaseException:  # an interrupt: the next call would read the answer of this one
            self.close()
            raise
        if "refused" in answer:
            raise DataError(answer["refused"])
        if "failed" in answer:
            self.close()
            raise SealError(f"{self.name} failed: {answer['failed']}; {self.way_out}.")
        return answer

    def close(self) -> None:
        """End the child and all processes it started, and remove its folder. A second call does nothing."""
        if self._owner != os.getpid():  # a fork of our process does not own the child
            return
        self._lines.close()
        self._socket.close()
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _code(self) -> str:
        try:
            code = self._process.wait(5)  # the socket closes a moment before the process ends
        except subprocess.TimeoutExpired:
            return "its line is closed"
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def _last_words(self) -> str:
        log = self.folder / _LOG
        lines = log.read_text("utf-8", "replace").split("\n") if log.exists() else []
        said = [" ".join(line.split()) for line in lines if line.strip()]
        return " / ".join(said[-2:])[-400:] or "it said nothing"


def _send(line: socket.socket, message: dict, limit: float | None) -> None:
    line.settimeout(limit)
    line.sendall(json.dumps(message).encode() + b"\n")


def _receive(line: socket.socket, lines: BinaryIO, limit: float | None) -> dict:
    line.settimeout(limit)
    data = lines.readline()
    if not data.endswith(b"\n"):
        raise EOFError
    return json.loads(data)


# ---------------------------------------------------------------------------------------------- in the child


def serve(arguments: Sequence[str], handlers: Mapping[str, Callable]) -> NoReturn:
    """Answer the parent's messages until the socket closes, then end the process. A child calls this first of all.

    Args:
        arguments: the last two arguments of the command line.
        handlers: maps a message's ``do`` to a function of the other keys and ``tick`` that returns a dict. The function
            calls ``tick()`` as a heartbeat, and only when it has made progress, so that an endless loop is noticed. If
            it raises `Refused`, the input is rejected; any other exception ends the child.
    """
    (number, parent), folder = map(int, arguments), Path.cwd()
    threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()
    line, last = socket.socket(fileno=number), 0.0
    lines = line.makefile("rb")

    def say(message: dict) -> None:
        try:
            _send(line, message, None)
        except OSError:
            _end(folder)

    def tick() -> None:
        nonlocal last
        if time.monotonic() - last > _TICK:
            last = time.monotonic()
            say({"tick": 1})

    while True:
        try:
            message = _receive(line, lines, None)
        except (EOFError, OSError):
            _end(folder)
        try:
            answer = handlers[message.pop("do")](**message, tick=tick)
        except Refused as error:
            answer = {"refused": str(error)}
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            say({"failed": text[:600]})
            raise
        say(answer)


def _end_with(parent: int, folder: Path) -> None:
    """End this process as soon as its parent has ended or was killed, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _end(folder)


def _end(folder: Path) -> NoReturn:
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
