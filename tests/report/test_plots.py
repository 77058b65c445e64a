"""Figures draw what the table says, on the axes they are given, and nothing else."""

import math
import re

import pytest

pd = pytest.importorskip("pandas")
matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from conftest import REPOSITORY  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from seal_lib.errors import DataError  # noqa: E402
from seal_lib.report import arms, figures, plots, stats, tables  # noqa: E402
from seal_lib.report import marks as marks_module  # noqa: E402
from seal_lib.report.marks import colour  # noqa: E402
from seal_lib.report.results import read_results  # noqa: E402

SINGLE, LOOP = "knowledge/single_passage", "knowledge/restem"


def row(arm, value, metric="accuracy", experiment=LOOP, half=0.05, paper=math.nan, protocol="clean"):
    return {
        "experiment": experiment,
        "arm": arm,
        "metric": metric,
        "value": value,
        "low": value - half,
        "high": value + half,
        "n": 40,
        "unit": "passage",
        "loops": 1,
        "dropped": 0,
        "interval": "BCa",
        "p": math.nan,
        "grader": "exact",
        "protocol": protocol,
        "model": "small-7b",
        "paper_value": paper,
        "paper_source": "",
        "run": "r",
    }


def results():
    rows = [
        row("frozen", 0.05),
        row("own_untrained", 0.2, paper=0.397),
        row("seal_round_1", 0.5, paper=0.437),
        row("seal_round_2", 0.75, paper=0.47),
        row("random_round_1", 0.22),
        row("external", 0.8, paper=0.463),
        row("seal_round_1", 0.52, experiment=f"{LOOP}/seed_0"),
        row("seal_round_1", 0.48, experiment=f"{LOOP}/seed_1"),
        row("own_untrained", 0.2, experiment=f"{LOOP}/seed_0"),
        row("seal_round_2 - own_untrained", 0.55, "difference"),
        row("random_round_1 - own_untrained", 0.02, "difference"),
        row("own_untrained", 0.1, "blank_rate"),
        row("seal_round_1", 0.06, "blank_rate"),
    ]
    for arm, forward in (("own_untrained", 0.2), ("seal_round_1", 0.7)):
        rows += [row(arm, forward, "style_share:forward"), row(arm, 1 - forward, "style_share:remark")]
        rows += [row(arm, forward + 0.2, "coverage")]
    for k in (1, 2):
        rows += [row(f"round_{k}", 0.2 * k, "reward_mean"), row(f"round_{k}", 0.4 * k, "reward_best_of_k")]
        rows += [row(f"round_{k}", 0.3 * k, "reward_selected_fresh_seed")]
    return pd.DataFrame(rows).astype({"n": "Int64"})


FUNCTIONS = [
    plots.accuracy_by_arm,
    plots.blank_rate_by_arm,
    plots.differences,
    plots.accuracy_by_round,
    plots.coverage_by_round,
    plots.style_by_round,
    plots.reward_honesty,
]


def pooled():
    frame = results()
    return frame[frame["experiment"] == LOOP]


def table_for(function):
    return results() if function is plots.accuracy_by_round else pooled()


def axes():
    return plt.subplots()[1]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def marks(ax, kind):
    """gid -> (x, y) data of the lines of one kind (value, interval, paper)."""
    return {line.get_gid(): line.get_data() for line in ax.lines if str(line.get_gid()).startswith(kind)}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_draws_on_the_given_axes_and_touches_no_global_style(function):
    before, open_figures = dict(matplotlib.rcParams), None
    ax = axes()
    open_figures = plt.get_fignums()
    table = table_for(function)
    copy = table.copy(deep=True)
    assert function(table, ax) is ax
    assert ax.has_data()
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == open_figures
    pd.testing.assert_frame_equal(table, copy)  # pure: the table is not changed either


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_value_has_its_interval_drawn(function):
    ax = function(table_for(function), axes())
    values = [gid.split(":", 1)[1] for gid in marks(ax, "value")]
    intervals = {gid.split(":", 1)[1] for gid in marks(ax, "interval")}
    bands = len(ax.patches)  # level lines carry a band instead
    assert intervals and all(arm in intervals or bands for arm in values)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_one_unit_without_intervals_is_drawn_too(function, tmp_path):
    table = table_for(function).assign(low=math.nan, high=math.nan, n=1).drop(columns=["paper_value", "paper_source"])
    figures.draw(function, table, "one_unit", tmp_path)
    assert (tmp_path / "one_unit.png").stat().st_size > 5000


