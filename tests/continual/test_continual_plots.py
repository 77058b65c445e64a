"""Figures of the forgetting study show the numbers they are given."""

import math
import random

import matplotlib
import numpy as np
import pandas as pd
import pytest

from seal_lib.continual import figures, metrics, plots, tables
from seal_lib.continual.arm import stores_text
from seal_lib.continual.rules import RULES
from seal_lib.errors import DataError
from seal_lib.report import arms

matplotlib.use("Agg")
ARMS = {"frozen": 0.0, "sequential": 0.5, "replay": 0.9, "joint": 0.95, "isolation_oracle": 1.0, "isolation": 0.97}


def study(K: int = 4, S: int = 6) -> dict[str, list[dict]]:
    """Rows of a study in which a passage is learned with 0.9 and keeps a share of it with every later edit."""
    draw, by_arm = random.Random(0), {}

    def digits(p: float, n: int = 10) -> str:
        return "".join(str(int(draw.random() < p)) for _ in range(n))

    for arm, keep in ARMS.items():
        by_arm[arm] = [
            {
                "stream": f"s{s}",
                "k": k,
                "protocol": "clean",
                "outcome": "ok",
                "prior": digits(0.9 * keep**k if keep else 0.9),
                "right": [digits(0.9 * keep ** (k - i - 1) if keep and i < k else 0.1) for i in range(K)],
                "blank": ["0" * 10] * K,
                "tokens": 100 if k else 0,
                "stored": 10,
                "norm": 1.0,
                "drift": 0.1,
            }
            for k in range(K + 1)
            for s in range(S)
        ]
    return by_arm


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    by_arm = study()
    label = {"model": "m", "grader": "exact"}
    rows = tables.result_rows(by_arm, seconds=dict.fromkeys(by_arm, 0.5), **label)
    rows += tables.comparisons(by_arm, **label)[0] + tables.matrix_rows(by_arm, **label)
    rows += tables.matrix_rows(by_arm, experiment="continual/maps", **label)
    return pd.DataFrame(rows + tables.length_rows(by_arm, [2, 4], **label))


def marks(ax, kind: str = "value") -> dict[str, tuple[float, float]]:
    lines = [line for line in ax.get_lines() if str(line.get_gid()).startswith(f"{kind}:")]
    return {line.get_gid().split(":")[1]: (line.get_xdata(), line.get_ydata()) for line in lines}


def test_final_accuracy_is_learning_plus_transfer() -> None:
    """What the grey lines of the scatter rest on: AA_K = LA + BWT (K−1)/K."""
    R = tables.stack(study()["sequential"])
    line = metrics.learning_accuracy(R) + metrics.backward_transfer(R) * 3 / 4
    assert np.allclose(line, metrics.average_accuracy(R))


def test_the_released_matrix_and_ours(results: pd.DataFrame) -> None:
    theirs = plots.released_matrix()
    assert theirs.shape == (9, 8) and theirs[0, 0] == 0.331 and theirs[8, 7] == 0.340
    assert np.isnan(theirs[1, 1]) and np.isnan(theirs).sum() == 28
    cells = results[results.experiment == tables.MATRIX]
    ours = plots.matrix_of(cells, "sequential")
    assert np.allclose(ours, tables.stack(study()["sequential"]).mean(0))
    figure = figures.paper_figure(cells, ["sequential"])
    texts = [t.get_text() for t in figure.axes[1].texts]
    assert len(texts) == 20 and texts[0] == f"{100 * ours[0, 0]:.0f}"
    assert len(figure.axes[0].texts) == 72 - 28  # what they did not measure carries no number
    with pytest.raises(DataError, match="no matrix of arm 'nobody'"):
        plots.matrix_of(cells, "nobody")


