"""Statistics mean what they say. Run: pytest tests/report/test_stats.py"""

import math

import numpy as np
import pytest

from seal_lib.errors import DataError
from seal_lib.report import stats
from seal_lib.runs import lifecycle

TRUTHS = {  # skewed and bounded, as accuracies of passages, streams and tasks are: name -> (sample, its mean)
    "beta": (lambda rng, size: rng.beta(2, 8, size), 0.2),
    "beta at both ends": (lambda rng, size: rng.beta(0.3, 0.3, size), 0.5),
    "beta at one end": (lambda rng, size: rng.beta(8, 1, size), 8 / 9),
    "5 questions, most right": (lambda rng, size: rng.binomial(5, 0.9, size) / 5, 0.9),
    "12 questions, few right": (lambda rng, size: rng.binomial(12, 0.03, size) / 12, 0.03),
    "5 questions, units differ": (lambda rng, size: rng.binomial(5, rng.beta(0.4, 1.6, size)) / 5, 0.2),
    "one question": (lambda rng, size: rng.binomial(1, 0.2, size) * 1.0, 0.2),
    "one question, rare": (lambda rng, size: rng.binomial(1, 0.05, size) * 1.0, 0.05),
}
APART = {  # paired differences
    "questions": (lambda rng, size: (rng.binomial(5, 0.4, size) - rng.binomial(5, 0.3, size)) / 5, 0.1),
    "near zero": (lambda rng, size: (rng.binomial(5, 0.1, size) - rng.binomial(5, 0.02, size)) / 5, 0.08),
    "rare": (lambda rng, size: rng.binomial(1, 0.1, size) * 0.2, 0.02),
    "skewed": (lambda rng, size: rng.beta(0.5, 3, size) - rng.beta(0.5, 8, size), 0.5 / 3.5 - 0.5 / 8.5),
}


def covered(sample, truth: float, bounds, samples: int = 400) -> float:
    """Share of the samples [samples][n] whose interval holds the truth."""
    found = [stats.mean_over_units(list(values), bounds) for values in sample[:samples]]
    return sum(e.low - 1e-12 <= truth <= e.high + 1e-12 for e in found) / len(found)


@pytest.mark.parametrize("n", [4, 8, 16, 60])
def test_intervals_hold_the_truth_however_few_units_there_are(n):
    # a percentile bootstrap covers 0.80 with four units and 0.92 with sixteen; 400 samples: sd of a rate is 0.011
    for family, bounds in ((TRUTHS, stats.SHARE), (APART, stats.DIFFERENCE)):
        for name, (draw, truth) in family.items():
            rate = covered(draw(np.random.default_rng(n), (400, n)), truth, bounds)
            assert rate >= 0.90, (name, n, rate)


def test_intervals_are_no_wider_than_they_need_be():
    rng = np.random.default_rng(1)
    hits = covered(rng.beta(2, 3, size=(500, 60)), 0.4, stats.SHARE)
    assert hits <= 0.98  # a 99 % interval would fail
    one = stats.mean_over_units(list(rng.beta(2, 3, size=60)), stats.SHARE)
    assert one.high - one.low == pytest.approx(2 * 1.96 * 0.2 / math.sqrt(60), rel=0.2)  # sd of the beta is 0.2


def test_order_of_units_and_repetition_change_nothing():
    values = {f"p{i}": v for i, v in enumerate([0.1, 0.9, 0.4, 0.4, 0.7])}
    backwards = dict(reversed(values.items()))
    assert stats.mean_over_units(values, stats.SHARE) == stats.mean_over_units(backwards, stats.SHARE)
    loops = {0: values, 1: {key: v / 2 for key, v in values.items()}}
    assert stats.mean_over_loops(loops, stats.SHARE) == stats.mean_over_loops(
        {1: dict(reversed(loops[1].items())), 0: backwards}, stats.SHARE
    )


def test_nan_units_are_left_out_and_counted():
    estimate = stats.mean_over_units([0.0, 1.0, math.nan, None], stats.SHARE)
    assert (estimate.value, estimate.n, estimate.dropped) == (0.5, 2, 2)
    nested = stats.mean_over_units({"a": [1.0, math.nan], "b": [0.0, 0.0], "c": [math.nan]}, stats.SHARE)
    assert (nested.value, nested.n, nested.dropped) == (0.5, 2, 2)  # a lost trial, and a passage without any