def test_accuracy_by_arm_draws_the_numbers_of_the_table():
    ax = plots.accuracy_by_arm(pooled(), axes())
    drawn = {gid.split(":")[1]: float(xy[0][0]) for gid, xy in marks(ax, "value").items()}
    table = pooled()
    expected = table[table["metric"] == "accuracy"].set_index("arm")["value"].to_dict()
    assert drawn == pytest.approx(expected)
    assert list(marks(ax, "interval")["interval:frozen"][0]) == pytest.approx([0.0, 0.1])
    blanks = sorted(patch.get_width() for patch in ax.patches)
    assert blanks == pytest.approx([0.06, 0.1])
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels[0] == "frozen model" and labels[-1] == "stronger writer's notes"
    assert ax.yaxis_inverted()  # the first arm is on top


def test_an_arm_that_did_not_run_is_a_gap_not_a_zero():
    table = tables.with_gaps(pd.DataFrame([row("frozen", 0.05, experiment=SINGLE)]).astype({"n": "Int64"}), SINGLE)
    ax = plots.accuracy_by_arm(table, axes())
    assert list(marks(ax, "value")) == ["value:frozen"]
    assert len(ax.get_yticklabels()) == 5  # the paper's other four arms keep their lines
    assert sum(text.get_text() == "not run" for text in ax.texts) == 4
    papers = [line for line in ax.lines if line.get_gid() == "paper"]
    assert sorted(float(line.get_xdata()[0]) for line in papers) == pytest.approx([0.335, 0.397, 0.463, 0.470])


def test_a_round_that_did_not_run_breaks_the_line():
    table = pooled()
    table.loc[(table["arm"] == "seal_round_1") & (table["metric"] == "accuracy"), ["value", "low", "high"]] = math.nan
    ax = plots.accuracy_by_round(table, axes())
    lines = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 3 and line.get_gid() is None]
    assert any(math.isnan(y[1]) and y[2] == 0.75 for y in lines)
    without = table[~((table["arm"] == "seal_round_1") & (table["metric"] == "accuracy"))]
    ax = plots.accuracy_by_round(without, axes())
    assert "not run" in [text.get_text() for text in ax.texts]


def test_paper_is_a_hollow_diamond_that_names_its_model():
    ax = plots.accuracy_by_round(results(), axes())
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert len(diamonds) == 3 and {line.get_markerfacecolor() for line in diamonds} == {"none"}
    assert "paper (Qwen2.5-7B, SQuAD)" in [text.get_text() for text in ax.get_legend().get_texts()]
    grids = pooled().assign(experiment="arc/few_shot")
    ax = plots.accuracy_by_arm(grids, axes())
    assert "paper (Llama-3.2-1B, ARC)" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_seedling_has_no_diamond_beside_it():
    """Its order of arms was built in; the tables keep the paper's column."""
    made = results().assign(model="seedling-knowledge")
    for draw in (plots.accuracy_by_round, plots.accuracy_by_arm, plots.reward_honesty):
        ax = draw(made[made["experiment"] == LOOP], axes())
        assert not [line for line in ax.lines if line.get_gid() == "paper" or line.get_marker() == "D"], draw
        told = [text.get_text() for text in [*ax.texts, *(ax.get_legend().get_texts() if ax.get_legend() else [])]]
        assert not [text for text in told if "paper" in text], told
    shown = tables.table(made, LOOP).set_index("arm")
    assert shown.loc["SEAL, round 2", "paper, %"] == "47.0"


def test_rounds_show_each_seed_of_the_loop():
    ax = plots.accuracy_by_round(results(), axes())
    thin = [line for line in ax.lines if line.get_linewidth() == pytest.approx(0.9)]
    ends = sorted(float(line.get_ydata()[-1]) for line in thin)
    assert ends == pytest.approx([0.48, 0.52])


def test_the_random_control_stands_at_the_last_round():
    table = pd.concat([pooled(), pd.DataFrame([row("random_edit_sft", 0.3)])], ignore_index=True)
    ax = plots.accuracy_by_round(table, axes())
    x, y = marks(ax, "value")["value:random_edit_sft"]
    assert (float(x[0]), float(y[0])) == (2.0, 0.3)
    assert "random self-edit kept" in [text.get_text() for text in ax.texts]


