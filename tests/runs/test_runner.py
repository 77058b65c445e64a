"""The runner: a failed run is never taken for a finished one, whatever papermill thinks of it."""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import Suite

from seal_lib import paths
from seal_lib.__main__ import main
from seal_lib.errors import DiskError, RunError
from seal_lib.runs import manifest, opening, params, runner
from seal_lib.seeds import rng

PARAMETERS = "n: int = 3  # units\nlr: float = 0.1  # rate"
START = "from seal_lib.runs.opening import start\nrun = start({name!r}, globals())\nrun"
WORK = """
import os
from pathlib import Path
from tqdm.auto import tqdm
rows = run.map("work", [f"u{i}" for i in range(n)], lambda part: [{"lr": lr} for _ in tqdm(part)], chunk=1)
here = os.getcwd()
"""
END = """
import sys
run.finish([{"metric": "lr", "value": rows[0]["lr"], "n": n}], {"python": sys.executable, "cwd": here})
"""


def demo(suite: Suite, name: str = "10_demo", work: str = WORK, end: str = END, kernel: str = "python3") -> None:
    suite.notebook(name, PARAMETERS, START.format(name=name), work, end, kernel=kernel)
    suite.params(name, "n: 4\n")


def run(name: str = "10_demo", **more: object) -> int:
    return runner.run(name, "seedling", **more)


def only_folder(name: str = "10_demo") -> Path:
    (folder,) = [path.parent for path in (paths.runs() / name / "seedling").glob("*/parameters.json")]
    return folder


def test_a_run_is_done_once_and_its_record_is_whole(suite: Suite, capfd) -> None:
    demo(suite, kernel="somebody-elses-env")  # the file's kernel name does not count
    before = dict(os.environ)
    assert run() == 0
    folder = only_folder()
    assert dict(os.environ) == before
    assert "work: 4/4" in capfd.readouterr().out  # progress in batch is lines, not a frozen widget
    assert sorted(p.name for p in folder.iterdir() if p.suffix != ".lock" and p.name != "lock") == [
        ".run.json.sha256",
        "code.json",
        "costs.jsonl",
        "metrics.json",
        "notebook.ipynb",
        "parameters.json",
        "results.csv",
        "rows.jsonl",
        "run.json",
    ]
    record = manifest.read(folder)
    assert record["parameters"] == {"n": 4, "lr": 0.1}
    assert len(record["notebook_timings"]["cell_seconds"]) == 5 and record["notebook_timings"]["seconds"] > 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["python"] == sys.executable  # the interpreter that runs the runner, whatever kernels are installed
    assert metrics["cwd"] == str(folder)
    executed = json.loads((folder / "notebook.ipynb").read_text())
    assert any("injected-parameters" in cell["metadata"].get("tags", []) for cell in executed["cells"])
    assert "seedling" in json.dumps(executed["cells"][2]["outputs"])  # the banner

    assert run() == 0
    assert "up to date: 10_demo seedling" in capfd.readouterr().out
    found = runner.state("10_demo", "seedling")
    assert found["state"] == "done" and found["minutes"] >= 0