def test_one_unit_has_a_value_but_no_interval():
    for estimate in (
        stats.mean_over_units([0.25], stats.SHARE),
        stats.ratio_over_loops({0: {"p": (1, 4)}}),
        stats.mean_over_units({"p": [0.0, 0.5]}, stats.SHARE),
        stats.mean_over_loops({0: [0.2], 1: [0.3]}, stats.SHARE),
    ):
        assert estimate.value == 0.25 and estimate.n == 1
        assert math.isnan(estimate.low) and math.isnan(estimate.high) and estimate.interval == ""
        assert not stats.separable(estimate)
    two = stats.mean_over_units([0.2, 0.4], stats.ANY)  # the fewest that have one: t with one degree of freedom
    assert (two.interval, two.high - 0.3) == ("t", pytest.approx(12.706 * 0.1, rel=1e-4))
    nothing = stats.mean_over_units([], stats.SHARE)
    assert math.isnan(nothing.value) and nothing.n == 0
    lost = stats.mean_over_units([math.nan, math.nan], stats.SHARE)
    assert math.isnan(lost.value) and (lost.n, lost.dropped) == (0, 2)


def test_units_that_all_agree_get_a_bound_and_only_what_cannot_vary_has_no_width():
    for n, upper in ((3, 0.7076), (24, 0.1425), (100, 0.0362)):  # Clopper and Pearson's for none of n
        none = stats.mean_over_units([0.0] * n, stats.SHARE)
        every = stats.mean_over_units([1.0] * n, stats.SHARE)
        assert (none.value, none.low, none.interval) == (0, 0, "bound") and none.high == pytest.approx(upper, abs=1e-4)
        assert (every.value, every.high) == (1, 1) and every.low == pytest.approx(1 - upper, abs=1e-4)
    half = stats.mean_over_units([0.5] * 24, stats.SHARE)
    assert (half.low, half.high) == (pytest.approx(0.5 - 0.0712, abs=1e-3), pytest.approx(0.5712, abs=1e-3))
    level = stats.mean_over_units([0.0] * 24, stats.DIFFERENCE)
    assert level.low < 0 < level.high and not stats.separable(level)
    seconds = stats.mean_over_units([2.0, 2.0], stats.ANY)
    assert math.isnan(seconds.low) and seconds.interval == ""  # nothing bounds it, and nothing is known of its spread
    fixed = stats.mean_over_units([0.0] * 24, stats.DIFFERENCE, constant=True)
    assert (fixed.low, fixed.high, fixed.interval) == (0, 0, "by construction")
    with pytest.raises(DataError, match="cannot vary"):
        stats.mean_over_units([0.0, 0.1], stats.DIFFERENCE, constant=True)
    for wrong in (40.0, 1.01, -0.01):
        with pytest.raises(DataError, match="outside"):
            stats.mean_over_units([0.0, wrong], stats.SHARE)
    assert stats.mean_over_units([1.0, 1 + 1e-12], stats.SHARE).n == 2  # a mean of ones may be off in the last bit


def test_pairing_is_narrower_when_passages_differ_in_difficulty():
    rng = np.random.default_rng(0)
    easy = rng.uniform(0, 0.8, size=80)
    a = {str(i): e + 0.1 + rng.normal(0, 0.02) for i, e in enumerate(easy)}
    b = {str(i): e for i, e in enumerate(easy)}
    paired = stats.compare({"a": {0: a}, "b": {0: b}}, [("a", "b")])["a", "b"]
    alone = stats.mean_over_units(a, stats.ANY)
    assert paired.value == pytest.approx(0.1, abs=0.01)
    assert stats.separable(paired)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_pairing_goes_by_id_and_counts_what_fell_out():
    ours, theirs = {"x": 1.0, "y": 0.5, "z": math.nan, "v": 0.0}, {"y": 0.25, "x": 0.0, "w": 1.0, "z": 0.0}
    sides = {"a": {0: ours}, "b": {0: theirs}}
    estimate = stats.compare(sides, [("a", "b"), ("a", "absent")])["a", "b"]
    assert estimate.value == pytest.approx((1.0 + 0.25) / 2)
    assert (estimate.n, estimate.dropped) == (2, 3)  # v and w have no partner, z is NaN
    with pytest.raises(DataError, match="same ones"):
        stats.compare({"a": {0: {"x": 1.0}}, "b": {0: {"y": 1.0}}}, [("a", "b")])
    lost = stats.compare({"a": {0: {"x": 1.0}}, "b": {0: {"x": math.nan}}}, [("a", "b")])["a", "b"]
    assert (lost.n, lost.dropped) == (0, 1) and math.isnan(lost.value)  # an arm that diverged everywhere is no error


