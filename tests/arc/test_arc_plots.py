"""Figures of the grid puzzles draw the rows that the experiment makes. Run: pytest tests/arc/test_arc_plots.py"""

import math

import pytest

pd = pytest.importorskip("pandas")
matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402

from seal_lib.arc import augment, grids, tables  # noqa: E402
from seal_lib.arc import plots as arc  # noqa: E402
from seal_lib.arc.domain import Attempt, PuzzleTrial  # noqa: E402
from seal_lib.arc.self_edits import ORACLE, Config  # noqa: E402
from seal_lib.arc.tasks import Pair, Task  # noqa: E402
from seal_lib.errors import DataError  # noqa: E402
from seal_lib.loops.outer import Loop  # noqa: E402
from seal_lib.records import Round, SelfEdit  # noqa: E402
from seal_lib.report import (  # noqa: E402
    figures,
    plots,
    publish,  # noqa: E402
)
from seal_lib.report import tables as report  # noqa: E402
from seal_lib.report.paper_values import paper_index  # noqa: E402
from seal_lib.report.results import read_results  # noqa: E402
from seal_lib.seeds import rng  # noqa: E402

HELD_OUT = [f"task_{k:02d}" for k in range(24)]
RATES, EPOCHS = (1e-5, 1e-4, 1e-3, 1e-2), (1, 2, 4, 8)


def trial(draws, task, arm, skill, known):
    """A made-up self-edit: skilled policies choose larger rates, and these solve more tasks."""
    switches = tuple(s for s in augment.SWITCHES if draws.random() < 0.4 + 0.5 * skill)
    rate = RATES[min(3, int(draws.random() * 2 + 2.4 * skill))]
    strategy = "train_using_output_tokens" if draws.random() < 0.3 + 0.6 * skill else "train_using_all_tokens"
    config = Config(switches, strategy, rate, draws.choice(EPOCHS))
    edit = SelfEdit(f"{task}/{arm}", task, "{}", arm)
    if draws.random() < 0.15 * (1 - skill):
        return PuzzleTrial(edit, Attempt(f"{task}/rejected", task, "not_json"))
    right = draws.random() < (RATES.index(rate) / 3.5) * (1 - 0.02 * int(task[-2:]))
    name = f"{task}/{config.text()}"  # equal configurations of a task are one training
    made = Attempt(name, task, "ok", config=config, steps=1, pass_2=right, cells=1.0 if right else 0.5)
    return PuzzleTrial(edit, known.setdefault((arm, name), made))


def loop(seed):
    draws, known = rng(seed, "made-up loop"), {}
    skills = {"own_untrained": 0.1, "random_config_sft": 0.15, "seal_round_1": 0.6, "seal_round_2": 0.9}
    evaluated = {
        arm: [trial(draws, task, arm, skill, known) for task in HELD_OUT for _ in range(3)]
        for arm, skill in skills.items()
    }
    practised = tuple(trial(draws, f"practice_{k:02d}", "round", 0.1, known) for k in range(12) for _ in range(5))
    rewards = tuple(t.accuracy for t in practised)
    rounds = tuple(Round(k, practised, rewards, (), 1.0) for k in (1, 2))
    again = [t for t in practised if t.accuracy == 1][::2]  # made up: half of what succeeded is selected
    return Loop(seed, rounds, evaluated, (again, again))


@pytest.fixture(scope="module")
def results():
    """results.csv of a made-up experiment, through the code that makes the real one and with the paper's values."""
    fixed = {
        "icl": [Attempt(f"{task}/icl", task, "untrained") for task in HELD_OUT],
        "oracle": [Attempt(f"{t}/oracle", t, "ok", config=ORACLE, pass_2=k % 8 > 0) for k, t in enumerate(HELD_OUT)],
    }
    rows = tables.few_shot_rows(fixed, [loop(0), loop(1)], protocol="clean", model="llama", grader="grid", max_tries=1)
    frame = pd.DataFrame(rows).assign(run="15/seedling/x")
    index = paper_index()
    papers = [index.get((row["experiment"], row["arm"], row["metric"]), {}).get("value", math.nan) for row in rows]
    return frame.assign(paper_value=papers, paper_source="").astype({"n": "Int64"})


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def main(results):
    return results[results["experiment"] == "arc/few_shot"]


def chosen(results):
    return results[results["experiment"] == "arc/few_shot/choices"]


def axes(*shape):
    return plt.subplots(*shape)[1]