def test_a_difference_is_filled_only_when_separable():
    ax = plots.differences(pooled(), axes())
    faces = {line.get_gid(): line.get_markerfacecolor() for line in ax.lines if "value" in str(line.get_gid())}
    assert faces["value:random_round_1 - own_untrained"] == "white"
    assert faces["value:seal_round_2 - own_untrained"] != "white"
    ax = plots.differences(pooled().assign(p=0.09), axes())  # the interval excludes zero, Holm's p does not
    faces = {line.get_gid(): line.get_markerfacecolor() for line in ax.lines if "value" in str(line.get_gid())}
    assert faces["value:seal_round_2 - own_untrained"] == "white"


def test_styles_have_a_line_each_and_a_mark_an_arm():
    table = pooled()
    ax = plots.style_by_round(table, axes())
    assert [text.get_text() for text in ax.get_yticklabels()] == ["person to value", "vague remarks"]
    places = [
        (line.get_gid(), round(float(line.get_ydata()[0])), float(line.get_xdata()[0]))
        for line in ax.lines
        if str(line.get_gid()).startswith("value:")
    ]
    assert places == [
        ("value:own_untrained", 0, 0.2),
        ("value:seal_round_1", 0, 0.7),
        ("value:own_untrained", 1, 0.8),
        ("value:seal_round_1", 1, pytest.approx(0.3)),
    ]
    gone = (table["arm"] == "own_untrained") & (table["metric"] == "style_share:forward")
    ax = plots.style_by_round(table[~gone], axes())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["SEAL, round 1", "untrained self-edits"]


def test_differences_are_points_and_those_to_the_frozen_model_stay_in_the_table():
    frozen = pd.DataFrame([row("seal_round_2 - frozen", 0.7, "difference")])
    ax = plots.differences(pooled(), axes())
    ticks = [ax.xaxis.get_major_formatter()(v, 0) for v in (-0.2, 0.0, 0.2)]
    assert ticks == ["−20", "0", "+20"] and ax.get_xlabel().endswith(", points")
    drawn = {
        function: table for function, _, table, _ in plots.pictures(pd.concat([pooled(), frozen]), pooled(), pooled())
    }
    assert "seal_round_2 - own_untrained" in set(drawn[plots.differences]["arm"])
    assert not drawn[plots.differences]["arm"].str.endswith(" - frozen").any()


def test_rates_of_failure_below_one_in_a_hundred_are_no_figure():
    some = pooled()
    few = some.assign(value=some["value"].where(some["metric"] != "blank_rate", 0.004))
    there = [[function for function, *_ in plots.pictures(table, table, table)] for table in (some, few)]
    assert plots.blank_rate_by_arm in there[0] and plots.blank_rate_by_arm not in there[1]


def test_a_figure_says_n_model_protocol_grader_and_95_percent():
    figure = figures.draw(plots.accuracy_by_arm, pooled())
    told = " ".join(figure.get_supxlabel().split())
    assert told == "means with 95 % intervals; n = 40 passages; model small-7b; protocol clean; grader exact"
    both = pd.concat([pooled(), pooled().assign(n=8, loops=3, protocol="authors_v1")])
    assert "n = 8–40 passages; up to 3 loops" in figures.caption(both)
    assert "protocol clean / authors_v1" in figures.caption(both)
    assert figures.caption(pd.DataFrame({"step": [1]})) == ""
    assert "; 3 models; " in figures.caption(pooled().assign(model="3 models"))
    two = figures.panels((plots.accuracy_by_arm, pooled()), (plots.differences, pooled()))
    assert len(two.axes) == 2 and "95 %" in two.get_supxlabel() and plt.get_fignums() == []


def test_names_stand_near_their_marks_and_hide_none():
    ax = axes()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    at = [(0.5 + 0.01 * k, 0.5 + 0.01 * (k % 3), f"arm number {k}", "#0072B2") for k in range(8)]
    marks_module.names_near(ax, at)
    ax.figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without their leaders
    hidden = [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a.overlaps(b)]
    assert len(boxes) == 8 and not hidden


def test_names_stand_beside_intervals_and_not_on_them():
    """A name that an interval strikes through cannot be read."""
    ax = axes()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    at = [(0.3, 0.5, "the first arm", "#0072B2"), (0.36, 0.55, "the second arm", "#D55E00")]
    for x, y, *_ in at:
        ax.plot([x, x], [y - 0.2, y + 0.2])
    marks_module.names_near(ax, at)
    ax.figure.canvas.draw()
    upright = [line.get_window_extent() for line in ax.lines]
    for text in ax.texts:
        box = Text.get_window_extent(text)
        assert not [line for line in upright if box.x0 < line.x0 < box.x1 and line.y0 < box.y1 and box.y0 < line.y1]