def test_a_control_without_loops_stands_beside_every_loop():
    loops = {0: {"x": 0.8, "y": 0.4}, 1: {"x": 0.6, "y": 0.2}}
    found = stats.compare({"a": loops, "frozen": {0: {"x": 0.1, "y": 0.1}}}, [("a", "frozen"), ("frozen", "a")])
    assert found["a", "frozen"].value == pytest.approx(0.4) == -found["frozen", "a"].value
    assert (found["a", "frozen"].n, found["a", "frozen"].loops) == (2, 2)
    with pytest.raises(DataError, match="cannot be paired"):
        stats.compare({"a": loops, "b": {0: {"x": 0.0}, 7: {"x": 0.0}}}, [("a", "b")])


def test_macro_and_micro_by_hand():
    pairs = {"a": (1, 1), "b": (0, 2), "c": (6, 9)}
    assert stats.mean_over_units([1 / 1, 0 / 2, 6 / 9], stats.SHARE).value == pytest.approx(5 / 9)
    assert stats.ratio_over_loops({0: pairs}).value == pytest.approx(7 / 12)
    estimate = stats.ratio_over_loops({0: pairs | {"d": (0, 0)}})
    assert estimate.value == pytest.approx(7 / 12) and estimate.dropped == 1
    alike = {str(i): (right, 5) for i, right in enumerate((1, 2, 5, 3))}  # as many questions each: micro is macro
    macro = stats.mean_over_units([right / 5 for right, _ in alike.values()], stats.SHARE)
    micro = stats.ratio_over_loops({0: alike})
    assert (micro.low, micro.high) == (pytest.approx(macro.low), pytest.approx(macro.high))


def test_clusters_are_wider_than_pretending_independence():
    rng = np.random.default_rng(3)
    level = rng.normal(0.5, 0.2, size=30)
    nested = {str(i): list(m + rng.normal(0, 0.02, size=10)) for i, m in enumerate(level)}
    honest = stats.mean_over_units(nested, stats.ANY)
    naive = stats.mean_over_units([v for values in nested.values() for v in values], stats.ANY)
    assert honest.n == 30 and honest.value == pytest.approx(naive.value)
    assert honest.high - honest.low > 2 * (naive.high - naive.low)


@pytest.mark.parametrize("loops", [3, 5])
@pytest.mark.parametrize("bounds", [stats.SHARE, stats.DIFFERENCE])
def test_few_loops_and_many_passages_hold_the_truth(loops, bounds):
    """Loops that differ by 8 points, passages by 15, 5 questions each; the truth is the mean of other loops, too."""
    rng, samples = np.random.default_rng(loops), 200
    crossed = passages_only = 0
    for _ in range(samples):
        chance = 0.2 + 0.6 * rng.beta(2, 2, size=(1, 100)) + rng.normal(0, 0.08, size=(loops, 1))
        right = rng.binomial(5, np.clip(chance, 0, 1)) / 5  # (loops, 100)
        estimate = stats.mean_over_loops({s: dict(enumerate(row)) for s, row in enumerate(right)}, bounds)
        crossed += estimate.low <= 0.5 <= estimate.high
        fixed = stats.mean_over_units(list(right.mean(axis=0)), bounds)  # loops as if they were no sample
        passages_only += fixed.low <= 0.5 <= fixed.high
    assert crossed / samples >= 0.90 and passages_only / samples < 0.70, (crossed, passages_only)