def test_only_force_or_a_change_runs_again(suite: Suite, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    demo(suite)
    monkeypatch.setattr(runner, "_papermill", fake(suite))
    assert run() == 0
    folder = only_folder()
    record = manifest.read(folder)
    other = {**record["code"], "seal_lib.paths": "older"}
    manifest.keep(folder, {**record, "code": other})
    capfd.readouterr()
    assert run() == 0 and "seal_lib.paths changed since" in capfd.readouterr().out  # told, not run again
    assert runner.state("10_demo", "seedling")["state"] == "code changed"
    assert run(force=True) == 0
    assert manifest.read(folder)["code"] == record["code"]
    assert len(list((folder.parent / "superseded").iterdir())) == 1  # moved, not deleted
    assert run(overrides={"lr": "1e-4"}) == 0
    assert len(manifest.finished("10_demo", "seedling")) == 2


def fake(suite: Suite):
    """Stands for papermill: runs the cells in this process, which is quick."""

    def execute(notebook: str, values: dict, folder: Path) -> dict:
        space: dict[str, object] = dict(values)
        with paths.environment(SEAL_RUN_DIR=str(folder), SEAL_BATCH="1"):
            try:
                for cell in params.cells(notebook)[1:]:
                    exec(compile(cell["source"], notebook, "exec"), space)
            finally:
                space["run"].close()
        return {}

    return execute


FAILURES = {
    "an exception": ("raise ValueError('too short\\nmore')", "ValueError", "too short"),
    "SystemExit(0)": ("raise SystemExit(0)", "NotFinished", "no run.finish"),
    "a killed kernel": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "DeadKernelError", ""),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_run_is_never_done_and_is_tried_again(suite: Suite, kind: str, capfd) -> None:
    code, exception, message = FAILURES[kind]
    flag = suite.home / "broken"
    flag.touch()
    demo(suite, work=WORK + f"if os.path.exists({str(flag)!r}):\n    {code}\n")
    assert run() == 1
    folder = only_folder()
    assert not (folder / "run.json").exists() and not (folder / "run.json.pending").exists()
    assert (folder / "notebook.ipynb").exists()  # which is why a notebook must never be make's target
    failed = json.loads((folder / "failed.json").read_text())
    assert failed["exception"] == exception and message in failed["message"] and failed["advice"]
    assert runner.state("10_demo", "seedling")["state"] == "failed"
    shown = capfd.readouterr().err
    assert "FAILED" in shown and exception in shown
    if exception == "DeadKernelError":
        assert "out of memory" in shown
    flag.unlink()
    assert run() == 0  # not "up to date"
    assert not (folder / "failed.json").exists() and manifest.read(folder)["key"] == folder.name
    assert "4 done before" in capfd.readouterr().out


def test_a_cell_that_fails_after_finish_is_a_failure(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    demo(suite, end=END + "\n1 / 0")
    monkeypatch.setattr(runner, "_papermill", fake(suite))
    assert run() == 1
    assert sorted(p.name for p in only_folder().glob("*run.json*")) == []


def test_a_missing_kernel_leaves_no_record(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client import kernelspec

    def missing(self: object, name: str) -> None:
        raise kernelspec.NoSuchKernel(name)

    demo(suite)
    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", missing)
    assert run() == 1
    failed = json.loads((only_folder() / "failed.json").read_text())
    assert failed["exception"] == "NoSuchKernel" and "make env" in failed["advice"]
    assert not (only_folder() / "run.json").exists()


def test_bad_parameters_start_nothing(suite: Suite, capsys) -> None:
    demo(suite)
    suite.params("10_demo", "lr: fast\n")
    assert main(["run", "10", "--scale", "seedling"]) == 2
    assert "write a number of type float" in capsys.readouterr().err
    assert main(["run", "10", "--set", "lr"]) == 2
    assert main(["check"]) == 1
    assert not list(paths.runs().glob("*"))
    assert runner.state("10_demo", "seedling")["state"] == "bad parameters"


def test_a_folder_in_use_is_left_alone(suite: Suite) -> None:
    demo(suite)
    key, _ = manifest.run_key("10_demo", params.resolve("10_demo", "seedling"))
    folder = manifest.folder_of("10_demo", "seedling", key)
    lock = runner.journal.Lock(folder / "runner.lock")
    assert runner.state("10_demo", "seedling")["state"] == "running"
    for force in (False, True):
        with pytest.raises(RunError, match="in use"):
            run(force=force)
    lock.release()
    assert runner.state("10_demo", "seedling")["state"] == "missing"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_runner_is_resumed_with_the_same_rows(suite: Suite, number: signal.Signals) -> None:
    slow = WORK.replace('{"lr": lr}', '{"lr": lr, "s": __import__("time").sleep(0.5)}')
    demo(suite, work=slow)
    command = [sys.executable, "-m", "seal_lib", "run", "10_demo"]
    heard = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # also where these tests run under nohup
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=heard)
    deadline = time.monotonic() + 240  # a busy machine takes its time
    while not list(paths.runs().glob("*/*/*/rows.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(number)
    assert first.wait() == (-number if number == signal.SIGKILL else 130)
    assert not (only_folder() / "run.json").exists()
    kept = (only_folder() / "rows.jsonl").read_bytes()
    done = subprocess.run(command, capture_output=True, text=True)  # waits until the orphaned kernel is gone
    assert done.returncode == 0, done.stderr
    rows = manifest.rows(only_folder())
    assert rows == [{"phase": "work", "unit": f"u{i}", "lr": 0.1, "s": None} for i in range(4)]
    assert (only_folder() / "rows.jsonl").read_bytes().startswith(kept)
    resumed = re.search(r"(\d+) done before", done.stdout)
    assert resumed and int(resumed[1]) >= kept.count(b"unit") >= 1  # an orphaned kernel ends its unit


@pytest.mark.slow
def test_a_runner_and_its_kernel_without_room_end_in_one_sentence(suite: Suite) -> None:
    """The limit on the size of a file stands for a full disk: it holds for this process, its kernel, and papermill."""
    demo(
        suite,
        work="rows = run.map('work', [f'u{i}' for i in range(200)], lambda part: [{'lr': lr} for _ in part])\n"
        "here = ''",
    )
    command = [sys.executable, "-m", "seal_lib", "run", "10_demo"]
    for kilobytes in (0, 4, 12):
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes,) * 2)  # noqa: B023, E731
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, (kilobytes, done.stderr)
        assert "File too large" in done.stderr and "ulimit -f" in done.stderr and "mend it" not in done.stderr
        left = [path for path in paths.runs().rglob("*") if path.suffix in (".json", ".ipynb")]
        assert all(path.suffix != ".tmp" for path in paths.runs().rglob("*")) and all(map(paths.read_json, left))
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert len(manifest.rows(only_folder())) == 200


def dangling(home: Path) -> Path:
    (home / "runs").symlink_to(home / "nowhere" / "at" / "all")
    return home


def a_file(home: Path) -> Path:
    (home / "file").write_text("")
    return home / "file"


#: a home that cannot be one → what is said
HOMES = {
    "runs is a dangling link": (dangling, "remove the file or the link"),
    "a file": (a_file, "remove the file or the link"),
    "below a file": (lambda home: a_file(home) / "deeper", "remove the file or the link"),
    "missing and not to be made": (lambda home: Path("/proc/nothing"), "cannot be used"),
    "not writable": (lambda home: Path("/sys/kernel"), "give a folder that can be written"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and /sys are Linux's")
@pytest.mark.parametrize("kind", HOMES)
def test_a_home_that_cannot_be_one_is_one_sentence(suite: Suite, kind: str, monkeypatch, capsys) -> None:
    make, words = HOMES[kind]
    demo(suite)
    monkeypatch.setenv("SEAL_HOME", str(make(suite.home)))
    assert main(["run", "10_demo"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and str(paths.runs()) in said
    assert main(["status"]) == 0 and "missing" in capsys.readouterr().out
    assert main(["clean", "--yes"]) == 0
    with pytest.raises(DiskError, match=words):  # the first cell, by hand
        opening.start("10_demo", {"n": 3, "lr": 0.1})


def test_jupyter_shows_an_error_of_ours_as_its_sentence() -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        shell.run_cell("from seal_lib.errors import DataError\nraise DataError('x.json is cut; fetch it again.')")
    assert out.getvalue().strip() == "DataError: x.json is cut; fetch it again."


@pytest.mark.parametrize(
    ("kind", "message", "says"),
    [
        ("DataError", "x.json is cut; fetch it again.", "run again when that is mended"),
        ("OSError", "[Errno 28] No space left on device: 'x'", "make room and run again"),
        ("SafetensorError", "I/O error: No space left on device (os error 28)", "make room and run again"),
        ("PermissionError", "[Errno 13] Permission denied: '/x'", "give a folder that can be written"),
        ("BrokenPipeError", "[Errno 32] Broken pipe", "who read its output is gone"),
        ("OutOfMemoryError", "CUDA out of memory", "choose smaller batches"),
        ("KeyError", "'acuracy'", "mend it and run again"),
    ],
)
def test_the_notebook_is_blamed_only_where_it_may_be(suite: Suite, kind: str, message: str, says: str, capsys) -> None:
    folder = suite.home / "runs" / "x"
    assert runner._failed(folder, "10_demo", kind, message, 3) == 1
    said = capsys.readouterr().err
    assert says in said and ("mend it" in said) == (kind == "KeyError")
    assert json.loads((folder / "failed.json").read_text())["advice"] in said


def test_a_damaged_finished_run_is_told_and_made_whole(suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    demo(suite)
    demo(suite, "11_other")
    monkeypatch.setattr(runner, "_papermill", fake(suite))
    assert run() == 0 and run("11_other") == 0
    folder, draw = only_folder(), rng("damage")
    whole = {name: (folder / name).read_bytes() for name in ("rows.jsonl", "results.csv", "metrics.json", "run.json")}
    for name, content in whole.items():
        for size in (len(content), draw.randrange(len(content))):
            flipped = bytearray(content)
            flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            (folder / name).write_bytes(flipped[:size] if size < len(content) else flipped)
            assert runner.state("10_demo", "seedling")["state"] == "damaged"
            assert runner.state("11_other", "seedling")["state"] == "done"
            capsys.readouterr()
            assert main(["status"]) == 0 and f"{name} is" in capsys.readouterr().out
            assert run() == 0 and runner.state("10_demo", "seedling")["state"] == "done"
            assert all((folder / other).read_bytes() == whole[other] for other in ("rows.jsonl", "results.csv"))
            whole["run.json"] = (folder / "run.json").read_bytes()


#: what nobody wrote into a record
NONSENSE = (b"", b"[]", b"{}", b"\xff\xfe{", b"[" * 200_000, b'{"when": ' + b"1" * 5000 + b"}")


@pytest.mark.parametrize("name", ["failed.json", "inputs.json", "code.json", "run.json", "parameters.json"])
def test_a_record_of_nonsense_hides_nothing_and_blocks_nothing(
    suite: Suite, name: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    demo(suite)
    demo(suite, "11_other")
    monkeypatch.setattr(runner, "_papermill", fake(suite))
    key, _ = manifest.run_key("10_demo", params.resolve("10_demo", "seedling"))
    folder = manifest.folder_of("10_demo", "seedling", key)
    for content in NONSENSE:
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content)
        capsys.readouterr()
        assert main(["status"]) == 0 and "11_other" in capsys.readouterr().out
        assert main(["run", "10_demo"]) == 0 and runner.state("10_demo", "seedling")["state"] == "done", content[:20]
        shutil.rmtree(folder)


def test_two_at_once_wait_for_what_they_read(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    demo(suite, "10_a")
    demo(suite, "11_b")
    suite.notebook("12_reader", PARAMETERS, 'run.input("11_b")')
    suite.notebook("91_all", PARAMETERS, "run.inputs()")
    for name in ("12_reader", "91_all"):
        suite.params(name, "")
    assert runner.reads("10_a") == set() and runner.reads("12_reader") == {"11_b"} and runner.reads("91_all") is None
    both, events, lock = threading.Barrier(2, timeout=20), [], threading.Lock()

    def process(command: list[str], labelled: bool, children: list) -> int:
        name = command[command.index("run") + 1]
        with lock:
            events.append(f"+{name}")
        if name in ("10_a", "11_b"):
            both.wait()  # never passed if they ran one after the other
        with lock:
            events.append(f"-{name}")
        return 0

    monkeypatch.setattr(runner, "_call", process)
    assert main(["all", "--jobs", "2"]) == 0
    assert set(events[:2]) == {"+10_a", "+11_b"}
    assert events.index("-11_b") < events.index("+12_reader")
    assert max(events.index("-10_a"), events.index("-12_reader")) < events.index("+91_all")


def test_a_child_that_is_being_started_when_all_is_stopped_is_stopped_too(suite: Suite, monkeypatch) -> None:
    demo(suite)
    started: list[subprocess.Popen] = []

    def process(command: list[str], labelled: bool, children: list) -> int:
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
        time.sleep(0.6)  # as long as a loaded machine takes to start a process
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        started.append(children[-1])
        return children[-1].wait()

    monkeypatch.setattr(runner, "_call", process)
    begun = time.monotonic()
    assert main(["all"]) == 130 and time.monotonic() - begun < 30
    assert started[0].returncode == -signal.SIGTERM


def test_of_several_at_once_the_longest_starts_first(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("10_a", "11_b", "12_c", "13_new"):
        demo(suite, name)
    runs = [{"notebook": name, "minutes": m} for name, m in (("10_a", 1.0), ("11_b", 9.0), ("12_c", 3.0))]
    paths.write_json(paths.figures() / "seedling" / "manifest.json", {"runs": runs})
    for jobs, order in ((1, ["10_a", "11_b", "12_c", "13_new"]), (2, ["11_b", "12_c", "10_a", "13_new"])):
        started: list[str] = []

        def process(command: list[str], labelled: bool, children: list, started=started) -> int:
            started.append(command[command.index("run") + 1])
            return 0

        monkeypatch.setattr(runner, "_call", process)
        assert main(["all", "--jobs", str(jobs)]) == 0
        assert started[:2] == order[:2] if jobs == 1 else set(started[:2]) == set(order[:2])
        assert sorted(started) == sorted(order)


def test_lines_of_notebooks_run_at_once_are_told_apart_and_exit_codes_kept(capfd) -> None:
    children: list = []
    command = [sys.executable, "-c", "print('one'); print('two'); raise SystemExit(3)", "run", "12_demo"]
    assert runner._call(command, True, children) == 3 and children == []
    assert capfd.readouterr().out == "12 | one\n12 | two\n"


def test_all_in_order_and_going_on(suite: Suite, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("12_b", "10_a", "11_broken"):
        demo(suite, name)
    suite.notebook("13_other", PARAMETERS)
    suite.params("13_other", "", "paper")
    calls: list[str] = []

    def process(command: list[str], labelled: bool, children: list) -> int:
        calls.append(command[command.index("run") + 1])
        return int("broken" in calls[-1])

    monkeypatch.setattr(runner, "_call", process)
    assert main(["all"]) == 1 and calls == ["10_a", "11_broken"]
    calls.clear()
    assert main(["all", "--keep-going"]) == 1 and calls == ["10_a", "11_broken", "12_b"]
    assert "failed: 11_broken" in capfd.readouterr().out
    calls.clear()
    assert main(["all", "--only", "12_b,10"]) == 0 and calls == ["10_a", "12_b"]
    calls.clear()
    suite.params("12_b", "lr: fast\n")
    assert main(["all"]) == 2 and calls == []  # seen before the first hour, not after it
    assert "write a number of type float" in capfd.readouterr().err
    assert main(["all", "--only", "12_c"]) == 2 and "did you mean '12_b'" in capfd.readouterr().err
    assert main(["all", "--scale", "papr"]) == 2 and "the scales are paper, seedling" in capfd.readouterr().err
    assert main(["all", "--only", "10", "--scale", "paper"]) == 2
    assert "10_a has no parameters for scale 'paper'" in capfd.readouterr().err


def test_a_run_whose_input_changed_runs_again(suite: Suite, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    demo(suite)
    demo(suite, "11_next", work='before = run.input("10_demo")\n' + WORK)
    monkeypatch.setattr(runner, "_papermill", fake(suite))
    assert run("11_next") == 1
    assert "make reproduce ONLY=10_demo" in capfd.readouterr().err
    assert run() == 0 and run("11_next") == 0
    assert run("11_next") == 0 and "up to date: 11_next" in capfd.readouterr().out
    assert run(overrides={"lr": "0.5"}) == 0
    assert runner.state("11_next", "seedling")["state"] == "done"  # an experiment is not what the scale runs
    suite.params("10_demo", "lr: 0.5\n")
    assert runner.state("11_next", "seedling")["state"] == "inputs changed"
    assert run("11_next") == 0 and "a newer run of 10_demo@seedling exists" in capfd.readouterr().out
    assert manifest.read(only_folder("11_next"))["runs_read"]["10_demo@seedling"]["run"] != ""


def test_status_and_list_and_clean(suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    demo(suite)
    demo(suite, "11_next")
    monkeypatch.setattr(runner, "_papermill", fake(suite))
    assert run() == 0
    capsys.readouterr()
    assert main(["status"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["notebook", "scale", "state"]
    assert [line.split()[:3] for line in lines] == [["10_demo", "seedling", "done"], ["11_next", "seedling", "missing"]]
    assert main(["notebooks"]) == 0 and capsys.readouterr().out.split() == ["10_demo", "11_next"]
    assert main(["clean"]) == 2 and "--yes" in capsys.readouterr().err  # nobody at the keyboard
    assert paths.runs().exists()
    assert main(["clean", "--yes"]) == 0 and not list(paths.runs().glob("*"))


def test_up_to_date_is_quick_and_needs_no_papermill(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    demo(suite)
    monkeypatch.setattr(runner, "_papermill", fake(suite))
    assert run() == 0
    code = "import sys; from seal_lib.__main__ import main; code = main(['run', '10_demo'])\n"
    code += "sys.exit(code or int(bool({'papermill', 'torch', 'pandas'} & set(sys.modules))))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=suite.home)


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_children_end_when_their_runner_does(suite: Suite, sent: signal.Signals) -> None:
    """Also where the shell has SIGINT ignored, as in ``nohup make reproduce &``."""
    slow = WORK.replace('{"lr": lr}', '{"lr": lr, "s": __import__("time").sleep(0.5)}')
    demo(suite, work=slow)
    ignored = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    command = [sys.executable, "-m", "seal_lib", "all"]
    whole = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=ignored)
    deadline = time.monotonic() + 240
    while not list(paths.runs().glob("*/*/*/rows.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    tree, waiting = [], [whole.pid]
    while waiting:
        pid = waiting.pop()
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found = [int(child) for child in task.read_text().split()]
            tree += found
            waiting += found
    assert len(tree) >= 2  # the notebook's process and its kernel
    whole.send_signal(sent)
    whole.wait(60)
    deadline = time.monotonic() + 60
    while any(map(alive, tree)):
        assert time.monotonic() < deadline, tree
        time.sleep(0.1)


def test_clean_removes_runs_and_nothing_else(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    demo(suite)
    monkeypatch.setattr(runner, "_papermill", fake(suite))
    assert run() == 0
    kept = paths.runs() / "notes" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    (suite.home / "elsewhere").mkdir(exist_ok=True)
    (paths.runs() / "link").symlink_to(suite.home / "elsewhere")
    assert main(["clean", "--yes"]) == 0
    assert kept.read_text() == "mine" and (paths.runs() / "link").is_symlink()
    assert not list(paths.runs().glob("10_demo"))


def test_a_list_of_nothing_is_not_all(suite: Suite, capsys) -> None:
    demo(suite)
    assert main(["all", "--only", ","]) == 2 and "names no notebook" in capsys.readouterr().err


def test_a_copy_that_jupyter_made_is_no_notebook(suite: Suite) -> None:
    demo(suite)
    original = suite.home / "notebooks" / "10_demo.ipynb"
    for name in ("10_demo-Copy1", "Untitled", "10 demo"):
        (original.parent / f"{name}.ipynb").write_text(original.read_text())
    assert params.names() == ["10_demo"] and params.find("10") == "10_demo"


def test_a_terminal_without_utf8_does_not_end_a_run(suite: Suite) -> None:
    demo(suite, "10_demo", work=WORK)
    code = "from seal_lib.__main__ import main; import sys; main(['list']); print('Δ …')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True
    )
    assert done.returncode == 0 and rb"\u0394" in done.stdout
