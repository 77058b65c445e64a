"""Every notebook at scale smoke under random faults: afterwards it ends as if nothing had happened.

``SEAL_FAULT_CASES=200 pytest tests/runs/test_fault_harness.py`` looks further than the few cases of the suite; a case
is known by its number. It runs in a fork of this process, where the cells run in place, not in a kernel, so it takes
seconds; ``test_runner.py`` kills and starves real runners and kernels.
"""

import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

import seal_lib.__main__ as command
from seal_lib import paths
from seal_lib.runs import journal, manifest, params, runner

pytestmark = [pytest.mark.slow, pytest.mark.notebook]
CASES = int(os.environ.get("SEAL_FAULT_CASES", 6))
#: what is asked of the system about a file of a run, and where a process may therefore end
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


class Done(NamedTuple):
    """How a run ended: exit status (negative: the signal), what it printed, and how often it asked for a file."""

    status: int
    said: str
    events: int


def in_place(notebook: str, values: dict, folder: Path) -> dict:
    """Stands for papermill: the cells run in this process."""
    space: dict[str, object] = dict(values)
    os.chdir(folder)
    with paths.environment(SEAL_RUN_DIR=str(folder), SEAL_BATCH="1"):
        for cell in params.cells(notebook)[1:]:
            exec(compile(cell["source"], notebook, "exec"), space)
    return {}