def test_crossed_loops_and_passages():
    rng = np.random.default_rng(5)
    passage = rng.uniform(0.3, 0.7, size=40)

    def over(*shifts: float, **options) -> stats.Estimate:
        grid = {s: {str(i): value + shift for i, value in enumerate(passage)} for s, shift in enumerate(shifts)}
        return stats.mean_over_loops(grid, stats.SHARE, **options)

    same, shifted, one = over(0, 0, 0), over(-0.3, 0, 0.3), over(0)
    assert same.value == pytest.approx(shifted.value) == pytest.approx(one.value)
    assert (same.n, same.loops, same.interval) == (shifted.n, shifted.loops, shifted.interval) == (40, 3, "crossed")
    assert (one.n, one.loops, one.interval) == (40, 1, "clustered")
    assert (same.low, same.high) == (pytest.approx(one.low), pytest.approx(one.high))  # copies are no new evidence
    # by hand: loop means 0.3 apart, so t with about 2 degrees of freedom times 0.3 / sqrt(3)
    assert shifted.high - shifted.low > 0.9 * 2 * 4.303 * 0.3 / math.sqrt(3) * 0.7
    nested = stats.mean_over_loops(
        {s: {f"{s}/{i}": value for i, value in enumerate(rng.uniform(0, 1, 50))} for s in range(3)}, stats.ANY
    )
    means = 4.303 / math.sqrt(3)  # passages that no two loops share: the three loop means are the sample
    assert (nested.n, nested.loops) == (150, 3)
    assert 0 < nested.high - nested.low < 2 * means * 0.15


def test_sign_flip_exact_by_hand_and_monte_carlo_agrees():
    assert stats.sign_flip_test([1, 1, 1, 1, 1, 1]) == pytest.approx(2 / 64)
    assert stats.sign_flip_test([1, -1, 1, -1]) == stats.sign_flip_test([0.3]) == 1.0
    assert math.isnan(stats.sign_flip_test([])) and math.isnan(stats.sign_flip_test([math.nan]))
    rng = np.random.default_rng(7)
    draws = rng.normal(0.4, 1, size=14)
    exact = stats.sign_flip_test(draws)
    with_padding = stats.sign_flip_test([*draws, 0.0, 0.0])  # zeros flip to themselves, but force Monte Carlo
    assert with_padding == pytest.approx(exact, abs=0.015)
    assert stats.sign_flip_test([1] * 14) == 2 / 2**14  # the last that is exact
    drawn = stats.sign_flip_test([1] * 15) * 10_001  # of 10 000 patterns, and the one observed
    assert drawn == pytest.approx(round(drawn), abs=1e-9) and 1 <= round(drawn) <= 5
    assert stats.sign_flip_test([1] * 40) == 1 / 10_001  # never 0


def test_sign_flip_rejects_at_its_level_under_the_null():
    rng = np.random.default_rng(11)
    rejections = sum(stats.sign_flip_test(rng.normal(size=10)) <= 0.05 for _ in range(400))
    assert 0.02 <= rejections / 400 <= 0.08


def test_separable_has_one_definition():
    assert not stats.separable(stats.mean_over_units([0.5, 0.6, 0.5], stats.DIFFERENCE))
    assert stats.separable(stats.mean_over_units([0.5, 0.6, 0.5, 0.4, 0.5, 0.7], stats.DIFFERENCE))
    assert not stats.separable(stats.Estimate(0.1, -0.01, 0.2, 50))
    assert not stats.separable(stats.Estimate(0.1, 0.0, 0.2, 50))  # an end at zero does not exclude it
    assert not stats.separable(stats.Estimate(-0.1, -0.2, 0.0, 50))
    assert not stats.separable(stats.Estimate(0.1, 0.05, 0.2, 5)) and stats.separable(stats.Estimate(0.1, 0.05, 0.2, 6))
    # why six: of five pairs that all agree two of 2^5 patterns are as far, of six two of 2^6
    assert stats.sign_flip_test([1] * 5) > 0.05 > stats.sign_flip_test([1] * 6)
    assert stats.separable(stats.Estimate(-0.1, -0.2, -0.01, 50, p=0.049))
    assert not stats.separable(stats.Estimate(-0.1, -0.2, -0.01, 50, p=0.05))  # the interval alone is not enough


