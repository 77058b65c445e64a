"""Forgetting metrics against matrices small enough for paper and pencil."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from fixtures_seal import real

from seal_lib.continual import intervals, metrics
from seal_lib.continual.__main__ import facts, main
from seal_lib.errors import DataError
from seal_lib.report.stats import Estimate

NAN = math.nan
#: K = 3; rows are r = 0..3 edits. The diagonal R[i+1, i] is .8 .6 .9.
HAND = np.array([[0.2, 0.1, 0.3], [0.8, 0.2, 0.2], [0.5, 0.6, 0.1], [0.4, 0.5, 0.9]])
UPPER = ([1, 1, 2], [1, 2, 2])  # rows, columns of the passages not edited yet


def triangle(R: np.ndarray) -> np.ndarray:
    holed = R.copy()
    holed[UPPER] = NAN
    return holed


@pytest.mark.parametrize("sequences", range(3, 20))
def test_a_mean_of_ones_is_a_fraction_however_many_sequences(sequences: int) -> None:
    """The jackknife's mean of ten ones is one and a last bit."""
    rng = np.random.default_rng(sequences)
    stack = np.clip(HAND + rng.normal(0, 0.02, (sequences, 1, 1)), 0, 1)
    found = intervals.summary(stack, joint=np.ones((sequences, 3)), isolated=np.ones((sequences, 3)))
    assert found["recovery_joint"].estimate.value == pytest.approx(float(metrics.recovery(stack.mean(0), 1.0)))
    assert found["recovery_joint"].estimate.value == found["recovery_isolated"].estimate.value


def test_hand_computed_values() -> None:
    expected = {
        "base": 0.2,  # (.2+.1+.3)/3
        "LA": 2.3 / 3,
        "LA_gain": 1.7 / 3,
        "AA": 0.6,  # (.4+.5+.9)/3
        "net_gain": 0.4,
        "AIA": (0.8 + 0.55 + 0.6) / 3,
        "BWT": -0.25,  # ((.4−.8)+(.5−.6))/2
        "FWT": -0.05,  # ((.2−.1)+(.1−.3))/2: row 1 for passage 1, row 2 for passage 2
        "loss_per_edit": -0.5 / 3,  # passage 0: −.3, −.1; passage 1: −.1
    }
    got = {name: float(metric(HAND)) for name, metric in metrics.LINEAR.items()}
    assert got == pytest.approx(expected, abs=1e-12)
    assert [float(metrics.average_accuracy(HAND, k)) for k in (1, 2)] == pytest.approx([0.8, 0.55])
    with pytest.raises(DataError, match="from 1 to K = 3, got 4"):
        metrics.average_accuracy(HAND, 4)


def test_references() -> None:
    joint = [0.9, 0.7, 0.8]  # mean .8, gain .6 over base; AA_3 gains .4
    assert float(metrics.recovery(HAND, joint)) == pytest.approx(2 / 3)
    assert float(metrics.recovery(HAND, 0.8)) == pytest.approx(2 / 3)
    assert float(metrics.intransigence(HAND, joint)) == pytest.approx((0.1 + 0.1 - 0.1) / 3)
    assert math.isnan(metrics.recovery(HAND, 0.2))  # a reference that gains nothing has no share
    with pytest.raises(DataError, match="reference"):
        metrics.recovery(HAND, [0.1, 0.2])


def test_age_curves_and_their_crossings() -> None:
    # gains over own base: passage 0: .6 .3 .2; passage 1: .5 .4; passage 2: .6
    assert metrics.age_curve(HAND) == pytest.approx([1.7 / 3, 0.35, 0.2])
    # steps: to age 1 (−.3 −.1)/2 = −.2, to age 2 −.1
    assert metrics.chained_age_curve(HAND) == pytest.approx([1.7 / 3, 1.7 / 3 - 0.2, 1.7 / 3 - 0.3])
    # half is .28333, which lies between .36667 (age 1) and .26667 (age 2): 1 + .08333/.1
    assert float(metrics.half_life(HAND)) == pytest.approx(1 + 5 / 6)
    assert metrics.break_even(HAND) == math.inf
    curves = np.array([[0.1, -0.1, 0.3], [0.4, 0.4, 0.1], [-0.1, 0.5, 0.5], [0.1, NAN, -0.1]])
    assert metrics.crossing_age(curves, 0.0)[:3] == pytest.approx([0.5, math.inf, 0.0])
    assert math.isnan(metrics.crossing_age(curves, 0.0)[3])
    assert metrics.crossing_age(curves[1], 0.25) == pytest.approx(1.5)


