"""The GPU benchmark's code runs on a CPU with a tiny shape; its table is arithmetic that can be checked by hand."""

import dataclasses
import json
import math

import matplotlib
import pytest

from seal_lib.bench import gpu, gpu_table, inner_loop
from seal_lib.bench.gpu_table import Measurement
from seal_lib.errors import SealError
from seal_lib.models import budget
from seal_lib.plan import costs, lengths

matplotlib.use("Agg")
RECORD = {
    "device": "a card",
    "device_key": "h200",
    "dtype": "bfloat16",
    "date": "2026-11-21T00:00:00Z",
    "sizes": {
        "rank": 32,
        "epochs": 10,
        "epochs_of_an_edit": 10,
        "questions": 5,
        "answer_tokens": 64,
        "padding": 2048,
        "documents_per_edit": 8.6,
        "tokens_per_document": 47.0,
    },
    "shapes": {"Qwen/Qwen2.5-7B": dataclasses.asdict(budget.SHAPES["Qwen/Qwen2.5-7B"])},
}


def row(variant: str, k: int, ms: float, turn: int = 0, **more) -> Measurement:
    """A row of 1 000 adapter-steps and 100 answers of 20 ms."""
    own = {"outcome": "ok", "train_seconds": ms, "steps": 1000, "tokens": 47_000, "answer_seconds": 2.0, "answers": 100}
    return Measurement(
        **({"model": "Qwen/Qwen2.5-7B", "targets": "qv", "variant": variant, "K": k, "turn": turn} | own | more)
    )


ROWS = [
    row("bank", 16, 4.0),
    row("authors", 1, 140.0),
    row("sequential", 1, 30.0),
    row("bank", 1, 28.0),
    row("bank", 64, math.nan, outcome="out of memory", steps=0, answers=0, reason="tried, in vain"),
    row("bank", 16, 5.0, 1),
    row("bank", 16, 3.9, 2),
]