def marks(ax, kind):
    """What follows the kind in the gid -> (x, y) data of a line."""
    lines = {str(line.get_gid()): line.get_data() for line in ax.lines}
    return {gid.split(":", 1)[1]: xy for gid, xy in lines.items() if gid.startswith(f"{kind}:")}


def expected(table, metric):
    return table[table["metric"] == metric].set_index("arm")["value"].to_dict()


def drawn(results):
    """(function, table, axes, options) of every figure over results."""
    return [
        (arc.success_by_arm, main(results), axes(), {}),
        (arc.success_by_round, results, axes(), {}),
        (arc.success_by_task, results, axes(), {}),
        (arc.choices, chosen(results), axes(2, 4), {}),
        (arc.success_map, chosen(results), axes(), {"down": "switches", "across": "strategy"}),
    ]


def test_draws_on_the_given_axes_and_touches_nothing_else(results):
    before, copy = dict(matplotlib.rcParams), results.copy(deep=True)
    for function, table, where, options in drawn(results):
        open_figures = plt.get_fignums()
        assert function(table, where, **options) is where
        assert all(ax.has_data() for ax in (list(where.flat)[:7] if hasattr(where, "flat") else [where]))
        assert plt.get_fignums() == open_figures
    assert dict(matplotlib.rcParams) == before
    pd.testing.assert_frame_equal(results, copy)


def test_success_by_arm_is_the_rate_with_rejected_self_edits_and_the_papers_values(results):
    ax = arc.success_by_arm(main(results), axes())
    rates = {arm: float(xy[0][0]) for arm, xy in marks(ax, "value").items()}
    assert rates == pytest.approx(expected(main(results), "success_rate")) and len(rates) == 6
    assert set(marks(ax, "interval")) == set(rates)
    rejected = sorted(patch.get_width() for patch in ax.patches)
    seen = sorted(share for share in expected(main(results), "rejected_rate").values() if share >= 0.01)
    assert rejected == pytest.approx(seen) and rejected[-1] > 0.05
    papers = sorted(float(line.get_xdata()[0]) for line in ax.lines if line.get_gid() == "paper")
    assert papers == [0.0, 0.2, 0.725, 1.0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "paper (Llama-3.2-1B, ARC)",
        "rejected self-edits",
    ]
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "in context only",
        "untrained self-edits",
        "random self-edits kept",
        "SEAL, round 1",
        "SEAL, round 2",
        "oracle",
    ]


def test_success_by_round_has_seeds_levels_and_the_control_beside_the_round_it_learned_from(results):
    ax = arc.success_by_round(results, axes())
    thin = sorted(tuple(line.get_ydata()) for line in ax.lines if line.get_linewidth() == pytest.approx(0.9))
    seeds = [expected(results[results["experiment"] == f"arc/few_shot/seed_{k}"], "success_rate") for k in (0, 1)]
    arms = ("own_untrained", "seal_round_1", "seal_round_2")
    assert thin == sorted(tuple(seed[arm] for arm in arms) for seed in seeds)
    values, pooled = marks(ax, "value"), expected(main(results), "success_rate")
    assert {arm: float(xy[1][0]) for arm, xy in values.items()} == pytest.approx(pooled)
    assert 1 < float(values["random_config_sft"][0][0]) < 1.5
    told = [text.get_text() for text in ax.texts]
    assert {"in context only, paper too", "oracle", "oracle, paper", "SEAL", "random self-edits kept"} == set(told)


def shares_of(ax):
    """(arm, line from the top) -> share."""
    found = [(line.get_gid(), line.get_data()) for line in ax.lines if str(line.get_gid()).startswith("value:")]
    return {(gid.removeprefix("value:"), round(float(y[0]))): float(x[0]) for gid, (x, y) in found}


def test_choices_have_a_panel_each_and_their_marks_are_the_shares(results):
    panels = arc.choices(chosen(results), axes(2, 4))
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in panels.flat]
    assert titles[4:7] == ["tokens in the loss", "learning rate", "epochs"] and titles[7] == ""
    shares = chosen(results)[chosen(results)["metric"].str.startswith("share:")]
    for ax, start in ((panels[0, 0], "use_basic_augmentations="), (panels[1, 1], "learning_rate=")):
        own = shares[shares["metric"].str.startswith(f"share:{start}")]
        ticks = [text.get_text() for text in ax.get_yticklabels()]
        told = {"False": "off", "True": "on", "1e-05": "1e-5", "0.0001": "1e-4", "0.001": "1e-3", "0.01": "0.01"}
        table = {
            (row["arm"], ticks.index(told[row["metric"].split("=")[1]])): row["value"] for row in own.to_dict("records")
        }
        heights = shares_of(ax)
        assert heights == pytest.approx(table)
        assert len(heights) == 4 * len(ticks)  # what an arm never wrote is a measured zero with an interval
        assert len([line for line in ax.lines if str(line.get_gid()).startswith("interval")]) == len(heights)
        for arm in shares["arm"].unique():
            assert sum(height for (a, _), height in heights.items() if a == arm) == pytest.approx(1)
    labels = [text.get_text() for text in panels[1, 3].get_legend().get_texts()]
    assert labels == ["untrained self-edits", "random self-edits kept", "SEAL, round 1", "SEAL, round 2"]
    with pytest.raises(DataError, match="7 panels but 6 axes"):
        arc.choices(chosen(results), axes(2, 3))
    with pytest.raises(DataError, match="'share:'"):
        arc.choices(main(results), axes(2, 4))


