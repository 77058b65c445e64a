"""The benchmark measures what it says and draws it. Run: pytest tests/bench/test_bench.py"""

from dataclasses import replace
from statistics import fmean

import matplotlib
import pandas as pd
import pytest

from seal_lib.bench import inner_loop, inner_loop_table
from seal_lib.plan.lengths import profiles

matplotlib.use("Agg")
SEQUENTIAL = [("authors", 1, 500.0), ("trainer_dynamic", 1, 20.0), ("peft_loop", 1, 6.0)]
VALUES = [*SEQUENTIAL, ("bank", 1, 4.0), ("bank", 8, 1.5), ("bank", 64, 2.0)]


def table() -> pd.DataFrame:
    """Two length settings; the second costs half."""
    rows = [
        (lengths, tokens, steps, "a model", 8, v, k, ms / by, 0.9 * ms / by, 1.2 * ms / by, 400.0, k)
        for lengths, tokens, steps, by in (("seal", 47.0, 90.0, 1), ("seedling", 19.0, 70.0, 2))
        for v, k, ms in VALUES
    ]
    return pd.DataFrame(rows, columns=inner_loop_table.BENCH_COLUMNS)


def test_adapters_stay_in_place_for_less_than_a_folder_costs():
    model, documents = inner_loop.load(inner_loop.TINY_CPU), inner_loop.documents("seedling", inner_loop.TINY_CPU)
    ways = inner_loop.hand_over(model, inner_loop.jobs_of(documents, inner_loop.TINY_CPU))
    assert 0 < ways["in place"] < ways["folder"]


def test_documents_have_seals_lengths_and_the_passage_is_among_them():
    """SEAL's documents average 47 tokens (recorded), the passage included; every adapter has equally many steps."""
    recorded = profiles()["squad"].documents
    mean = fmean(n for part in recorded for n in part)
    assert mean == pytest.approx(47, abs=1)
    drawn = inner_loop.seal_lengths(64)
    assert {len(part) for part in drawn} == {inner_loop.LINES + 1}
    assert inner_loop.LINES == round(fmean(map(len, recorded)) - 1)
    assert fmean(n for part in drawn for n in part) == pytest.approx(mean, rel=0.03)
    assert fmean(part[-1] for part in drawn) == pytest.approx(fmean(part[-1] for part in recorded), rel=0.03)
    assert {part[-1] for part in drawn} <= {part[-1] for part in recorded}
    for count in {
        max(k, inner_loop.PER_REPETITION) for k in inner_loop.CpuPlan().slots
    }:  # what a way trains is like what others train
        assert fmean(n for part in drawn[:count] for n in part) == pytest.approx(mean, rel=0.05)
    made = inner_loop.documents("seal", inner_loop.CpuPlan(slots=(4,)))
    assert [[len(ids) - 1 for ids in part] for part in made] == drawn[:4]  # and one end-of-text each
    assert len({ids[-1] for part in made for ids in part}) == 1
    notes = inner_loop.documents("seedling", inner_loop.CpuPlan(slots=(4,)))
    assert {len(part) for part in notes} == {7} and all(len(part[-1]) == max(map(len, part)) for part in notes)


def test_every_way_spreads_the_start_over_the_whole_adapter():
    """Start-up of the Trainer over 6 steps, and of the others over 60, made the authors' way look dearer than it is."""
    timing = inner_loop.Timing(start=6.0, step=0.5, steps=6)
    assert timing.per_step(60) == pytest.approx(0.6)  # not (6 + 6 * 0.5) / 6
    model = inner_loop.load(inner_loop.TINY_CPU)
    job = replace(
        inner_loop.jobs_of(inner_loop.documents("seal", inner_loop.TINY_CPU), inner_loop.TINY_CPU)[0], epochs=2
    )
    ticks = iter((0.0, 10.0, 20.0, 21.0))  # begin, end of the first and of the last step, end
    assert inner_loop.with_trainer(model, job, 64, 6, clock=lambda: next(ticks)) == inner_loop.Timing(
        21.0 - 6 * 2.0, 2.0, 6
    )
    ticks = iter((0.0, 10.0, 44.0, 45.0))  # all 18 steps: nothing is left out
    whole = inner_loop.with_trainer(model, job, None, -1, clock=lambda: next(ticks))
    assert whole.steps == 18 and whole.per_step(18) == pytest.approx(45 / 18)