def test_a_tiny_run_measures_every_way_and_writes_everything(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    assert gpu.main(["--tiny"]) == 0
    folder = tmp_path / "figures" / "gpu"
    written = {p.name.removeprefix("bench_gpu_tiny") for p in folder.iterdir()}
    assert written == {"_rows.csv", ".csv", ".json", ".png", ".pdf"}
    rows = gpu_table.read(folder / "bench_gpu_tiny_rows.csv")
    assert [(r.targets, r.variant, r.K) for r in rows] == gpu.variants(gpu_table.TINY_GPU)
    assert all(r.outcome == "ok" and r.train_seconds > 0 and r.answers == 5 * r.K for r in rows)
    ways = {(r.targets, r.variant, r.K): r for r in rows}
    jobs = gpu.jobs_of(gpu_table.TINY_GPU, 8, 512)
    assert ways["qv", "bank", 2].steps == sum(len(job.plan()) for job in jobs)  # the queue to its end
    assert ways["qv", "bank", 2].tokens == sum(len(e.ids) for job in jobs for e in job.examples)
    assert ways["qv", "authors", 1].steps == gpu_table.TINY_GPU.padded_steps
    record = json.loads((folder / "bench_gpu_tiny.json").read_text())
    assert record["outcomes"] == {"ok": len(rows)} and record["device_key"] == "cpu"
    assert {"device", "gpus", "cuda", "versions", "date", "git", "lengths", "efficiency"} <= set(record)
    assert {"torch", "transformers"} <= set(record["versions"]) and 0 < record["efficiency"]["train"] < 1
    assert "goal: at most 0.5 s per Qwen2.5-7B self-edit" in capsys.readouterr().out
    for file in folder.glob("bench_gpu_tiny.*"):
        if file.suffix != ".json":
            file.unlink()
    assert gpu.main(["--tiny", "--draw"]) == 0  # from the rows alone
    assert (folder / "bench_gpu_tiny.png").exists()


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    assert gpu.main([]) == 2 and "No CUDA GPU is found" in capsys.readouterr().err
    assert gpu.main(["--draw"]) == 2 and "run make bench-gpu first" in capsys.readouterr().err


def test_the_table_is_what_the_rows_say() -> None:
    table = gpu_table.summary(ROWS, RECORD).set_index(["variant", "K"])
    bank = table.loc["bank", 16]
    assert (bank["ms_per_step"], bank["measured"], bank["outcome"]) == (4.0, 3, "ok")  # the median of 4, 5 and 3.9
    assert bank["train_s"] == pytest.approx(0.004 * 86) and bank["answer_s"] == pytest.approx(5 * 0.02)
    assert bank["seconds_per_edit"] == pytest.approx(0.344 + 0.1)
    assert (bank["low"], bank["high"]) == (pytest.approx(0.0039 * 86 + 0.1), pytest.approx(0.005 * 86 + 0.1))
    assert bank["tokens_per_s"] == pytest.approx(47_000 / 4)
    shape, device = budget.SHAPES["Qwen/Qwen2.5-7B"], costs.device("h200")
    floor = 1e3 * costs.Costs(shape, device).train_step([47.0] * 16, 16).floor / 16
    assert bank["floor_ms"] == pytest.approx(floor) and bank["floor_share"] == pytest.approx(floor / 4)
    assert bank["flops_share"] == bank["floor_share"] > bank["bytes_share"]
    assert table.loc["authors", 1]["floor_ms"] == pytest.approx(76.8, rel=2e-3)
    lost = table.loc["bank", 64]
    assert (lost["outcome"], lost["measured"]) == ("out of memory", 0) and math.isnan(lost["seconds_per_edit"])
    assert gpu_table.best(table.reset_index())["K"] == 16
    assert gpu_table.best(table.reset_index(), targets="all-linear") is None


def test_a_killed_run_keeps_its_rows(tmp_path) -> None:
    file = tmp_path / "bench_gpu_rows.csv"
    gpu_table.begin(file, {"device_key": "h200"}, gpu_table.GpuPlan(), {})
    assert gpu_table.read(file) == []
    for one in ROWS[:4]:
        gpu_table.append(file, one)
    with open(file, "a", encoding="utf-8") as out:
        out.write("Qwen/Qwen2.5-7B,qv,ba")  # the kill came in the middle of a line
    assert repr(gpu_table.read(file)) == repr(ROWS[:4])  # NaN is not equal to itself
    sizes = json.loads((tmp_path / "bench_gpu.json").read_text())["sizes"]
    assert sizes["documents_per_edit"] == pytest.approx(8.57, abs=0.01)  # the released self-edits'


def test_memory_that_runs_out_is_an_outcome_and_the_rest_goes_on(monkeypatch) -> None:
    import torch

    def full(model, plan, targets, variant, k, *_):
        if (variant, k) == ("bank", 2) and targets == "qv":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return 1.0, 10, 100, 1, 0.0

    monkeypatch.setattr(gpu, "timed_training", full)
    plan = dataclasses.replace(gpu_table.TINY_GPU, repetitions=2)
    monkeypatch.setattr(gpu, "_warm_up", lambda model, plan: None)
    rows = list(gpu.measurements(plan, "cpu", lambda text: None))
    lost = [r for r in rows if r.outcome != "ok"]
    assert [(r.targets, r.variant, r.K, r.turn, r.outcome) for r in lost] == [("qv", "bank", 2, 0, "out of memory")]
    assert len(rows) == 2 * len(gpu.variants(plan)) - 1  # not tried a second time
    assert [r.turn for r in rows] == sorted(r.turn for r in rows)  # repetitions are interleaved


def test_time_that_is_up_stops_the_bank_and_the_run(monkeypatch) -> None:
    model = inner_loop.random_model(gpu_table.BENCH_SHAPES["tiny"], "cpu")
    plan = dataclasses.replace(gpu_table.TINY_GPU, epochs=50)
    whole = sum(len(job.plan()) for job in gpu.jobs_of(plan, 8, 512))
    seconds, steps, tokens, edits, _ = gpu.timed_training(model, plan, "qv", "bank", 2, 0, limit=0.0)
    assert 0 < steps < whole and tokens > 0 and edits == 2 and seconds > 0
    monkeypatch.setattr(gpu, "_warm_up", lambda model, plan: None)
    assert list(gpu.measurements(dataclasses.replace(plan, minutes=0.0), "cpu", lambda text: None)) == []


def test_the_start_of_a_stopped_bank_counts_by_the_share_of_its_steps(monkeypatch) -> None:
    model = inner_loop.random_model(gpu_table.BENCH_SHAPES["tiny"], "cpu")
    plan = dataclasses.replace(gpu_table.TINY_GPU, epochs=50)
    ticks = iter((0.0, 100.0, 110.0, 110.0))  # start, end of the first step, of the second, end
    monkeypatch.setattr(gpu, "device_clock", lambda model: lambda: next(ticks))
    seconds, steps, *_ = gpu.timed_training(model, plan, "qv", "bank", 2, 0, limit=0.0)
    assert steps == 4  # two adapters, two steps: 5 s an adapter-step, so 90 s were the start of 300 steps
    assert seconds == pytest.approx(4 * 5 + 90 * 4 / (2 * 50 * plan.documents))


def test_the_authors_way_carries_its_start_as_a_whole_self_edit_does(monkeypatch) -> None:
    model, plan = inner_loop.random_model(gpu_table.BENCH_SHAPES["tiny"], "cpu"), gpu_table.TINY_GPU
    monkeypatch.setattr(inner_loop, "with_trainer", lambda *_: inner_loop.Timing(9.0, 2.0, 2))
    whole = len(gpu.jobs_of(plan, 1, 512)[0].plan())
    seconds, steps, *_ = gpu.timed_training(model, plan, "qv", "authors", 1, 0, limit=0.0)
    assert (seconds, steps) == (pytest.approx(2 * 2.0 + 9.0 * 2 / whole), 2)


def test_the_models_have_the_true_shapes(monkeypatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for name, billions in (("Qwen/Qwen2.5-7B", 7.616), ("meta-llama/Llama-3.2-1B-Instruct", 1.236)):
        made: dict = {}
        with monkeypatch.context() as patch:
            keep = lambda c, into=made, **_: into.update(c=c) or torch.nn.Linear(1, 1)  # noqa: E731
            patch.setattr(AutoModelForCausalLM, "from_config", keep)
            inner_loop.random_model(gpu_table.BENCH_SHAPES[name], "cpu")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(made["c"])
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)
        assert budget.Shape.of(made["c"], name) == budget.shape_of(name)


def test_documents_have_the_recorded_lengths() -> None:
    edits = gpu_table.documents(gpu_table.GpuPlan())
    assert edits == [list(d) for d in lengths.profiles()["squad"].documents]
    jobs = gpu.jobs_of(gpu_table.GpuPlan(), 128, 1000)
    assert [[len(e.ids) for e in job.examples] for job in jobs] == edits[:128]
    assert all(job.epochs == 10 and job.rank == 32 for job in jobs)


def test_the_picture_shows_every_number_and_what_failed() -> None:
    import matplotlib.pyplot as plt
    from matplotlib.text import Text

    table = gpu_table.summary(ROWS, RECORD)
    _, ax = plt.subplots()
    gpu_table.cost_curve(table, ax)
    lines = {line.get_gid(): line for line in ax.get_lines()}
    by = table.set_index(["variant", "K"])
    expected = [[k, pytest.approx(by.loc["bank", k]["seconds_per_edit"])] for k in (1, 16)]
    assert lines["bank:qv"].get_xydata().tolist() == expected
    assert lines["value:authors:qv"].get_ydata()[0] == by.loc["authors", 1]["seconds_per_edit"]
    floors = lines["floor:qv"].get_ydata()
    assert floors[1] == pytest.approx(by.loc["bank", 16]["floor_ms"] * 86 / 1e3) and floors[0] > floors[1]
    texts = " ".join(text.get_text() for text in ax.texts)
    assert "×" in texts and "0.444 s at K = 16" in texts and "authors' code" in texts
    assert ax.get_yscale() == ax.get_xscale() == "log"
    ax.figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in ax.texts if "×" not in text.get_text()]
    assert not [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a.overlaps(b)]  # ways that cost alike, too
    plt.close()


def test_the_goal_is_printed_beside_what_was_reached() -> None:
    told = gpu_table.summary_text(gpu_table.summary(ROWS, RECORD))
    assert "Qwen2.5-7B, qv: 0.44 s a self-edit at K = 16, train 0.34, answer 0.10" in told
    assert "at most 0.5 s" in told and "out of memory" in told


def test_a_stop_that_is_no_measurement_is_refused(tmp_path) -> None:
    file = tmp_path / "bench_gpu_rows.csv"
    gpu_table.begin(file, RECORD, gpu_table.GpuPlan(), {})
    with pytest.raises(SealError, match="holds no measurement"):
        gpu_table.finish(tmp_path, "bench_gpu")
