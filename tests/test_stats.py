"""Statistics mean what they say. Run: pytest tests/test_stats.py"""

import math

import numpy as np
import pytest

from seal_lib import results, runs, stats
from seal_lib.errors import DataError


def test_intervals_cover_the_truth_at_the_nominal_rate():
    rng = np.random.default_rng(1)
    trials, hits = 400, 0
    for trial in range(trials):
        sample = rng.beta(2, 3, size=60)  # true mean 0.4
        estimate = stats.bootstrap_mean(sample, seed=trial, draws=600)
        hits += estimate.low <= 0.4 <= estimate.high
    assert 0.91 <= hits / trials <= 0.98  # sd of the rate is 0.011; a 90 % or 99 % interval would fail


def test_order_of_units_and_repetition_change_nothing():
    values = {f"p{i}": v for i, v in enumerate([0.1, 0.9, 0.4, 0.4, 0.7])}
    backwards = dict(reversed(values.items()))
    assert stats.bootstrap_mean(values) == stats.bootstrap_mean(backwards) == stats.bootstrap_mean(values)
    assert stats.bootstrap_mean(values, seed=1).low != stats.bootstrap_mean(values, seed=2).low or (
        stats.bootstrap_mean(values, seed=1).high != stats.bootstrap_mean(values, seed=2).high
    )


def test_nan_units_are_left_out_and_counted():
    estimate = stats.bootstrap_mean([0.0, 1.0, math.nan, None])
    assert (estimate.value, estimate.n, estimate.dropped) == (0.5, 2, 2)


def test_one_unit_has_a_value_but_no_interval():
    for estimate in (stats.bootstrap_mean([0.25]), stats.micro([1], [4]), stats.cluster_bootstrap({"p": [0.0, 0.5]})):
        assert estimate.value == 0.25 and estimate.n == 1
        assert math.isnan(estimate.low) and math.isnan(estimate.high)
        assert not stats.separable(estimate)
    nothing = stats.bootstrap_mean([])
    assert math.isnan(nothing.value) and nothing.n == 0


def test_pairing_is_narrower_when_passages_differ_in_difficulty():
    rng = np.random.default_rng(0)
    easy = rng.uniform(0, 0.8, size=80)
    a = {str(i): e + 0.1 + rng.normal(0, 0.02) for i, e in enumerate(easy)}
    b = {str(i): e for i, e in enumerate(easy)}
    paired = stats.paired_difference(a, b)
    alone = stats.bootstrap_mean(a)
    assert paired.value == pytest.approx(0.1, abs=0.01)
    assert stats.separable(paired)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_pairing_goes_by_id_and_counts_what_fell_out():
    estimate = stats.paired_difference({"x": 1.0, "y": 0.5, "z": math.nan}, {"y": 0.25, "x": 0.0, "w": 1.0, "z": 0.0})
    assert estimate.value == pytest.approx((1.0 + 0.25) / 2)
    assert (estimate.n, estimate.dropped) == (2, 2)  # w has no partner, z is NaN
    with pytest.raises(DataError, match="same passages"):
        stats.paired_difference({"x": 1.0}, {"y": 1.0})


def test_macro_and_micro_by_hand():
    right, asked = [1, 0, 6], [1, 2, 9]
    assert stats.bootstrap_mean([1 / 1, 0 / 2, 6 / 9]).value == pytest.approx(5 / 9)
    assert stats.micro(right, asked).value == pytest.approx(7 / 12)
    estimate = stats.micro(right + [0], asked + [0])
    assert estimate.value == pytest.approx(7 / 12) and estimate.dropped == 1


def test_clusters_are_wider_than_pretending_independence():
    rng = np.random.default_rng(3)
    level = rng.normal(0.5, 0.2, size=30)
    nested = {str(i): list(m + rng.normal(0, 0.02, size=10)) for i, m in enumerate(level)}
    honest = stats.cluster_bootstrap(nested)
    naive = stats.bootstrap_mean([v for values in nested.values() for v in values])
    assert honest.n == 30 and honest.value == pytest.approx(naive.value)
    assert honest.high - honest.low > 2 * (naive.high - naive.low)