def share(arm, value, count, n=20):
    metric = f"share:learning_rate={value!r}"
    return {"arm": arm, "metric": metric, "value": count / n, "low": 0.0, "high": 1.0, "n": n}


def test_rare_values_of_a_choice_stand_together_and_nothing_is_lost():
    rates = [10**-k for k in range(1, 10)]
    table = pd.DataFrame([share("own_untrained", rate, 12 if k == 4 else 1) for k, rate in enumerate(rates)])
    table = pd.concat([table, pd.DataFrame([share("seal_round_1", 1e-5, 20)])], ignore_index=True)
    (ax,) = arc.choices(table, axes())
    ticks = [text.get_text() for text in ax.get_yticklabels()]
    assert len(ticks) == arc.MOST_VALUES and ticks[-1] == "4 others" and "1e-5" in ticks
    heights = shares_of(ax)
    assert heights["own_untrained", len(ticks) - 1] == pytest.approx(4 / 20)
    assert heights["seal_round_1", ticks.index("1e-5")] == 1.0


def test_the_map_writes_share_interval_and_n_and_leaves_unwritten_configurations_blank(results):
    table = chosen(results)
    gone = "success:learning_rate=0.0001|num_train_epochs=4"
    table = table[table["metric"] != gone]
    ax = arc.success_map(table, axes(), "learning_rate", "num_train_epochs")
    cells = table[table["metric"].str.startswith("success:learning_rate")]
    texts = {text.get_gid(): text for text in ax.texts}
    assert len(cells) > 6 and len(texts) == 2 * len(cells)
    rows, columns = ([text.get_text() for text in axis] for axis in (ax.get_yticklabels(), ax.get_xticklabels()))
    assert rows[-1] == "1e-5" and columns == ["1", "2", "4", "8"]  # rates grow upwards
    values = ax.images[0].get_array().filled(math.nan)
    for row in cells.to_dict("records"):
        rate, epochs = row["metric"].removeprefix("success:learning_rate=").split("|num_train_epochs=")
        assert texts[f"value:{rate}|{epochs}"].get_text() == f"{100 * row['value']:.0f}"
        assert texts[f"n:{rate}|{epochs}"].get_text().endswith(f"{row['n']} task{'s' if row['n'] > 1 else ''}")
        x, y = texts[f"value:{rate}|{epochs}"].get_position()
        assert values[round(y), round(x)] == pytest.approx(row["value"])
    assert math.isnan(values[rows.index("1e-4"), columns.index("4")])
    assert ax.patch.get_hatch() and "value:0.0001|4" not in texts
    with pytest.raises(DataError, match="success:epochs="):
        arc.success_map(table, axes(), "epochs", "strategy")
    with pytest.raises(DataError, match="twice"):
        both = pd.concat([table, table.assign(protocol="authors")])
        arc.success_map(both, axes(), "learning_rate", "num_train_epochs")


def test_switches_of_the_map_are_ordered_by_how_many_are_on(results):
    ax = arc.success_map(chosen(results), axes(), "switches", "strategy")
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels[:3] == ["none", "basic", "size"] and labels[-1] == "basic + size + chain + repeat"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["all", "output"]