def test_marks_lie_at_their_values(results: pd.DataFrame) -> None:
    rows = results[results.experiment == tables.EXPERIMENT]
    value = rows.set_index(["arm", "metric"]).value
    figure = figures.scatter_figure(rows)
    for arm, (x, y) in marks(figure.axes[0]).items():
        assert (x[0], y[0]) == (value[arm, "LA_gain"], value[arm, "BWT"])
    assert set(marks(figure.axes[0])) == set(ARMS) - {"frozen"}
    (ax,) = figures.age_figure(rows, ["sequential", "joint"]).axes
    assert list(marks(ax)["sequential"][1]) == [value["sequential", f"age_{t}"] for t in range(4)]
    ax = figures.overview_figure(rows).axes[2]
    assert marks(ax)["replay"][0][0] == value["replay", "prior_kept"]
    assert set(marks(ax, "interval")) == set(ARMS)
    (ax,) = figures.cost_figure(rows).axes
    assert marks(ax)["joint"][1][0] == value["joint", "AA_4"]
    lengths = results[results.experiment == "continual/stream_length"]
    ax = figures.length_figure(lengths).axes[0]
    assert list(marks(ax)["replay"][0]) == [2, 4]


def test_fates_fill_the_bar(results: pd.DataFrame) -> None:
    rows = results[results.experiment == tables.EXPERIMENT]
    ax = figures.fates_figure(rows, ["sequential", "joint"]).axes[0]
    tops = {}
    for bar in ax.patches:
        tops[round(bar.get_x(), 3)] = max(tops.get(round(bar.get_x(), 3), 0), bar.get_y() + bar.get_height())
    assert len(tops) == 4 and all(top == pytest.approx(1.0) for top in tops.values())
    assert figures.fates_figure(rows, ["nobody"]) is None
    axes = figures.fates_figure(rows, list(ARMS)[:5]).axes  # three columns, two lines
    assert [bool(ax.get_xlabel()) for ax in axes[:5]] == [False, False, True, True, True]


def test_a_figure_says_that_it_has_intervals_only_where_it_draws_them(results: pd.DataFrame) -> None:
    rows = {name: some for name, some in results.groupby("experiment")}
    for drawn in (
        figures.paper_figure(rows[tables.MATRIX], ["sequential"]),
        figures.maps_figure(rows["continual/maps"], ["sequential"]),
        figures.fates_figure(rows[tables.EXPERIMENT], ["sequential"]),
    ):
        assert "intervals are in the CSV file" in " ".join(drawn.get_supxlabel().split())
    assert "means with 95 % intervals;" in figures.age_figure(rows[tables.EXPERIMENT], ["sequential"]).get_supxlabel()


def test_an_arm_without_a_value_is_named_not_drawn(results: pd.DataFrame) -> None:
    rows = results[results.experiment == tables.EXPERIMENT].copy()
    lost = (rows.arm == "replay") & rows.metric.isin(["accuracy", "BWT", "LA_gain"])
    rows.loc[lost, ["value", "low", "high"]] = math.nan
    axes = figures.overview_figure(rows).axes
    assert "replay" not in marks(axes[0]) and [t.get_text() for t in axes[0].texts] == ["diverged"]
    assert "replay" not in marks(figures.scatter_figure(rows).axes[0])


def test_the_gallery_writes_every_figure(results: pd.DataFrame, tmp_path) -> None:
    names = figures.gallery(results, tmp_path)
    files = {f"{name}.{kind}" for name in names for kind in ("png", "pdf", "csv")}
    assert len(names) == 8 and {path.name for path in tmp_path.iterdir()} == files


def test_targets_are_judged() -> None:
    found = {line["target"]: line for line in tables.targets(study())}
    assert found["sequential: BWT"]["met"] and found["best single-weight arm: share of joint's gain"]["arm"] == "replay"
    assert not found["no text stored: share of joint's gain"]["met"]  # none of those arms ran


def test_figures_know_every_rule_and_which_store_text() -> None:
    assert set(RULES) <= set(arms.ARMS)
    trained = {name for name, rule in RULES.items() if rule.trains}
    assert {name for name in trained if stores_text(name)} == {n for n in trained if "text" in RULES[n].stores}