def test_names_at_the_right_move_as_little_as_they_can():
    assert marks_module.apart([0.0, 0.5, 0.9], 0.1) == pytest.approx([0.0, 0.5, 0.9])
    assert marks_module.apart([0.2, 0.5, 0.5], 0.1) == pytest.approx([0.2, 0.45, 0.55])  # both ways, not only up
    ax = axes()
    ax.set(ylim=(0.1, 100), yscale="log")
    marks_module.names_at_right(ax, [(24.0, "a", "#0072B2"), (25.0, "b\nc", "#0072B2"), (0.5, "d", "#0072B2")])
    ax.figure.canvas.draw()
    low, a, b = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert not a.overlaps(b) and ax.transAxes.inverted().transform((0, low.y0))[1] < 0.3


def test_a_legend_names_only_what_can_be_seen():
    few = pooled().assign(value=pooled()["value"].where(pooled()["metric"] != "blank_rate", 0.0))
    ax = plots.accuracy_by_arm(few.assign(paper_value=math.nan), axes())
    assert ax.get_legend() is None and not ax.patches


def test_the_papers_other_arms_are_no_gap_of_a_seedling(tmp_path):
    def arms_of(model):
        rows = pd.DataFrame([row("frozen", 0.05, experiment=SINGLE)]).assign(model=model).astype({"n": "Int64"})
        seen = []
        figures.gallery(rows, tmp_path, [lambda own, full, rows: seen.extend(full["arm"]) or []])
        return seen

    assert len(arms_of("Qwen/Qwen2.5-7B")) == 5
    assert arms_of("seedling-knowledge") == ["frozen"]


def test_figures_are_headed_and_labelled_for_people():
    for scale in ("seedling", "seedling-full"):
        table = read_results(REPOSITORY / "figures" / scale / "results.csv")
        names = set(table["experiment"].str.replace(r"/(seed_\w+|tasks|choices|texts_\d+)$", "", regex=True))
        drawn = {name for name in names if not re.fullmatch("continual/(matrix|maps|tuning)", name)}  # own titles
        assert not [name for name in drawn if tables.title(name) == name or "_" in tables.title(name)]
    ticks = [tick for tick, _ in arms.by_round([row(f"{arm}_round_0", 0.5) for arm in ("no_prompt", "seal")])]
    assert ticks == ["round 0", "no prompt\nround 0"]


def test_an_arm_that_is_there_twice_is_refused():
    table = pd.concat([pooled(), pd.DataFrame([row("frozen", 0.3, protocol="authors_v1")])])
    with pytest.raises(DataError, match="'frozen' twice"):
        plots.accuracy_by_arm(table, axes())
    with pytest.raises(DataError, match="no row with metric 'coverage'"):
        plots.coverage_by_round(pooled().query("metric == 'accuracy'"), axes())


def test_loss_curves():
    losses = pd.DataFrame(
        [{"arm": "own_untrained", "adapter": a, "step": t, "loss": 3.0 - t + a} for a in range(3) for t in range(3)]
    )
    ax = plots.loss_curves(losses, axes())
    bold = max(ax.lines, key=lambda line: line.get_linewidth())
    assert list(bold.get_ydata()) == [4.0, 3.0, 2.0]  # the median adapter
    assert "median of 3" in ax.get_legend().get_texts()[0].get_text()


def test_colours_are_fixed_and_rounds_get_darker():
    def light(arm):
        return sum(int(colour(arm)[i : i + 2], 16) for i in (1, 3, 5))

    assert light("seal_round_1") > light("seal_round_2") > light("seal_round_3")
    assert colour("seal_round_9") == colour("seal_round_3")
    arms = ["frozen", "passage_only", "own_untrained", "seal_round_2", "random_round_1", "external", "gold_notes"]
    assert len({colour(arm) for arm in arms}) == len(arms)