def test_chaudhry_is_taken_on_the_mean_matrix() -> None:
    # two sequences, passage 0: .4 then .8 then .4, and .8 then .4 then .4. Alone each forgets .4 there;
    # their mean .6 .6 .4 forgets .2. Passage 1 keeps .5 in both.
    a, b = np.full((2, 4, 3), 0.5)
    a[1:, 0], b[1:, 0] = [0.4, 0.8, 0.4], [0.8, 0.4, 0.4]
    assert metrics.forgetting(a) == pytest.approx(0.2) and metrics.forgetting(b) == pytest.approx(0.2)
    assert metrics.forgetting(np.stack([a, b]).mean(axis=0)) == pytest.approx(0.1)
    assert metrics.forgetting(HAND) == pytest.approx(0.25)
    assert intervals.summary(np.stack([a, b]))["F_3"].estimate.value == pytest.approx(0.1)


def test_a_stack_gives_the_same_numbers_one_by_one() -> None:
    stack = np.random.default_rng(0).uniform(size=(5, 9, 8))
    curves = [metrics.half_life, metrics.break_even, metrics.chained_age_curve, metrics.age_curve, metrics.forgetting]
    for metric in [*metrics.LINEAR.values(), *curves]:
        assert metric(stack) == pytest.approx(np.stack([metric(matrix) for matrix in stack]), nan_ok=True)


def test_what_a_matrix_holds_has_a_name() -> None:
    stopped, hole = HAND.copy(), HAND.copy()
    stopped[2:] = NAN
    hole[3, 1] = NAN
    zeros, partly = np.nan_to_num(triangle(HAND)), HAND.copy()
    partly[1, 2] = 0.0
    assert np.array_equal(metrics.released(zeros), triangle(HAND), equal_nan=True)
    assert np.array_equal(metrics.released(partly), partly)  # a zero among measured cells is one
    some = triangle(HAND)
    some[1, 1] = 0.2
    torn = stopped.copy()
    torn[1, 0] = NAN  # a hole before the rows that are gone
    held = [metrics.outcome(R) for R in (HAND, triangle(HAND), stopped, hole, some, torn)]
    assert held == ["complete", "triangle", "stopped_at_2", "missing_cells", "missing_cells", "missing_cells"]


def test_a_diverged_sequence_is_dropped_and_counted() -> None:
    stack = np.stack([HAND] * 4)
    stack[3, 2:] = NAN
    found, alone = (intervals.summary(R, joint=0.8) for R in (stack, stack[:3]))
    for name in ("AA_3", "BWT", "F_3", "recovery_joint", "half_life"):
        measure = found[name]
        assert measure.outcome == "survivors" and measure.estimate.value == alone[name].estimate.value, name
        assert (measure.estimate.n, measure.estimate.dropped) == (3, 1)
        assert "1 of 4" in measure.note and "stopped_at_2" in measure.note
    assert found["base"].outcome == "ok" and found["base"].estimate.n == 4  # row 0 is there in all
    stack[:, 2:] = NAN
    nothing = intervals.summary(stack, joint=0.8)["BWT"]
    assert nothing.outcome == "incomplete" and math.isnan(nothing.estimate.value) and nothing.estimate.dropped == 4


def test_what_cannot_vary_says_so_and_what_did_not_is_bounded() -> None:
    """Six streams that agree: frozen's gain is 0 whatever is drawn; 100 % right in all six is not certain to stay."""
    flat = np.full((6, 4, 3), 1.0)
    frozen = intervals.summary(flat, constant=("BWT", "F", "age"))
    for name in ("BWT", "F_3", "age_1"):
        e = frozen[name].estimate
        assert (e.low, e.value, e.high, e.interval) == (0.0, 0.0, 0.0, "by construction"), name
    e = frozen["AA_3"].estimate
    assert e.low < e.value == e.high == 1.0 and e.interval == "bound"
    moved = flat.copy()
    moved[0, 3, 0] = 0.5  # rounding flipped an answer: then it is measured like everything else
    e = intervals.summary(moved, constant=("BWT",))["BWT"].estimate
    assert e.low < e.value < e.high and e.interval == "t"