def test_tasks_are_sorted_by_the_untrained_policy_and_what_did_not_run_stays_empty(results):
    table = results[~((results["metric"] == "success_rate:task_05") & (results["arm"] == "seal_round_2"))]
    ax = arc.success_by_task(table, axes())
    order = [text.get_text() for text in ax.get_yticklabels()]
    tasks = table[table["experiment"] == "arc/few_shot/tasks"]
    known = tasks[tasks["arm"] == "own_untrained"].set_index("metric")["value"].to_dict()
    untrained = [known[f"success_rate:{task}"] for task in order]
    assert len(order) == 24 and untrained == sorted(untrained, reverse=True) and untrained[0] > untrained[-1]
    dots, intervals = marks(ax, "value"), marks(ax, "interval")
    assert set(dots) == set(intervals) and len(dots) == 4 * 24 - 1 and "seal_round_2:task_05" not in dots
    assert not any(name.startswith(("oracle", "icl")) for name in dots)  # one attempt a task has no interval
    spans = {}
    for name, (x, y) in dots.items():
        arm, task = name.split(":")
        assert y[0] == order.index(task)
        value = tasks[(tasks["arm"] == arm) & (tasks["metric"] == f"success_rate:{task}")]["value"].iloc[0]
        spans.setdefault((arm, value), set()).add(round(float(x[0]), 6))
    assert all(len(places) == 1 for places in spans.values())  # one place an arm and value
    ends = sorted(value for arm, value in spans if arm == "seal_round_2")
    (left,), (right,) = spans["seal_round_2", ends[0]], spans["seal_round_2", ends[-1]]
    assert 0.5 < (right - left) / (ends[-1] - ends[0]) < 1
    counts = tasks.loc[tasks["arm"] == "own_untrained", "n"]
    told = f"untrained\nself-edits\nn = {counts.min()}–{counts.max()}"  # distinct configurations
    assert counts.min() < 6 and told in [text.get_text() for text in ax.texts]


GRID = ((0, 1, 2), (3, 4, 5))


def faces(ax):
    """Colours of the cells, row by row."""
    return [to_hex(colour) for colour in ax.collections[0].to_rgba(ax.collections[0].get_array()).reshape(-1, 4)]


def test_a_grid_has_its_colours_its_shape_and_its_first_row_on_top():
    ax = arc.grid_picture(GRID, axes(), "name")
    assert faces(ax) == grids.COLOURS[:6]
    assert ax.get_xlim() == (0, 3) and ax.get_ylim() == (2, 0) and ax.get_aspect() == 1
    assert ax.get_title() == "name" and len(ax.get_xticks()) == 0
    ax = arc.grid_picture(((7,),), axes())
    assert faces(ax) == [grids.COLOURS[7]]  # colours do not stretch to what is there


def task(solutions=2):
    pairs = tuple(Pair(((k, k),), ((k,), (k,))) for k in (1, 2, 3))
    return Task("made_up", pairs, (((4, 4),), ((5, 5),)), (((4,), (4,)), ((5,), (5,)))[:solutions])


def titles(where):
    return [[ax.get_title() for ax in row] for row in where]


def test_a_task_shows_demonstrations_tests_truth_and_what_was_tried():
    puzzle = task()
    where = arc.task_picture(puzzle, plt.figure(), [(((4, 4),), ((4,), (4,))), ()])
    assert where.shape == (2, arc.task_columns(puzzle, [])) == (2, 7)
    above, below = titles(where)
    assert above == [
        "demonstration 1",
        "demonstration 2",
        "demonstration 3",
        "test 1",
        "attempt 1: ✗ wrong",
        "test 2",
        "attempt 1",
    ]
    assert below == ["↓", "↓", "↓", "↓ truth", "attempt 2: ✓ right", "↓ truth", "attempt 2"]
    assert faces(where[0, 1]) == [grids.COLOURS[2]] * 2 and where[1, 1].get_ylim() == (2, 0)
    assert to_hex(where[1, 4].spines["left"].get_edgecolor()) == arc.SOLVED.lower()
    assert to_hex(where[0, 4].spines["left"].get_edgecolor()) == arc.FAILED.lower()
    assert [text.get_text() for text in where[0, 6].texts] == ["no answer"]


def test_a_task_without_known_solutions_is_not_judged():
    where = arc.task_picture(task(solutions=0), axes(2, 7), [(((4,),),), (((5,),),)])
    assert titles(where)[0][4] == "attempt 1" and [text.get_text() for text in where[1, 3].texts] == ["not known"]
    plain = arc.task_picture(task(), axes(2, 5))
    assert titles(plain)[0][3:] == ["test 1", "test 2"]
    with pytest.raises(DataError, match=r"made_up.*\(2, 5\), got \(2, 4\)"):
        arc.task_picture(task(), axes(2, 4))