def test_saved_files_are_the_same_bytes_twice_and_the_csv_is_what_is_drawn(tmp_path):
    before = dict(matplotlib.rcParams)
    for folder in ("a", "b"):
        figures.draw(plots.accuracy_by_arm, pooled(), "one", tmp_path / folder)
    for kind in ("png", "pdf", "csv"):
        assert (tmp_path / "a" / f"one.{kind}").read_bytes() == (tmp_path / "b" / f"one.{kind}").read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["one.csv", "one.pdf", "one.png"]
    saved = read_results(tmp_path / "a" / "one.csv")
    assert set(saved["metric"]) == {"accuracy", "blank_rate"}  # nothing that the figure does not show
    ax = plots.accuracy_by_arm(saved, axes())
    drawn = {gid.split(":")[1]: float(xy[0][0]) for gid, xy in marks(ax, "value").items()}
    assert drawn == saved[saved["metric"] == "accuracy"].set_index("arm")["value"].to_dict()
    assert b"CreationDate" not in (tmp_path / "a" / "one.pdf").read_bytes()
    assert b"Type3" not in (tmp_path / "a" / "one.pdf").read_bytes()  # editable TrueType, as venues ask
    assert dict(matplotlib.rcParams) == before
    plt.close("all")
    figure = figures.draw(plots.differences, pooled())
    assert figure.axes and plt.get_fignums() == []  # closed, so a notebook shows it once


def test_gallery_draws_what_there_is_data_for(tmp_path):
    names = figures.gallery(results(), tmp_path, [plots.pictures])
    stem = "knowledge_restem_"
    assert set(names) == {stem + function.__name__ for function in FUNCTIONS}
    assert all((tmp_path / f"{name}.png").exists() for name in names)
    assert figures.gallery(results().iloc[:0], tmp_path, [plots.pictures]) == []
    both = pd.concat([pooled(), pooled().assign(protocol="authors_v1")], ignore_index=True)
    split = figures.gallery(both.query("metric == 'accuracy'"), tmp_path / "two", [plots.pictures])
    assert "knowledge_restem_authors_v1_small_7b_accuracy_by_arm" in split
    assert "knowledge_restem_clean_small_7b_accuracy_by_arm" in split


def test_long_labels_leave_the_axis_its_room(tmp_path):
    """Ticks must not stand on each other: they did, beside the labels of the forgetting study."""
    table = read_results(REPOSITORY / "figures" / "seedling" / "results.csv")
    table = table[(table["experiment"] == "continual/mitigations") & (table["protocol"] == "clean")]
    ax = figures.draw(plots.differences, table, "differences", tmp_path).axes[0]  # saved, so that it is laid out
    low, high = ax.get_xlim()
    ticks = [t for t in ax.get_xticklabels() if t.get_text() and low <= t.get_position()[0] <= high]
    boxes = sorted((tick.get_window_extent() for tick in ticks), key=lambda box: box.x0)
    assert len(boxes) >= 3 and all(a.x1 + 2 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


def test_the_curve_by_tokens_has_a_point_a_corpus_and_a_level_for_who_was_not_trained() -> None:
    rows = []
    for arm, points in {"external": ((1, 100.0, 0.2), (5, 500.0, 0.6)), "frozen": ((5, math.nan, 0.1),)}.items():
        for texts, tokens, right in points:
            experiment = "knowledge/cpt_9_full" + ("" if texts == 5 else f"/texts_{texts}")
            for metric, value in (("accuracy", right), ("tokens_trained", tokens)):
                rows.append(stats.Estimate(value, value - 0.05, value + 0.05, 9).row(experiment, arm, metric))
    ax = plt.subplots()[1]
    plots.accuracy_by_tokens(pd.DataFrame(rows), ax)
    lines = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in ax.lines if len(line.get_xdata()) == 2}
    assert lines[(100.0, 500.0)] == (0.2, 0.6) and (0.1, 0.1) in lines.values() and ax.get_xscale() == "log"
    assert {text.get_text() for text in ax.texts} == {"stronger writer's notes", "frozen model"}


def test_the_curve_by_passages_has_a_point_a_number_whatever_the_texts() -> None:
    given = [
        ("cpt_9_full", "external", 0.6),
        ("cpt_30_full", "external", 0.4),
        ("cpt_30_full/texts_1", "external", 0.1),
    ]
    given += [("cpt_9_full", "frozen", 0.05), ("cpt_30_full", "frozen", 0.06)]
    made = [stats.Estimate(v, v - 0.05, v + 0.05, 9).row(f"knowledge/{n}", arm, "accuracy") for n, arm, v in given]
    ax = plt.subplots()[1]
    plots.accuracy_by_passages(pd.DataFrame(made), ax)
    lines = {tuple(line.get_ydata()) for line in ax.lines if tuple(line.get_xdata()) == (9, 30)}
    assert lines == {(0.6, 0.4), (0.05, 0.06)}
    assert ax.get_xlabel() == "passages in the corpus" and ax.get_xscale() == "log"