def test_crossed_seeds_and_passages():
    rng = np.random.default_rng(5)
    passage = rng.uniform(0, 1, size=40)
    same = stats.crossed_bootstrap(np.tile(passage, (3, 1)))
    shifted = stats.crossed_bootstrap(np.stack([passage - 0.3, passage, passage + 0.3]))
    assert same.value == pytest.approx(shifted.value) and same.n == 120
    assert shifted.high - shifted.low > 1.5 * (same.high - same.low)  # spread between seeds must widen the interval
    one = stats.crossed_bootstrap([[0.5]])
    assert math.isnan(one.low) and one.value == 0.5


def test_proportion_is_wilson_and_keeps_a_width_at_zero():
    seal = stats.proportion(29, 40)
    assert (round(seal.low, 2), round(seal.high, 2)) == (0.57, 0.84)
    none = stats.proportion(0, 8)
    assert none.low == 0.0 and none.high == pytest.approx(0.324, abs=1e-3)


def test_sign_flip_exact_by_hand_and_monte_carlo_agrees():
    assert stats.sign_flip_test([1, 1, 1, 1, 1, 1]) == pytest.approx(2 / 64)
    assert stats.sign_flip_test([1, -1, 1, -1]) == 1.0
    rng = np.random.default_rng(7)
    draws = rng.normal(0.4, 1, size=14)
    exact = stats.sign_flip_test(draws)
    with_padding = stats.sign_flip_test([*draws, 0.0, 0.0])  # zeros flip to themselves, but force Monte Carlo
    assert with_padding == pytest.approx(exact, abs=0.015)


def test_sign_flip_rejects_at_its_level_under_the_null():
    rng = np.random.default_rng(11)
    rejections = sum(stats.sign_flip_test(rng.normal(size=10)) <= 0.05 for _ in range(400))
    assert 0.02 <= rejections / 400 <= 0.08


def test_separable_refuses_tiny_samples():
    assert not stats.separable(stats.bootstrap_mean([0.5, 0.6, 0.5]))
    assert stats.separable(stats.bootstrap_mean([0.5, 0.6, 0.5, 0.4, 0.5, 0.7]))
    assert not stats.separable(stats.Estimate(0.1, -0.01, 0.2, 50))


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
    shown = stats.best_of_k_bias(rewards, fresh)
    assert shown["reward_best_of_k"].value > 0.6
    assert abs(shown["reward_selected_fresh_seed"].value - shown["reward_mean"].value) < 0.05
    gap = shown["reward_best_of_k"]
    assert gap.low > shown["reward_selected_fresh_seed"].high


def test_best_of_k_uses_the_same_passages_throughout():
    shown = stats.best_of_k_bias([[0.0, 1.0], [math.nan, math.nan], [0.5, 0.5]], [0.5, 0.5, math.nan])
    assert {estimate.n for estimate in shown.values()} == {1}
    assert {estimate.dropped for estimate in shown.values()} == {2}
    assert shown["reward_best_of_k"].value == 1.0
    with pytest.raises(DataError, match="2 passages"):
        stats.best_of_k_bias([[0.0], [1.0]], [1.0])


def test_reliability_recovers_the_planted_variance():
    rng = np.random.default_rng(4)
    edit = rng.normal(0, 0.1, size=(400, 5, 1))
    cube = 0.5 + rng.normal(0, 0.3, size=(400, 1, 1)) + edit + rng.normal(0, 0.2, size=(400, 5, 3))
    found = stats.reliability(cube)
    assert found.of_one == pytest.approx(0.01 / (0.01 + 0.04), abs=0.04)
    assert found.of_mean == pytest.approx(0.01 / (0.01 + 0.04 / 3), abs=0.06)
    assert found.seed_sd == pytest.approx(0.2, abs=0.01)
    assert math.isnan(stats.reliability(cube[:, :, :1]).of_mean)  # one seed cannot tell signal from noise


def test_row_has_the_columns_of_results():
    row = stats.Estimate(0.5, 0.4, 0.6, 10).row("knowledge/restem", "frozen", "accuracy", "clean", "seedling")
    assert [*row, "run"] == results.OWN_COLUMNS == list(runs.COLUMNS)