def test_a_tiny_run_writes_table_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(inner_loop.paths.ROOT))
    ballast = bytearray(b"x" * (700 << 20))  # the parent's memory must not count as the child's
    assert inner_loop.main(["--tiny"]) == 0
    del ballast
    folder = tmp_path / "figures" / "seedling"
    assert sorted(p.name for p in folder.iterdir()) == [f"bench_inner_loop.{kind}" for kind in ("csv", "pdf", "png")]
    written = pd.read_csv(folder / "bench_inner_loop.csv")
    assert tuple(written.columns) == inner_loop_table.BENCH_COLUMNS
    expected = [
        (lengths, *way) for lengths in inner_loop_table.LENGTHS for way in inner_loop.variants(inner_loop.TINY_CPU)
    ]
    assert list(zip(written["lengths"], written["variant"], written["K"], strict=True)) == expected
    assert (written["low"] <= written["ms_per_adapter_step"]).all() and (written["low"] > 0).all()
    by = written.set_index(["lengths", "variant", "K"])["ms_per_adapter_step"]
    for lengths in inner_loop_table.LENGTHS:  # set-up alone makes the Trainer dearer
        assert by[lengths, "trainer_dynamic", 1] > 2 * by[lengths, "bank", 2]
    peaks = written.set_index(["lengths", "variant", "K"])["peak_mb"]
    assert 100 < peaks["seal", "bank", 2] < 700
    assert peaks.drop(("seal", "bank", 2)).isna().all()  # not measured is empty, not 0
    said = capsys.readouterr().out
    assert "peft_loop/bank:" in said and "random, rank 8, lengths of SEAL's self-edits" in said


def test_ratios_are_to_the_best_k_at_each_length_with_their_spread():
    found = inner_loop_table.ratios(table())
    for lengths in inner_loop_table.LENGTHS:
        for variant, _, ms in SEQUENTIAL:
            whole = (ms / 1.5, 0.9 * ms / (1.2 * 1.5), 1.2 * ms / (0.9 * 1.5))
            assert found[lengths, variant] == pytest.approx(whole)
    first = inner_loop_table.ratios_text(table()).splitlines()[0]
    assert (
        first
        == "authors/bank: 333.3 [250.0, 444.4] (a model, rank 8, lengths of SEAL's self-edits, 47 tokens a document)"
    )


def test_the_picture_shows_every_number_of_the_table():
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(1, 2)
    inner_loop_table.cost_by_slots(table(), axes)
    for ax, by, tokens in zip(axes, (1, 2), (47, 19), strict=True):
        levels = {line.get_ydata()[0] for line in ax.get_lines()[:3]}
        assert levels == {500.0 / by, 20.0 / by, 6.0 / by}
        assert ax.get_lines()[3].get_xydata().tolist() == [[1, 4.0 / by], [8, 1.5 / by], [64, 2.0 / by]]
        assert ax.get_yscale() == ax.get_xscale() == "log"
        words = " ".join(text.get_text() for text in ax.texts)
        assert f"{1.5 / by} ms at K = 8" in words and "4 × the bank" in words
        assert f"{tokens} tokens a document" in ax.get_title()
    assert axes[0].get_ylim() == axes[1].get_ylim()
    plt.close()


def test_bank_and_loop_that_disagree_stop_the_benchmark(monkeypatch):
    from seal_lib.training import finetune

    model = inner_loop.load(inner_loop.TINY_CPU)
    jobs = inner_loop.jobs_of(inner_loop.documents("seal", inner_loop.TINY_CPU), inner_loop.TINY_CPU)
    assert inner_loop.check_same(model, jobs) < 1e-5
    alone = finetune.train_alone
    monkeypatch.setattr(finetune, "train_alone", lambda model, job: alone(model, replace(job, lr=2 * job.lr)))
    with pytest.raises(inner_loop.SealError, match="disagree"):
        inner_loop.check_same(model, jobs)


def test_the_puzzle_benchmark_trains_whole_self_edits_in_every_way_and_says_their_length():
    from seal_lib import models
    from seal_lib.arc import world
    from seal_lib.bench import arc as arc_bench

    model, tokenizer = models.load(arc_bench.MODEL)
    task, few = world.tasks("learning", 1)[0], replace(arc_bench.SETTINGS, cap=4, copies=1)
    table = arc_bench.measure(model, tokenizer, task, few, repetitions=1, count=3).set_index("variant")
    plain = arc_bench.jobs_of(task, arc_bench.draw_configs(task, 3), tokenizer, few)
    wide = [arc_bench.padded(job, tokenizer.pad_token_id) for job in plain]
    lengths = [len(example.ids) for job in plain for example in job.examples]
    assert (table["tokens"] == fmean(lengths)).all() and (table["self_edits"] == 3).all()
    useful = arc_bench.tokens(plain)
    assert useful == sum(len(job.examples[i].ids) for job in plain for batch in job.plan() for i in batch)
    for variant, row in table.iterrows():  # the milliseconds are of all tokens of all epochs, none left out
        assert row["ms_per_useful_token"] * useful == pytest.approx(1e3 * row["seconds"])
        share = useful / arc_bench.tokens(wide) if variant.endswith("padded") else 1.0
        assert row["useful_share"] == pytest.approx(share)