def run(notebook: str, home: Path, fault: Callable[[], None] = lambda: None, at: int = 0) -> Done:
    """``python -m seal_lib run`` in a fork; ``fault`` happens before its ``at``-th question about a file of the run."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        status, count = 70, 0

        def hook(event: str, args: tuple) -> None:
            nonlocal count
            if (
                event in EVENTS
                and isinstance(args[0], str | os.PathLike)
                and f"/runs/{notebook}/" in os.fspath(args[0])
            ):
                count += 1
                if count == at:
                    fault()

        try:
            os.close(receive)
            for stream in (1, 2):
                os.dup2(send, stream)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(stream), "w", buffering=1) for stream in (1, 2))
            os.environ.update(SEAL_HOME=str(home), MPLBACKEND="Agg")
            runner._papermill = in_place
            sys.addaudithook(hook)
            if not at:
                fault()
            status = command.main(["run", notebook, "--scale", "smoke"])
        except BaseException:
            traceback.print_exc()
        finally:
            print(f"\nevents {count}", flush=True)
            os._exit(status)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    said, _, events = said.rpartition("\nevents ")
    return Done(os.waitstatus_to_exitcode(status), said or events, int(events) if said else 0)


def folder_of(notebook: str, home: Path) -> Path:
    (found,) = [path.parent for path in (home / "runs" / notebook / "smoke").glob("*/parameters.json")]
    return found


class Undisturbed:
    """Finished runs in one home, each made when it is first wanted."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.events: dict[str, int] = {}

    def of(self, notebook: str) -> Path:
        for needed in sorted(runner.reads(notebook) or ()):
            self.of(needed)
        if notebook not in self.events:
            done = run(notebook, self.home)
            assert done.status == 0, done.said
            self.events[notebook] = done.events
        return folder_of(notebook, self.home)

    def others(self, notebook: str, home: Path) -> None:
        """Give a home the runs that ``notebook`` read."""
        read = manifest.read(self.of(notebook))["runs_read"]
        for name in [one.partition("@")[0] for one, found in read.items() if found]:
            shutil.copytree(self.home / "runs" / name, home / "runs" / name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    import matplotlib.pyplot  # noqa: F401  what every fork needs is imported once
    import scipy.stats  # noqa: F401

    import seal_lib.training.bank  # noqa: F401
    from seal_lib import models

    models.load("seedling-knowledge")
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(autouse=True)
def committed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The checkout's own notebooks and parameters, and a home of the test."""
    for name in ("SEAL_SOURCE", "SEAL_RUN_DIR", "SEAL_BATCH", "SET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))


# ---------------------------------------------------------------------------------------------- faults


def killed(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def torn() -> None:
    """The next lines that are written end in the middle of one, with the process."""
    write = os.write

    def half(descriptor: int, block: bytes) -> int:
        write(descriptor, bytes(block)[: len(block) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    os.write = half


def damage(file: Path, draw: Random) -> str:
    """Flip a few bits of a file, or cut it; what was done."""
    content = bytearray(file.read_bytes())
    if draw.random() < 0.3:
        content = content[: draw.randrange(len(content))]
        how = f"{file.name} cut to {len(content)} bytes"
    else:
        bits = [draw.randrange(8 * len(content)) for _ in range(draw.choice([1, 1, 3]))]
        for bit in bits:
            content[bit // 8] ^= 1 << bit % 8
        how = f"{file.name}, bits {bits}"
    file.write_bytes(content)
    return how


KINDS = ("SIGKILL", "full", "damaged", "SIGTERM", "torn", "SIGHUP")


@pytest.mark.parametrize("case", range(CASES))
def test_a_disturbed_run_ends_as_an_undisturbed_one(case: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    draw, kind = Random(f"case {case}"), KINDS[case % len(KINDS)]
    notebooks = [name for name in params.names() if "seedling" in params.scales(name)]
    notebook = Random(f"notebooks {case // len(notebooks)}").sample(notebooks, len(notebooks))[case % len(notebooks)]
    whole = undisturbed.of(notebook)
    undisturbed.others(notebook, tmp_path)
    at, about = draw.randint(1, undisturbed.events[notebook]), f"case {case}: {notebook}, {kind}"
    if kind == "full":
        sizes = sorted({path.stat().st_size for path in whole.rglob("*") if path.is_file()} - {0})
        most = draw.randrange(draw.choice(sizes))
        about += f", files of {most} bytes at most"
        first = run(notebook, tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
        assert first.status in (0, 1, 2), (about, first.said)
        if first.status:
            assert "ulimit -f" in first.said and "mend it" not in first.said, (about, first.said)
    else:
        about += f" at {at} of {undisturbed.events[notebook]}"
        number = getattr(signal, kind, signal.SIGKILL)
        first = run(notebook, tmp_path, torn if kind == "torn" else killed(number), at)
        ends = (0, 130) if number in (signal.SIGTERM, signal.SIGHUP) else (0, -signal.SIGKILL)
        assert first.status in ends, (about, first.said)
    assert "Traceback" not in first.said, (about, first.said)
    folder = next(iter((tmp_path / "runs" / notebook / "smoke").glob("*")), None)
    if folder and kind in ("full", "SIGTERM", "SIGHUP"):
        assert not half_written(folder), about
    if folder and kind == "damaged":
        files = [
            path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and "lock" not in path.name
        ]
        about += f", {damage(draw.choice(sorted(files)), draw)}" if files else ""
    assert runner.state(notebook, "smoke")["state"] in (
        "failed",
        "interrupted",
        "missing",
        "done",
        "damaged",
        "inputs changed",
    ), about
    again = run(notebook, tmp_path)
    assert again.status == 0 and "Traceback" not in again.said, (about, again.said)
    folder = folder_of(notebook, tmp_path)
    assert not half_written(folder), about
    for name in ("rows.jsonl", "results.csv"):
        assert same(folder / name, whole / name), f"{about}: {name}"
    if kind != "damaged":  # what is damaged is made again; nothing else is
        lines = [line for line in journal.read(folder / "costs.jsonl") if line.get("phase", "end") != "end"]
        made = Counter((line["phase"], line["chunk"]) for line in lines)
        assert max(made.values(), default=1) == 1, (about, made)


def same(one: Path, other: Path) -> bool:
    """Whether two files of a run hold the same, but for the seconds that were measured and what follows of them."""
    return _timeless(one) == _timeless(other)


def _timeless(file: Path) -> list[str]:
    if not file.exists():
        return []
    if file.suffix == ".csv":
        return [line for line in file.read_text().splitlines() if ",seconds_per_edit," not in line]
    return [json.dumps(_untimed(json.loads(line))) for line in file.read_text().splitlines()]


def _untimed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _untimed(v) for key, v in value.items() if "seconds" not in key and key != "crc"}
    return [_untimed(v) for v in value] if isinstance(value, list) else value


def half_written(folder: Path) -> list[str]:
    """Files of a run that are not whole, or were left over."""
    found = [str(path) for path in folder.rglob("*") if path.name.endswith(".tmp") or ".building-" in path.name]
    for path in folder.glob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            found.append(str(path))
    for name in ("rows.jsonl", "costs.jsonl"):
        journal.read(folder / name)
    return found


@pytest.mark.parametrize("case", range(CASES))
def test_a_damaged_finished_run_is_seen_and_made_whole(case: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Of the notebooks that ran already, so that a case costs one run at most."""
    draw = Random(f"finished {case}")
    if not undisturbed.events:
        undisturbed.of("01_one_self_edit")
    notebook = draw.choice([name for name in sorted(undisturbed.events) if runner.reads(name) is not None])
    shutil.copytree(undisturbed.home / "runs", tmp_path / "runs")
    folder, whole = folder_of(notebook, tmp_path), undisturbed.of(notebook)
    names = [name for name in (*manifest.read(folder)["files"], "run.json") if (folder / name).stat().st_size]
    before = {name: runner.state(name, "smoke")["state"] for name in sorted(undisturbed.events)}
    about = f"case {case}: {notebook}, {damage(folder / draw.choice(names), draw)}"
    state = runner.state(notebook, "smoke")
    assert state["state"] == "damaged" and "run the notebook again" in state["why"], about
    assert {
        name: runner.state(name, "smoke")["state"]
        for name in before
        if notebook not in (runner.reads(name) or ()) and name != notebook
    }.items() <= before.items(), about
    again = run(notebook, tmp_path)
    assert again.status == 0 and "Traceback" not in again.said, (about, again.said)
    assert all(same(folder / name, whole / name) for name in ("rows.jsonl", "results.csv")), about
    assert runner.state(notebook, "smoke")["state"] == "done", about


@pytest.mark.parametrize("case", range(CASES))
def test_a_damaged_parameter_file_is_one_sentence_and_hides_nothing(
    case: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    draw = Random(f"parameters {case}")
    for name in ("notebooks", "params"):
        shutil.copytree(paths.ROOT / name, tmp_path / name)
    monkeypatch.setenv("SEAL_SOURCE", str(tmp_path))
    files = sorted(path for path in (*(tmp_path / "params").rglob("*.yaml"), *(tmp_path / "notebooks").glob("*.ipynb")))
    about = damage(draw.choice([file for file in files if file.stat().st_size]), draw)
    assert command.main(["status"]) == 0, about
    assert len(capsys.readouterr().out.splitlines()) > len(params.names()), about
    if command.main(["check"]) == 1:
        said = capsys.readouterr().err
        assert "Traceback" not in said and all(line.rstrip().endswith((".", "?")) for line in said.splitlines()), said
