"""The benchmark measures what it says and draws it. Run: pytest tests/test_bench.py"""

from dataclasses import replace

import matplotlib
import pandas as pd
import pytest

from seal_lib import bench

matplotlib.use("Agg")
SEQUENTIAL = [("authors", 1, 500.0), ("trainer_dynamic", 1, 20.0), ("peft_loop", 1, 6.0)]
VALUES = [*SEQUENTIAL, ("bank", 1, 4.0), ("bank", 8, 1.5), ("bank", 64, 2.0)]


def table() -> pd.DataFrame:
    rows = [(v, k, ms, 0.9 * ms, 1.2 * ms, 400.0, k) for v, k, ms in VALUES]
    return pd.DataFrame(rows, columns=bench.COLUMNS)


def test_adapters_stay_in_place_for_less_than_a_folder_costs():
    model, documents = bench.load(bench.TINY)
    ways = bench.hand_over(model, bench.jobs_of(documents, bench.TINY))
    assert 0 < ways["in place"] < ways["folder"]


def test_a_tiny_run_writes_table_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(bench.paths.ROOT))
    ballast = bytearray(b"x" * (700 << 20))  # the parent's memory must not count as the child's
    assert bench.main(["--tiny"]) == 0
    del ballast
    folder = tmp_path / "figures" / "seedling"
    assert sorted(p.name for p in folder.iterdir()) == [f"bench_inner_loop.{kind}" for kind in ("csv", "pdf", "png")]
    written = pd.read_csv(folder / "bench_inner_loop.csv")
    assert tuple(written.columns) == bench.COLUMNS
    assert list(zip(written["variant"], written["K"], strict=True)) == bench.variants(bench.TINY)
    assert (written["low"] <= written["ms_per_adapter_step"]).all() and (written["low"] > 0).all()
    by = written.set_index(["variant", "K"])["ms_per_adapter_step"]
    assert by["trainer_dynamic", 1] > 2 * by["bank", 2]  # set-up alone makes the Trainer dearer
    peaks = written.set_index(["variant", "K"])["peak_mb"]
    assert 100 < peaks["bank", 2] < 700 and peaks.drop(("bank", 2)).isna().all()  # not measured is empty, not 0
    assert "peft_loop/bank:" in capsys.readouterr().out


def test_ratios_are_to_the_best_k():
    expected = {"authors/bank": 500 / 1.5, "trainer_dynamic/bank": 20 / 1.5, "peft_loop/bank": 4}
    assert bench.ratios(table()) == pytest.approx(expected)


def test_the_picture_shows_every_number_of_the_table():
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    bench.cost_by_slots(table(), ax)
    levels = {line.get_ydata()[0] for line in ax.get_lines()[:3]}
    assert levels == {500.0, 20.0, 6.0}
    assert ax.get_lines()[3].get_xydata().tolist() == [[1, 4.0], [8, 1.5], [64, 2.0]]
    assert ax.get_yscale() == ax.get_xscale() == "log"
    assert "1.5 ms at K = 8" in " ".join(text.get_text() for text in ax.texts)
    plt.close()


def test_bank_and_loop_that_disagree_stop_the_benchmark(monkeypatch):
    from seal_lib import bank, finetune

    model, documents = bench.load(bench.TINY)
    jobs = bench.jobs_of(documents, bench.TINY)
    assert bench.check_same(model, jobs) < 1e-4
    monkeypatch.setattr(bank, "train_alone", lambda model, job: finetune.train_alone(model, replace(job, lr=0.1)))
    with pytest.raises(bench.SealError, match="disagree"):
        bench.check_same(model, jobs)
