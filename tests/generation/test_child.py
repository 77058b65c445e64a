"""The child process: it answers, refuses, fails, hangs and dies, and the parent gets a sentence each time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

from seal_lib.errors import DataError, SealError
from seal_lib.generation.child import Child, scratch

WORKER = """
import os, sys, time
from seal_lib.generation.child import Refused, serve

def refuse(tick):
    raise Refused("no such thing; ask for another.")

def fail(tick):
    raise ValueError("something\\nbroke")

def die(tick, code):
    print("a warning nobody reads")
    print("Segmentation fault (really)", flush=True)
    os._exit(code)

def hang(tick):
    while True:
        time.sleep(0.01)

def slow(tick, steps):
    for _ in range(steps):
        time.sleep(0.3)
        tick()
    return {"steps": steps}

serve(sys.argv[-2:], {
    "echo": lambda tick, **said: said, "refuse": refuse, "fail": fail, "die": die, "hang": hang, "slow": slow,
    "pid": lambda tick: {"pid": os.getpid(), "group": os.getpgrp()},
})
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
LIMIT = 60.0  # generous: the machine may be busy, and no test waits for it


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return path


@pytest.fixture
def child(script: Path):
    started = Child([sys.executable, str(script)], "the worker", scratch("seal-test-"), ENVIRONMENT, "start it again")
    yield started
    started.close()


def gone(pid: int, within: float = 20.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # dead, and nobody has asked for its exit status
        time.sleep(0.05)
    return False


def test_it_answers_one_after_the_other_whatever_the_size(child: Child) -> None:
    for text in ("", "ä\n\0", "x" * 3_000_000):
        assert child.call({"do": "echo", "text": text, "n": [1, None]}, LIMIT, "") == {"text": text, "n": [1, None]}
    told = child.call({"do": "pid"}, LIMIT, "")
    assert told["pid"] == child.pid == told["group"] and told["group"] != os.getpgrp()


def test_a_refusal_leaves_it_working(child: Child) -> None:
    with pytest.raises(DataError, match="^no such thing; ask for another.$"):
        child.call({"do": "refuse"}, LIMIT, "")
    assert child.call({"do": "echo"}, LIMIT, "") == {} and child.alive


def test_a_failure_is_told_and_ends_it(child: Child) -> None:
    with pytest.raises(SealError, match="the worker failed: ValueError: something broke; start it again.") as caught:
        child.call({"do": "fail"}, LIMIT, "")
    assert not isinstance(caught.value, DataError) and not child.alive and not child.folder.exists()


def test_silence_is_an_error_within_the_limit(child: Child) -> None:
    child.call({"do": "echo"}, LIMIT, "")
    begun = time.monotonic()
    with pytest.raises(SealError, match="worker gave no sign of life for 0.5 seconds and was ended; raise it, start"):
        child.call({"do": "hang"}, 0.5, "raise it")
    assert time.monotonic() - begun < 15 and gone(child.pid)


def test_progress_is_no_silence(child: Child) -> None:
    child.call({"do": "echo"}, LIMIT, "")
    begun = time.monotonic()  # signs of life come a second apart at most
    assert child.call({"do": "slow", "steps": 30}, 8.0, "") == {"steps": 30}
    assert time.monotonic() - begun > 8


@pytest.mark.parametrize("size", [10, 5_000_000])  # the second does not fit into the line: sending waits too
def test_a_stopped_process_is_an_error_within_the_limit(child: Child, size: int) -> None:
    child.call({"do": "echo"}, LIMIT, "")
    os.kill(child.pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(SealError, match="no sign of life for 0.5 seconds"):
        child.call({"do": "echo", "text": "x" * size}, 0.5, "")
    assert time.monotonic() - begun < 15 and gone(child.pid)


def test_death_is_told_with_its_last_words(child: Child) -> None:
    with pytest.raises(SealError, match=r"ended unexpectedly \(exit status 7\): a warning .* / Segmentation fault"):
        child.call({"do": "die", "code": 7}, LIMIT, "")


def test_a_killed_one_is_told_as_killed(child: Child) -> None:
    child.call({"do": "echo"}, LIMIT, "")
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(SealError, match=r"signal 9\): it said nothing; start it again"):
        child.call({"do": "echo"}, LIMIT, "")
    assert not child.alive


def test_a_program_that_does_not_start_says_why() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no module of that name')"]
    child = Child(command, "the worker", scratch("seal-test-"), ENVIRONMENT, "install it")
    with pytest.raises(SealError, match=r"exit status 1\): no module of that name; install it"):
        child.call({"do": "echo"}, LIMIT, "")


def test_close_ends_it_and_removes_its_folder(child: Child) -> None:
    child.call({"do": "echo"}, LIMIT, "")
    assert child.alive and child.folder.exists()
    child.close()
    assert gone(child.pid, 0.1) and not child.folder.exists()
    child.close()  # again is nothing


PARENT = """
import sys, time
from seal_lib.generation.child import Child, scratch
child = Child([sys.executable, sys.argv[1]], "the worker", scratch("seal-test-"), dict(__import__("os").environ), "")
child.call({"do": "echo"}, 60, "")
print(child.pid, child.folder, flush=True)
child.call({"do": "slow", "steps": 1000}, 60, "")
"""


def test_it_ends_with_a_parent_that_was_killed(script: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as parent:
        pid, folder = parent.stdout.readline().split()
        parent.kill()
    assert gone(int(pid)) and not Path(folder).exists()


def test_what_killed_processes_left_in_memory_is_removed() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    home = scratch("seal-other-").parent
    left, foreign, alive = home / f"seal-swept-{dead.pid}-x", home / "seal-swept-x", scratch("seal-swept-")
    for folder in (left, foreign):
        folder.mkdir()
    new = scratch("seal-swept-")
    kept = [folder.exists() for folder in (left, foreign, alive, new)]
    for folder in (foreign, alive, new, *home.glob(f"seal-other-{os.getpid()}-*")):
        folder.rmdir()
    assert kept == [False, True, True, True]


def test_an_interrupt_does_not_mix_up_answers(child: Child, monkeypatch) -> None:
    from seal_lib.generation import child as module

    child.call({"do": "echo"}, LIMIT, "")
    with monkeypatch.context() as patch:

        def interrupted(*_):
            raise KeyboardInterrupt

        patch.setattr(module, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            child.call({"do": "echo", "text": "left behind"}, LIMIT, "")
    assert not child.alive