@pytest.mark.parametrize("n", [4, 8, 16])
def test_intervals_of_ratios_cover_with_few_sequences(n: int) -> None:
    """A plain percentile bootstrap of four covers 80 %."""
    hits = dict.fromkeys(("recovery_joint", "half_life"), 0)
    for seed in range(150):
        R, joint = simulated(n, 1000 + seed)
        result = intervals.summary(R, joint=joint, draws=2000)
        for name, truth in (("recovery_joint", 0.25 / 0.4), ("half_life", 2.0)):
            e = result[name].estimate
            hits[name] += not (e.low > truth or e.high < truth)
            assert e.interval in ("t", "bootstrap")
    assert all(count >= 0.91 * 150 for count in hits.values()), hits


def test_an_unmeasured_triangle_costs_only_what_needs_it() -> None:
    result = intervals.summary(np.stack([triangle(HAND)] * 3))
    assert result["FWT"].outcome == "not_measured" and math.isnan(result["FWT"].estimate.value)
    assert result["recovery_joint"].outcome == "no_reference"
    assert result["BWT"].outcome == "ok" and result["BWT"].estimate.value == pytest.approx(-0.25)
    assert result["F_3"].estimate.value == pytest.approx(0.25)
    assert result["break_even"].outcome == "not_reached" and math.isnan(result["break_even"].estimate.value)