def test_one_family_of_differences_is_adjusted_as_one():
    rng = np.random.default_rng(8)
    arms = {
        name: {0: dict(enumerate(rng.normal(level, 0.1, size=14)))}
        for name, level in (("a", 0.1), ("b", 0.05), ("c", 0.0))
    }
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    alone = {pair: stats.compare(arms, [pair])[pair].p for pair in pairs}
    raw = stats.sign_flip_test([arms["a"][0][i] - arms["b"][0][i] for i in range(14)])
    assert alone["a", "b"] == raw
    assert {pair: e.p for pair, e in stats.compare(arms, pairs).items()} == stats.holm(alone)
    assert stats.holm(alone)["b", "c"] > alone["b", "c"]


def test_holm_by_hand():
    adjusted = stats.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    assert adjusted["a"] == pytest.approx(0.03)
    assert adjusted["c"] == pytest.approx(0.06)
    assert adjusted["b"] == pytest.approx(0.06)  # never smaller than a smaller p-value's
    assert math.isnan(adjusted["d"])


def test_best_of_k_of_equal_edits_is_luck():
    rng = np.random.default_rng(2)
    rewards = rng.binomial(5, 0.4, size=(300, 5)) / 5  # every self-edit is equally good
    fresh = rng.binomial(5, 0.4, size=300) / 5
    shown = stats.best_of_k_bias({0: dict(enumerate(rewards))}, {0: dict(enumerate(fresh))})
    assert shown["reward_best_of_k"].value > 0.6
    assert abs(shown["reward_selected_fresh_seed"].value - shown["reward_mean"].value) < 0.05
    gap = shown["reward_best_of_k"]
    assert gap.low > shown["reward_selected_fresh_seed"].high
    assert (gap.n, gap.loops) == (300, 1)


def test_best_of_k_uses_the_same_passages_throughout():
    rewards = {0: {"a": [0.0, 1.0], "b": [math.nan, math.nan]}, 1: {"c": [0.5, 0.5]}}
    shown = stats.best_of_k_bias(rewards, {0: {"a": 0.5, "b": 0.5}, 1: {"c": math.nan}})
    assert {estimate.n for estimate in shown.values()} == {1}
    assert {estimate.dropped for estimate in shown.values()} == {2}
    assert shown["reward_best_of_k"].value == 1.0


def test_reliability_recovers_the_planted_variance():
    rng = np.random.default_rng(4)
    edit = rng.normal(0, 0.1, size=(400, 5, 1))
    cube = 0.5 + rng.normal(0, 0.3, size=(400, 1, 1)) + edit + rng.normal(0, 0.2, size=(400, 5, 3))
    cube[7, 0, 0] = math.nan
    found = stats.reliability(cube)
    assert found.value == pytest.approx(0.01 / (0.01 + 0.04 / 3), abs=0.06)
    assert (found.n, found.dropped) == (399, 1)
    ragged = [one[: 3 + k % 3] for k, one in enumerate(cube)]
    assert stats.reliability(ragged).value == pytest.approx(found.value, abs=0.06)
    assert math.isnan(stats.reliability(cube[:, :, :1]).value)  # one seed cannot tell signal from noise
    assert math.isnan(stats.reliability(np.full((4, 3, 2), 0.5)).value)  # nothing differs: no share of nothing
    assert stats.reliability([[[0.0, 1.0], [1.0, 0.2]]] * 3).value == 0  # less than the seeds would make is none
    # by hand: means 0 and 3, so MS_edit = 2 × 4.5; within 0.5 and 2, mean 1.25
    assert stats.reliability([[[-0.5, 0.5], [2.0, 4.0]]]).value == pytest.approx(1 - 1.25 / 9)


def test_an_estimate_in_words():
    assert str(stats.Estimate(0.5, 0.25, 0.75, 9)) == "0.500 [0.250, 0.750] (n = 9 passage)"
    assert str(stats.Estimate(0.5, 0.25, 0.75, 9, "task", loops=2)) == "0.500 [0.250, 0.750] (n = 9 task × 2 loops)"
    assert str(stats.Estimate(0.5, math.nan, math.nan, 1)) == "0.500 (no interval, n = 1 passage)"


def test_row_has_the_columns_of_results():
    row = stats.Estimate(0.5, 0.4, 0.6, 10).row("knowledge/restem", "frozen", "accuracy", "clean", "seedling")
    assert [*row, "run"] == list(lifecycle.COLUMNS)
