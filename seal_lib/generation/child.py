"""A Python child process that answers JSON messages within a time limit and ends with its parent.

For libraries that patch their process, hang, or keep memory: a child process can be killed. Both ends are here:
`Child` in the parent, `serve` in the child. Nothing is pickled; large data goes through files. Knows
nothing of models. POSIX only.
"""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from seal_lib.errors import DataError, SealError

_HEAD = struct.Struct(">Q")
_LOG = "log.txt"
_TICK = 1.0  # s between two signs of life


class Refused(Exception):
    """Raised by a child's handler for a wrong input; the child keeps running."""


def scratch(prefix: str, room: int = 0) -> Path:
    """A new folder in memory where the system has such a place with ``room`` bytes free, else the temporary folder.

    What processes left there that were killed together with their child (by a batch system, say) is removed first.
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
    except PermissionError:  # it is another user's
        return True
    return True


class Child:
    """A running child.

    Args:
        command: the program; the child's end of the line and our process id are added as its last two arguments.
        name: what a person reads in errors.
        folder: a scratch folder, which the child owns from now on: it goes when the child ends.
        environment: all of the child's environment.
        way_out: what a person can do when it fails.
    """

    def __init__(self, command: Sequence[str], name: str, folder: Path, environment: Mapping[str, str], way_out: str):
        self.name, self.folder, self.way_out, self._owner = name, folder, way_out, os.getpid()
        ours, theirs = socket.socketpair()
        with open(folder / _LOG, "wb") as log, theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()], cwd=folder,
                env=dict(environment), start_new_session=True,  # an interrupt of the parent's terminal is not for it
            )  # fmt: skip
        self._socket = ours

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, message: dict, limit: float, longer: str) -> dict:
        """Send a message and wait for its answer.

        Args:
            limit: longest silence, in seconds; `serve` says what breaks it.
            longer: how a person raises the limit.

        Raises:
            DataError: the child refused an input, and works on.
            SealError: it failed, died, or was silent for too long; it has been ended.
        """
        try:
            _send(self._socket, message, limit)
            while "tick" in (answer := _receive(self._socket, limit)):
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
        except BaseException:  # an interrupt: the answer would be taken for that of the next call
            self.close()
            raise
        if "refused" in answer:
            raise DataError(answer["refused"])
        if "failed" in answer:
            self.close()
            raise SealError(f"{self.name} failed: {answer['failed']}; {self.way_out}.")
        return answer

    def close(self) -> None:
        """End the child and all it started, and remove its folder; may be called again."""
        if self._owner != os.getpid():  # a fork of our process does not own it
            return
        self._socket.close()
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _code(self) -> str:
        try:
            code = self._process.wait(5)  # its line closes a moment before it is gone
        except subprocess.TimeoutExpired:
            return "its line is closed"
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def _last_words(self) -> str:
        log = self.folder / _LOG
        lines = log.read_text("utf-8", "replace").split("\n") if log.exists() else []
        said = [" ".join(line.split()) for line in lines if line.strip()]
        return " / ".join(said[-2:])[-400:] or "it said nothing"


def _send(line: socket.socket, message: dict, limit: float | None) -> None:
    data = json.dumps(message).encode()
    line.settimeout(limit)
    line.sendall(_HEAD.pack(len(data)) + data)


def _receive(line: socket.socket, limit: float | None) -> dict:
    (size,) = _HEAD.unpack(_read(line, _HEAD.size, limit))
    return json.loads(_read(line, size, limit))


def _read(line: socket.socket, size: int, limit: float | None) -> bytes:
    data = bytearray()
    line.settimeout(limit)
    while len(data) < size:
        part = line.recv(min(size - len(data), 2**20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


# ---------------------------------------------------------------------------------------------- in the child


def serve(arguments: Sequence[str], handlers: Mapping[str, Callable]) -> NoReturn:
    """Answer the parent's messages until the line closes, then end the process; to be called first of all in a child.

    Args:
        arguments: the last two of the command line.
        handlers: value of a message's ``do`` -> function of the other keys and ``tick`` that returns a dict. It calls
            ``tick()`` whenever it got ahead; going round in circles is no progress. A `Refused` it raises says
            that the input was wrong; any other exception is a failure and the end of the child.
    """
    (number, parent), folder = map(int, arguments), Path.cwd()
    threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()
    line, last = socket.socket(fileno=number), 0.0

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
            message = _receive(line, None)
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
    """End this process when its parent is gone, killed or not, whatever it is busy with."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _end(folder)


def _end(folder: Path) -> NoReturn:
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