def simulated(sequences: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Streams with a base of .3, a gain of .4 that fades by .1 per later edit, and noise; joint accuracy about .7."""
    rng = np.random.default_rng(seed)
    r, i = np.indices((5, 4))
    mean = np.where(i < r, 0.7 - 0.1 * (r - i - 1), 0.3)
    noise = rng.normal(0, 0.05, size=(sequences, 5, 4)) + rng.normal(0, 0.05, size=(sequences, 1, 1))
    return np.clip(mean + noise, 0, 1), np.clip(0.7 + rng.normal(0, 0.05, size=(sequences, 4)), 0, 1)


def test_intervals_cover_the_truth() -> None:
    truth = {"BWT": -0.2, "AA_4": 0.55, "recovery_joint": 0.25 / 0.4, "half_life": 2.0}
    hits, widths = dict.fromkeys(truth, 0), []
    for seed in range(100):
        R, joint = simulated(16, seed)
        result = intervals.summary(R, joint=joint, draws=400)
        for name, value in truth.items():
            estimate = result[name].estimate
            hits[name] += estimate.low <= value <= estimate.high
        widths.append(result["BWT"].estimate.high - result["BWT"].estimate.low)
    assert all(85 <= count <= 99 for count in hits.values()), hits  # 95 % less small-sample loss; sd of a count is 2.5
    assert 0.02 < np.mean(widths) < 0.06


def test_the_order_of_sequences_changes_nothing() -> None:
    R, joint = simulated(8, 1)
    forth, back = (intervals.summary(R[::s], joint=joint[::s], draws=300) for s in (1, -1))
    for name in forth:
        a, b = forth[name].estimate, back[name].estimate
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-12, nan_ok=True), name


def test_few_sequences_pay_for_their_degrees_of_freedom() -> None:
    """The jackknife of a mean is Student's t, and the expanded percentiles are wider by the same; n = 4: t = 3.182."""
    stack = np.array([0.1, 0.4, 0.35, 0.8]).reshape(4, 1, 1)
    reach = intervals._jackknife(lambda m: m.mean(axis=(-2, -1)), stack)
    assert reach == pytest.approx(3.1824 * stack.std(ddof=1) / 2, rel=1e-4)
    assert intervals.expanded_tail(4) == pytest.approx(0.5 * math.erfc(3.1824 * math.sqrt(4 / 3) / math.sqrt(2)), 1e-3)
    drawn = list(intervals._mean_matrices(stack, 2300))
    assert sum(map(len, drawn)) == 2300 and max(map(len, drawn)) <= 1000
    means = np.concatenate(drawn)
    assert means.mean() == pytest.approx(stack.mean(), abs=0.02)
    assert means.std() == pytest.approx(stack.std() / 2, rel=0.1)  # of four drawn with replacement


def test_a_reference_that_hardly_gains_has_no_interval() -> None:
    R, joint = simulated(8, 2)
    hardly = joint - joint.mean() + R[:, 0].mean() + 0.002
    measure = intervals.summary(R, joint=hardly)["recovery_joint"]
    assert measure.estimate.value > 10 and "gain nothing" in measure.note
    assert math.isnan(measure.estimate.low) and math.isnan(measure.estimate.high)
    assert intervals.summary(R, joint=0.1)["recovery_joint"].outcome == "no_gain"


def test_the_interval_of_a_maximum_holds_its_value() -> None:
    noise = np.random.default_rng(0).uniform(size=(16, 33, 32))  # nothing is learned or lost, all is noise
    estimate = intervals.summary(noise, draws=500)["F_32"].estimate
    assert estimate.low < estimate.value < estimate.high and estimate.value > 0.1  # and F itself is far from 0


def test_kept_and_learned() -> None:
    before = [[1, 1, 0, 0], [1, 0, 0]]
    after = [[1, 0, 1, 0], [1, 0, 0]]
    result = intervals.kept_learned(before, after)
    assert result["kept"].estimate.value == pytest.approx(2 / 3)  # 3 right at base, 2 still
    assert result["learned"].estimate.value == pytest.approx(1 / 4)  # 4 wrong at base, 1 now right
    assert result["kept"].estimate.n == 2 and result["kept"].outcome == "ok"
    holed = intervals.kept_learned(before, [[1, None, 1, 0], [1, 0, 0]])["kept"]
    assert holed.outcome == "survivors" and holed.estimate.value == 1.0  # of the sequence that has its answers
    assert (holed.estimate.n, holed.estimate.dropped) == (1, 1) and "1 of 2" in holed.note
    nothing = intervals.kept_learned([[0], [0]], [[1], [0]])
    assert nothing["kept"].outcome == "not_measured" and nothing["learned"].estimate.value == 0.5
    with pytest.raises(DataError, match="same questions"):
        intervals.kept_learned(before, [[1], [1]])
    with pytest.raises(DataError, match="1 .right. or 0"):
        intervals.kept_learned([[0.5]], [[1]])


@pytest.mark.parametrize(
    ("low", "high", "n", "verdict"),
    [
        (-0.02, 0.02, 16, "equivalent"),
        (-0.02, 0.05, 16, "not_worse"),
        (-0.05, 0.02, 16, "undecided"),
        (-0.09, -0.04, 16, "lower"),
        (0.04, 0.09, 16, "higher"),
        (-0.02, 0.02, 5, "undecided"),
        (-0.02, 0.02, 6, "equivalent"),
        (-0.03, 0.02, 16, "undecided"),  # what touches the margin is neither within nor beyond it
        (-0.02, 0.03, 16, "not_worse"),
        (-0.09, -0.03, 16, "undecided"),
        (0.03, 0.09, 16, "not_worse"),
        (NAN, NAN, 16, "undecided"),
    ],
)
def test_equivalence_by_interval(low: float, high: float, n: int, verdict: str) -> None:
    assert intervals.equivalence(Estimate(0.0, low, high, n)) == verdict


def test_comparing_arms() -> None:
    names = [f"s{i}" for i in range(8)]
    noise = dict(zip(names, [0.01, -0.01, 0.02, -0.02, 0.01, -0.01, 0.02, -0.02], strict=True))
    joint = {name: 0.5 + 0.05 * i for i, name in enumerate(names)}  # large spread between sequences: pairing matters
    values = {
        "joint": joint,
        "replay": {name: joint[name] + noise[name] for name in names},
        "sequential": {name: joint[name] - 0.4 + noise[name] for name in names},
        "wild": {name: NAN if name == "s3" else joint[name] for name in names},
    }
    family = [("replay", "joint"), ("sequential", "joint"), ("wild", "joint")]
    replay, sequential, wild = intervals.compare(values, family)
    assert replay.verdict == "equivalent" and replay.difference.p > 0.5
    assert sequential.verdict == "lower" and sequential.difference.value == pytest.approx(-0.4)
    assert sequential.difference.p == pytest.approx(3 * 2 / 2**8)  # the smallest of three, by Holm
    assert (wild.difference.n, wild.difference.dropped) == (7, 1) and wild.verdict == "undecided"
    with pytest.raises(DataError, match="no arm 'ewc'"):
        intervals.compare(values, [("ewc", "joint")])


def test_the_authors_matrix(capsys: pytest.CaptureFixture) -> None:
    file = real("seal_released", "continual_overall.json")
    assert main(["facts", str(file), "--isolated", "0.4435"]) == 0  # base + their single-edit gain of 13.6 points
    found = json.loads(capsys.readouterr().out)
    assert found["held"] == ["triangle"] and found["passages"] == 8
    got = found["metrics"]
    published = {
        "base": 0.3075,
        "LA": 0.4146,
        "AA_8": 0.2474,
        "BWT": -0.1911,
        "AIA": 0.3370,
        "net_gain": -0.0601,
        "F_8": 0.1911,
    }
    assert {name: got[name]["value"] for name in published} == pytest.approx(published, abs=6e-5)
    assert got["half_life"]["value"] == pytest.approx(0.92, abs=0.005)
    assert got["break_even"]["value"] == pytest.approx(1.63, abs=0.005)
    assert got["recovery_isolated"]["value"] == pytest.approx(-0.44, abs=0.005)
    ages = [got[f"age_{t}"]["value"] for t in range(8)]
    assert ages == pytest.approx([0.107, 0.052, -0.026, -0.066, -0.069, -0.100, -0.124, -0.142], abs=6e-4)
    assert got["BWT"]["low"] is None and got["BWT"]["n"] == 64 and "No interval" in got["BWT"]["note"]
    assert got["FWT"]["value"] is None and got["FWT"]["outcome"] == "not_measured"


def test_zeros_above_the_diagonal_are_read_as_not_measured_only_in_the_authors_format(tmp_path) -> None:
    zeros = np.nan_to_num(triangle(HAND)).tolist()
    theirs, ours = tmp_path / "theirs.json", tmp_path / "ours.json"
    theirs.write_text(json.dumps({"mean_over_sequences": zeros, "n_sequences": 4}))
    ours.write_text(json.dumps({"accuracy": [zeros, HAND.tolist()], "joint": [0.9, 0.7, 0.8]}))
    assert facts(theirs)["metrics"]["FWT"]["outcome"] == "not_measured"
    found = facts(ours)["metrics"]
    assert found["FWT"]["value"] == pytest.approx((-0.2 - 0.05) / 2)  # ((0−.1)+(0−.3))/2 and −.05
    assert found["recovery_joint"]["value"] == pytest.approx(2 / 3) and found["FWT"]["n"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "neither 'accuracy'"),
        ('{"other": 1}', "neither 'accuracy'"),
        ('{"accuracy": [[0.1, 0.2], [0.3]]}', "rows of equal length"),
        ('{"accuracy": [["a", "b"], [1, 1], [1, 1]]}', "must be numbers"),
        ('{"accuracy": [[0.1, 0.2], [0.1, 0.2]]}', "K.1 rows"),
        ('{"accuracy": null}', "K.1 rows"),
        ('{"accuracy": [[30, 20], [0, 0], [0, 0]]}', "divide percent"),
        ('{"accuracy": [[0, Infinity], [0, 0], [0, 0]]}', "from 0 to 1"),
        ('{"accuracy": [[0, 1.01], [0, 0], [0, 0]]}', "from 0 to 1"),
        ('{"accuracy": [[0, -0.01], [0, 0], [0, 0]]}', "from 0 to 1"),
        ('{"accuracy": [[0, 1], [0, 0], [0, 0]], "joint": 1.01}', "from 0 to 1"),
        ('{"accuracy": [[0, 0], [0, 0], [0, 0]], "sequences": "64"}', "whole number"),
        ('{"accuracy": [[0, 0], [0, 0], [0, 0]], "joint": [1, 1, 1]}', "reference"),
        ('{"mean_over_sequences": [[[0, 0], [0, 0], [0, 0]]]}', "one matrix"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, capsys, text: str, words: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    assert main(["facts", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    with pytest.raises(DataError, match=words):
        facts(file)


def test_a_missing_file_and_a_light_import(tmp_path, capsys) -> None:
    assert main(["facts", str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err
    heavy = ("torch", "transformers", "pandas", "matplotlib")
    code = f"import sys, seal_lib.continual.__main__; print([m for m in {heavy} if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "[]\n", done.stderr
