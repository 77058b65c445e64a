"""Run folders: a killed run ends with the rows of an undisturbed one, and nothing is ever mixed or half written."""

import contextlib
import csv
import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Suite
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_lib import paths
from seal_lib.errors import DiskError, RunError
from seal_lib.runs import journal, lifecycle, manifest, opening, params
from seal_lib.seeds import rng

CELL = "seed: int = 3  # seed\nmodel: str = 'tiny'  # model\njudge_key: str = 'sk-123'  # never kept"
UNITS = [f"u{i:02d}" for i in range(23)]


def square(units: list[str]) -> list[dict]:
    # depends on the whole slice, so a resumed run that sliced otherwise would show
    return [{"value": int(u[1:]) ** 2, "first": units[0], "size": len(units), "loss": math.nan} for u in units]


@pytest.fixture
def batch(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite with one notebook whose run folder the runner has chosen."""
    return suite.in_batch(CELL, monkeypatch)


def start(suite: Suite, **changed: object) -> lifecycle.Run:
    return opening.start("11_demo", {**suite.values, **changed})


# ---------------------------------------------------------------------------------------------- map


def test_rows_in_unit_order_and_as_json_gives_them_back(batch: Suite) -> None:
    run = start(batch)
    rows = run.map("a", [SimpleNamespace(id=u) for u in UNITS], lambda part: square([u.id for u in part]), chunk=5)
    assert [row["value"] for row in rows] == [i**2 for i in range(23)]
    assert [row["size"] for row in rows] == [5] * 20 + [3] * 3
    assert rows[0]["loss"] is None  # NaN is null on disk, so it is None in a fresh run too
    lines = journal.read(batch.folder / "rows.jsonl")
    assert [{"phase": "a", "unit": u, **r} for u, r in zip(UNITS, rows, strict=True)] == lines


def test_finished_chunks_are_read_back_and_the_unfinished_one_is_computed_again(batch: Suite) -> None:
    run = start(batch)
    before = run.map("a", UNITS, square, chunk=5)
    run.close()
    whole = (batch.folder / "rows.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for keep in (0, 3, 5, 12, 20, 22, 23):
        for tail in (b"", b'{"phase": "a", "un', b"\x00\x00\x00"):
            (batch.folder / "rows.jsonl").write_bytes(b"".join(lines[:keep]) + tail)
            seen: list[str] = []
            run = start(batch)
            again = run.map("a", UNITS, lambda part, seen=seen: (seen.extend(part), square(part))[1], chunk=5)
            run.close()
            assert again == before
            assert (batch.folder / "rows.jsonl").read_bytes() == whole
            finished = 23 if keep == 23 else keep // 5 * 5
            assert seen == UNITS[finished:], keep


KILLED = """
    import os, signal, sys
    from seal_lib.runs import journal, lifecycle, opening
    where, at = sys.argv[1], int(sys.argv[2])
    units = [f"u{i:02d}" for i in range(23)]
    calls = 0
    write = os.write

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def torn(descriptor, block):
        if b'"phase": "b"' in bytes(block) and b'"unit"' in bytes(block):
            global calls
            calls += 1
            if where == "torn" and calls == at:
                write(descriptor, bytes(block)[: len(block) * 2 // 3])
                die()
        done = write(descriptor, block)
        if where == "between" and calls == at:
            die()
        return done

    os.write = torn
    count = 0

    def fn(part):
        global count
        rows = []
        for unit in part:
            count += 1
            if where == "inside" and count == at:
                die()
            rows.append({"value": int(unit[1:]) / 7, "slice": part})
        run.count(generated=len(part))
        return rows

    def build(folder):
        (folder / "a.txt").write_text("half")
        if where == "artifact":
            die()
        (folder / "b.txt").write_text("whole")

    run = opening.start("11_demo", {"seed": 3, "model": "tiny", "judge_key": "sk-123"})
    run.map("a", units[:4], lambda part: [{"x": 1} for _ in part], chunk=3)
    run.artifact("policy/round_1", build)
    rows = run.map("b", units, fn, chunk=5)
    run.finish([{"metric": "mean", "value": sum(r["value"] for r in rows), "n": 23}], {"n": len(rows)})
"""


def test_killed_anywhere_and_resumed_gives_the_bytes_of_an_undisturbed_run(batch: Suite, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))

    def go(where: str, at: int) -> int:
        done = subprocess.run([sys.executable, str(script), where, str(at)], capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    names = ("rows.jsonl", "results.csv", "metrics.json")
    assert go("never", 0) == 0
    undisturbed = {name: (batch.folder / name).read_bytes() for name in names}
    for where, at in [("inside", 1), ("inside", 13), ("torn", 1), ("torn", 5), ("between", 2), ("artifact", 1)]:
        for path in batch.folder.glob("*"):
            if path.is_file() and path.name != "parameters.json":
                path.unlink()
        artifacts = batch.folder / "artifacts"
        if artifacts.exists():
            os.replace(artifacts, tmp_path / f"gone-{where}-{at}")
        assert go(where, at) == -signal.SIGKILL
        assert not (batch.folder / "run.json.pending").exists()
        assert go("never", 0) == 0
        assert {name: (batch.folder / name).read_bytes() for name in names} == undisturbed, (where, at)
        assert sorted(p.name for p in (artifacts / "policy/round_1").iterdir()) == ["a.txt", "b.txt"]
        assert sorted(p.name for p in (artifacts / "policy").iterdir()) == [".round_1.sha256", "round_1"]
        record = json.loads((batch.folder / "run.json.pending").read_text())
        assert len(record["sessions"]) == 2 and record["mixed_environment"] is False
        # counters survive the kill; a chunk whose cost line was lost with the process is missing, never counted twice
        assert 18 <= record["tokens"]["generated"] <= 23


def test_a_failing_fn_keeps_the_chunks_before_it(batch: Suite) -> None:
    run = start(batch)

    def fail(part: list[str]) -> list[dict]:
        if "u07" in part:
            raise ValueError("no")
        return square(part)

    with pytest.raises(ValueError, match="no"):
        run.map("a", UNITS, fail, chunk=5)
    assert len((batch.folder / "rows.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("units", "fn", "says"),
    [
        (["a", "b", "a"], square, "twice"),
        (UNITS, lambda part: [{}], "return one dict per unit"),
        (UNITS, lambda part: None, "gave NoneType for 5 units"),
        (UNITS, lambda part: [{"phase": "x"} for _ in part], "rename that column"),
        (UNITS, lambda part: [{"x": object()} for _ in part], "JSON cannot keep"),
    ],
)
def test_what_map_refuses(batch: Suite, units: list, fn: object, says: str) -> None:
    with pytest.raises(RunError, match=says):
        start(batch).map("a", units, fn, chunk=5)
    assert not (batch.folder / "rows.jsonl").exists()


def test_other_units_or_the_same_phase_twice_are_refused(batch: Suite) -> None:
    run = start(batch)
    run.map("a", UNITS[:5], square)
    with pytest.raises(RunError, match="mapped twice"):
        run.map("a", UNITS[:5], square)
    run.close()
    with pytest.raises(RunError, match="other units; run with FORCE=1"):
        start(batch).map("a", UNITS[5:], square)


def test_what_was_changed_on_disk_is_made_again(batch: Suite, capsys) -> None:
    run = start(batch)
    before = run.map("a", UNITS, square, chunk=5)
    run.close()
    path = batch.folder / "rows.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"value": 49', b'"value": 48'))  # row 7, by hand
    seen: list[str] = []
    run = start(batch)
    assert "rows.jsonl is damaged at byte" in capsys.readouterr().out and "damaged" in repr(run)
    assert run.map("a", UNITS, lambda part: (seen.extend(part), square(part))[1], chunk=5) == before
    assert seen == UNITS[5:] and path.read_bytes() == whole
    assert (batch.folder / "rows.jsonl.damaged-1").read_bytes().startswith(b'{"phase": "a", "unit": "u07"')


def test_no_flipped_bit_is_read_as_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    journal.Journal(path).append([{"phase": "a", "unit": f"u{i}", "value": i / 7, "text": "é…"} for i in range(4)])
    whole, lines, draw = path.read_bytes(), journal.read(path), rng("bits")
    for _ in range(300):
        at, flipped = draw.randrange(8 * len(whole)), bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(RunError, match="is damaged"):
            journal.read(path)
        kept = journal.Journal(path).lines
        assert kept == lines[: len(kept)] and len(kept) < 4
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="is damaged"):
        journal.read(path)


#: what happens to a run between two starts: units of ``a`` and of ``b`` that are done, then a fault and where (0 to 1)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 23),
        st.integers(0, 23),
        st.sampled_from(["", "cut", "flip", "junk"]),
        st.floats(0, 1, exclude_max=True),
    ),
    max_size=6,
)


@settings(max_examples=25)
@given(STEPS)
def test_whatever_happens_to_a_run_its_rows_are_those_of_an_undisturbed_one(batch: Suite, steps: list) -> None:
    class Stopped(Exception):
        pass

    def until(count: int):
        def fn(part: list[str]) -> list[dict]:
            if int(part[-1][1:]) >= count:
                raise Stopped
            return square(part)

        return fn

    path = batch.folder / "rows.jsonl"
    for file in batch.folder.glob("*.jsonl*"):
        file.unlink()
    for first, second, fault, where in [*steps, (99, 99, "", 0.0)]:
        with pytest.raises(Stopped) if min(first, second) < 23 else contextlib.nullcontext():
            run = start(batch)
            try:
                run.map("a", UNITS, until(first), chunk=5)
                run.map("b", UNITS, until(second), chunk=4)
            finally:
                run.close()
        if fault and path.exists() and path.stat().st_size:
            content = bytearray(path.read_bytes())
            at = int(where * len(content))
            content[at] ^= 1 << at % 8 if fault == "flip" else 0
            path.write_bytes(content[:at] if fault == "cut" else content + b"{" * (fault == "junk"))
    rows = [
        {"phase": phase, "unit": u, **r}
        for phase, size in (("a", 5), ("b", 4))
        for n in range(0, 23, size)
        for u, r in zip(UNITS[n:], square(UNITS[n : n + size]), strict=False)
    ]
    assert journal.read(path) == [journal.json_form(row) for row in rows]


def test_a_damaged_artifact_is_set_aside_and_made_again(batch: Suite, capsys) -> None:
    run = start(batch)
    path = run.artifact("policy/round_1", lambda folder: (folder / "w").write_text("whole"))
    run.close()
    (path / "w").write_text("who")
    again = start(batch).artifact("policy/round_1", lambda folder: (folder / "w").write_text("whole"))
    assert again == path and (path / "w").read_text() == "whole" and "made again" in capsys.readouterr().out
    assert [p.name.startswith(".damaged-round_1") for p in path.parent.iterdir()].count(True) == 1


def test_a_changed_file_of_a_finished_run_is_refused(batch: Suite) -> None:
    run = start(batch)
    run.map("a", UNITS[:5], square)
    run.finish([{"metric": "mean", "value": 0.5}], {})
    os.replace(batch.folder / "run.json.pending", batch.folder / "run.json")
    assert manifest.written(batch.folder, "results.csv") == batch.folder / "results.csv"
    for name in ("results.csv", "metrics.json"):
        text = (batch.folder / name).read_text()
        for other in (text[:-3], text.replace("0.5", "0.8"), None):
            (batch.folder / name).unlink() if other is None else (batch.folder / name).write_text(other)
            if other != text:
                with pytest.raises(RunError, match="is not what the run wrote"):
                    manifest.written(batch.folder, name)


def test_a_full_disk_keeps_the_chunks_before_it(batch: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(batch)
    real, room = os.write, [1300]

    def write(descriptor: int, block: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = bytes(block)[: room[0]]
        room[0] -= len(part)
        return real(descriptor, part)

    monkeypatch.setattr(journal.os, "write", write)
    with pytest.raises(DiskError, match="No space left on device.*make room and run again"):
        run.map("a", UNITS, square, chunk=5)
    monkeypatch.undo()
    kept = journal.read(batch.folder / "rows.jsonl")
    assert len(kept) in (5, 10) and kept[-1]["unit"] == UNITS[len(kept) - 1]


# ---------------------------------------------------------------------------------------------- folders


def test_two_processes_never_share_a_folder(batch: Suite) -> None:
    code = "import time; from seal_lib.runs.journal import Lock; from pathlib import Path; import sys\n"
    code += "lock = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(batch.folder / "lock")], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=f"in use by process {other.pid}"):
            start(batch)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    start(batch).close()  # the killed process gave the folder back


def test_a_run_by_hand_goes_on_where_it_was_and_is_that_of_the_runner(batch, monkeypatch, capsys) -> None:
    monkeypatch.delenv("SEAL_RUN_DIR")
    calls: list[int] = []

    def counted(part: list) -> list[dict]:
        calls.append(len(part))
        return square(part)

    one = start(batch)
    first = one.map("a", UNITS[:5], counted, chunk=5)
    two = start(batch)  # Run All again, or after the kernel was restarted
    assert two.folder == one.folder and two.resumed == 5 and "resuming" in two.facts()
    assert two.map("a", UNITS[:5], counted, chunk=5) == first and calls == [5]
    # a cell run again after an edit counts, its earlier rows do not
    assert two.map("a", UNITS[:5], lambda part: [{"value": 0} for _ in part]) == [{"value": 0}] * 5
    assert len((two.folder / "rows.jsonl").read_text().splitlines()) == 5
    two.finish([], {})
    assert manifest.finished("11_demo", "seedling") == [two.folder]
    journal.Lock(two.folder / "lock").release()  # a finished run is free although the kernel lives
    three = start(batch)
    three.map("a", UNITS[:5], square)
    three.map("a", UNITS[:5], square)
    assert manifest.finished("11_demo", "seedling") == []  # not done while a cell has been run anew
    three.close()


def test_a_finished_run_by_hand_whose_code_changed_is_set_aside(batch, monkeypatch, capsys) -> None:
    monkeypatch.delenv("SEAL_RUN_DIR")
    run = start(batch)
    run.map("a", UNITS[:5], square)
    run.finish([], {})
    monkeypatch.setattr(manifest, "code_changed", lambda record: ["seal_lib.records"])
    again = start(batch)
    assert again.resumed == 0 and "moved to" in capsys.readouterr().out
    assert len(list((again.folder.parent / "superseded").glob("*/run.json"))) == 1
    again.close()


def test_a_scale_can_be_had_by_hand(batch, monkeypatch) -> None:
    monkeypatch.delenv("SEAL_RUN_DIR")
    wanted = {**params.resolve("11_demo", "seedling"), "seed": 7}
    monkeypatch.setattr(opening.params, "resolve", lambda notebook, scale: wanted)
    namespace = dict(wanted, seed=1)
    run = opening.start("11_demo", namespace, scale="big")
    assert namespace["seed"] == 7 and run.folder == paths.runs() / "11_demo" / "big" / run.key
    run.close()


def test_rows_of_other_library_code_are_set_aside(batch: Suite, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    run = start(batch)
    run.map("a", UNITS[:5], square)
    run.artifact("policy", lambda folder: (folder / "w").write_text("1"))
    run.close()
    monkeypatch.setattr(manifest, "code_of", lambda notebook: {"seal_lib.records": "other"})
    capsys.readouterr()
    run = start(batch)
    assert "seal_lib.records" in capsys.readouterr().out and run.resumed == 0
    assert len((batch.folder / "superseded-1/rows.jsonl").read_text().splitlines()) == 5
    assert (batch.folder / "superseded-1/artifacts/policy/w").exists() and not (batch.folder / "artifacts").exists()
    assert run.map("a", UNITS[:5], lambda part: [{"value": 1} for _ in part]) == [{"value": 1}] * 5


def test_a_changed_parameter_is_noticed(batch: Suite) -> None:
    with pytest.raises(RunError, match="seed was changed after the parameters cell"):
        start(batch, seed=4)
    with pytest.raises(RunError, match="seed=-1 is out of range"):
        start(batch, seed=-1)
    with pytest.raises(RunError, match="run the parameters cell first"):
        opening.start("11_demo", {})
    batch.notebook("12_other", "n: int = 1  # n")
    with pytest.raises(RunError, match="11_demo"):
        opening.start("12_other", {"n": 1})


# ---------------------------------------------------------------------------------------------- artifacts and inputs


def test_an_artifact_is_built_once_and_whole(batch: Suite) -> None:
    run = start(batch)
    with pytest.raises(ZeroDivisionError):
        run.artifact("policy/round_1", lambda folder: [(folder / "w").write_text("half"), 1 / 0])
    assert list((batch.folder / "artifacts/policy").iterdir()) == []
    path = run.artifact("policy/round_1", lambda folder: (folder / "w").write_text("1"))
    assert run.artifact("policy/round_1", lambda folder: 1 / 0) == path and (path / "w").read_text() == "1"
    with pytest.raises(RunError, match="inside or around"):
        run.artifact("policy", lambda folder: None)
    with pytest.raises(RunError, match="is empty"):
        run.artifact("nothing", lambda folder: None)
    for name in ("../x", "/x", "a//b", ""):
        with pytest.raises(RunError, match="not a relative path"):
            run.artifact(name, lambda folder: None)


def finished(suite: Suite, notebook: str, key: str, value: float, end: str) -> Path:
    folder = paths.runs() / notebook / "seedling" / key
    paths.write_json(folder / "metrics.json", {"value": value})
    paths.write_json(folder / "run.json", {"end": end, "code": {}, "seconds": {}})
    return folder


def test_the_newest_finished_run_is_the_input_and_is_recorded(batch: Suite) -> None:
    batch.notebook("10_before", "n: int = 1  # n")
    run = start(batch)
    with pytest.raises(RunError, match="make reproduce ONLY=10_before SCALE=seedling"):
        run.input("10_before")
    finished(batch, "10_before", "bbb", 1.0, "2026-01-02T00:00:00Z")
    finished(batch, "10_before", "aaa", 1.0, "2026-01-01T00:00:00Z")
    assert run.input("10_before").name == "bbb"
    assert manifest.inputs_changed(batch.folder) == []
    run.map("a", UNITS[:5], square)
    run.close()
    finished(batch, "10_before", "ccc", 2.0, "2026-01-03T00:00:00Z")
    assert manifest.inputs_changed(batch.folder) == ["10_before@seedling"]
    assert start(batch).resumed == 0  # rows made from the earlier result are not mixed with those of the later one


def test_a_parameter_named_reads_is_recorded_from_the_first_cell_on(batch: Suite) -> None:
    batch.notebook("10_before", "n: int = 1  # n")
    batch.notebook("11_demo", CELL + "\nreads: list[str] = ['10_before', '12_absent']  # runs that are read")
    batch.notebook("12_absent", "n: int = 1  # n")
    first = finished(batch, "10_before", "aaa", 1.0, "2026-01-01T00:00:00Z")
    identity = paths.read_json(batch.folder / "parameters.json")
    identity["parameters"]["reads"] = ["10_before", "12_absent"]
    paths.write_json(batch.folder / "parameters.json", identity)
    run = start(batch, reads=["10_before", "12_absent"])
    assert manifest.inputs_changed(run.folder) == []
    finished(batch, "12_absent", "bbb", 1.0, "2026-01-02T00:00:00Z")
    assert manifest.inputs_changed(run.folder) == ["12_absent@seedling"]
    paths.write_json(first / "metrics.json", {"value": 2.0})
    assert len(manifest.inputs_changed(run.folder)) == 2


# ---------------------------------------------------------------------------------------------- the record


def test_results_and_record(batch: Suite, capsys) -> None:
    run = start(batch)
    run.map("a", UNITS, square, chunk=5)
    run.count(scored=7)
    run.describe(data="none")
    run.finish([{"arm": "seal", "metric": "accuracy", "value": 0.5, "low": math.nan, "n": 23}], {"x": math.nan})
    with open(batch.folder / "results.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == lifecycle.COLUMNS
    assert (row["experiment"], row["value"], row["low"], row["run"]) == ("11_demo", "0.5", "", run.key)
    assert json.loads((batch.folder / "metrics.json").read_text()) == {"x": None}
    assert not (batch.folder / "run.json").exists()  # that is the runner's to give
    text = (batch.folder / "run.json.pending").read_text()
    record = json.loads(text)
    assert record["parameters"] == {"seed": 3, "model": "tiny", "judge_key": "(redacted)"}
    assert "sk-123" not in text + (batch.folder / "parameters.json").read_text()
    assert record["seeds"] == {"seed": 3} and record["tokens"]["scored"] == 7
    assert set(record["seconds"]) == {"a", "end"} and record["peak_memory"]["process_gb"] > 0.005
    assert record["determinism"].startswith(("CPU", "GPU")) and record["machine"]["cores"] >= 1
    assert record["code"] == manifest.code_of("11_demo") and record["versions"]["numpy"]
    assert not {value for name, value in os.environ.items() if "TOKEN" in name and len(value) > 8} & set(
        text.split('"')
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [({"metric": "a"}, "no 'value'"), ({"metric": "a", "value": 1, "lo": 1}, "did you mean 'low'")],
)
def test_results_refuse_a_wrong_row(batch: Suite, row: dict, says: str) -> None:
    with pytest.raises(RunError, match=says):
        start(batch).finish([row], {})
    assert not (batch.folder / "run.json.pending").exists()


def test_the_key_follows_code_parameters_and_inputs_and_nothing_else(suite: Suite, tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    (data / "x").write_text("1")
    cell = f"data_path: str = {str(data)!r}  # folder"
    suite.notebook("11_demo", cell, "print(1)")

    def key(values: dict | None = None) -> str:
        return manifest.run_key("11_demo", values or {"data_path": str(data)})[0]

    first = key()
    suite.notebook("11_demo", cell + " explained better", "print(1)")
    assert key() == first  # a better comment is no other run
    suite.notebook("11_demo", cell, "print(2)")
    assert key() != first
    suite.notebook("11_demo", cell, "print(1)")
    assert key({"data_path": "elsewhere"}) != first
    (data / "x").write_text("2")
    assert key() != first
    (data / "x").write_text("1")
    assert key() == first


def test_the_banner_says_where_and_what(batch: Suite) -> None:
    run = start(batch)
    run.map("a", UNITS[:5], square)
    run.close()
    run = start(batch)
    assert "5 rows done" in repr(run) and "11_demo" in run._repr_html_() and run.key in repr(run)


def test_importing_the_frame_is_light() -> None:
    code = "import sys; from seal_lib.runs import lifecycle, opening, progress, runner\n"
    code += "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'papermill', 'vllm'} & set(sys.modules)\n"
    code += "sys.exit(str(heavy) if heavy else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cell_has_one_bar_of_plain_html_for_all_its_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A widget would be "model not found" in the saved notebook."""
    import IPython.display

    from seal_lib.runs import progress

    shown, updated = [], []

    class Handle:
        def update(self, picture) -> None:
            updated.append(picture.data)

    def display(picture, display_id: bool) -> Handle:
        shown.append(picture.data)
        return Handle()

    monkeypatch.setattr(progress, "context", lambda: "jupyter")
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(progress._CellBar, "_bars", {})
    for phase in ("first", "second"):
        bar = progress.Progress(phase, total=4, done=1)
        bar.update(3)
        bar.close()
    assert len(shown) == 1 and "first: 1/4" in shown[0] and "width:25%" in shown[0]
    assert "first: 4/4" in updated[0] and "width:100%" in updated[0]
    assert "second: 4/4" in updated[-1] and "1 steps before" in updated[-1]


def test_a_kernel_of_another_environment_gets_one_sentence(batch: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torch" else found(name, *more)
    )
    with pytest.raises(RunError, match="this kernel, .*, has no torch: start JupyterLab by `make lab`"):
        start(batch)


def test_the_banner_tells_the_published_minutes(batch: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(batch)
    assert "took" not in run.facts()
    record = {"runs": [{"notebook": "11_demo", "minutes": 4.55}, {"notebook": "12_demo", "minutes": 9.0}]}
    folder = batch.home / "figures" / "seedling"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(record))
    assert run.facts()["took"] == "4.5 min when the published results were made"
    with monkeypatch.context() as other:
        other.setenv("SET", "full")
        assert "took" not in run.facts()  # the core set's minutes say nothing about another set
    for damaged in ("<<<<<<< HEAD", "[]", '{"runs": [{}]}', '{"runs": [{"notebook": "11_demo", "minutes": null}]}'):
        (folder / "manifest.json").write_text(damaged)
        assert "took" not in run.facts()  # and the run continues


def test_a_process_that_only_imported_the_kernel_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `seal ask --json` would print a bar's HTML where papermill was imported."""
    from ipykernel.kernelapp import IPKernelApp

    from seal_lib.runs import progress

    monkeypatch.delenv("SEAL_BATCH", raising=False)
    assert progress.context() == "terminal"
    monkeypatch.setattr(IPKernelApp, "initialized", classmethod(lambda cls: True))
    assert progress.context() == "jupyter"
    monkeypatch.setenv("SEAL_BATCH", "1")
    assert progress.context() == "batch"