def test_a_strip_shows_one_pair_under_each_augmenter():
    pair = Pair(GRID, ((6,),))
    turns = [augment.IDENTITY, augment.rotate(90), augment.flip(1)]
    strip = arc.augmentation_strip([(turn.name, turn.pair(pair)) for turn in turns], axes(2, 3))
    assert titles(strip)[0] == ["identity", "rot90", "flip1"]
    assert faces(strip[0, 1]) == [grids.COLOURS[c] for c in (2, 5, 1, 4, 0, 3)]
    with pytest.raises(DataError, match=r"3 pairs.*\(2, 3\), got \(1, 3\)"):
        arc.augmentation_strip([("same", pair)] * 3, plt.subplots(1, 3, squeeze=False)[1])


def test_bench_bars_are_the_costs_and_their_useful_part():
    columns = ["variant", "ms_per_useful_token", "useful_share", "seconds"]
    lines = [("bank", 0.5, 0.9, 100.0), ("one_at_a_time_padded", 4.0, 0.5, 800.0)]
    ax = arc.bench_arc(pd.DataFrame(lines, columns=columns), axes())
    widths = {bar.get_gid(): bar.get_width() for bar in ax.patches}
    assert widths == pytest.approx(
        {"value:one_at_a_time_padded": 4.0, "useful:one_at_a_time_padded": 2.0, "value:bank": 0.5, "useful:bank": 0.45}
    )
    assert [text.get_text() for text in ax.get_yticklabels()] == ["one at a time, padded", "adapter bank"]
    assert [text.get_text() for text in ax.texts] == [
        "4 ms · 50 % useful · 800 s",
        "0.5 ms · 90 % useful · 100 s · 0.12 of the first",
    ]
    spread = pd.DataFrame([("bank", 0.5, 0.9, 100.0, 0.4, 0.7)], columns=[*columns, "low", "high"])
    assert list(marks(arc.bench_arc(spread, axes()), "interval")["bank"][0]) == [0.4, 0.7]
    with pytest.raises(DataError, match="useful_share"):
        arc.bench_arc(pd.DataFrame(lines, columns=columns).drop(columns="useful_share"), axes())


KINDS = [
    "differences",
    "reward_honesty",
    "success_by_arm",
    "success_by_round",
    "success_by_task",
    "choices",
    "success_map_rate_epochs",
    "success_map_switches_strategy",
]


def test_the_gallery_draws_grid_puzzles_from_results_alone(results, tmp_path):
    names = figures.gallery(results, tmp_path, [plots.pictures, arc.pictures])
    assert names == [f"arc_few_shot_{kind}" for kind in KINDS]
    assert all((tmp_path / f"{name}.png").stat().st_size > 8000 for name in names)
    saved = read_results(tmp_path / "arc_few_shot_success_map_rate_epochs.csv")
    assert len(saved) > 6 and saved["metric"].str.startswith("success:learning_rate=").all()
    saved = read_results(tmp_path / "arc_few_shot_success_by_round.csv")
    assert set(saved["metric"]) == {"success_rate"} and saved["experiment"].nunique() == 3


def test_the_gallery_draws_only_what_there_is(results, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *given, **options: None)
    knowledge = main(results).assign(experiment="knowledge/restem").replace({"metric": {"success_rate": "accuracy"}})
    names = figures.gallery(knowledge, tmp_path / "other", [plots.pictures, arc.pictures])
    assert names and not any("success" in name or "arc" in name for name in names)
    some = figures.gallery(
        results[results["experiment"] == "arc/few_shot/tasks"], tmp_path / "tasks", [plots.pictures, arc.pictures]
    )
    assert some == ["arc_few_shot_success_by_task"]


def test_the_reports_table_shows_success_beside_the_paper(results):
    shown = report.table(results, "arc/few_shot").set_index("arm")
    first = main(results).query("metric == 'success_rate' and arm == 'seal_round_1'").iloc[0]
    told = f"{100 * first.value:.1f} [{100 * first.low:.1f}, {100 * first.high:.1f}]"
    assert shown.loc["SEAL, round 1", "success rate, %"] == told
    assert shown["paper, %"].to_dict() == {
        "in context only": "0.0 (note 1)",
        "untrained self-edits": "20.0 (note 2)",
        "random self-edits kept": "",
        "SEAL, round 1": "72.5 (note 3)",
        "SEAL, round 2": "",
        "oracle": "100.0 (note 4)",
    }
    assert shown.loc["SEAL, round 2", "separable from random?"].startswith("yes")
    assert float(shown.loc["untrained self-edits", "rejected, %"]) > 0
    block = publish.results_block(results)
    assert f"| SEAL, round 1 | {told} | 24 tasks × 2 loops |" in block and "few_shot`): llama, protocol clean" in block
