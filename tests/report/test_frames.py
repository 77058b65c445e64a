"""Tables and sentences for notebooks: a person's words, never keys. Run: pytest tests/report/test_frames.py"""

import math

from seal_lib.grading import agreement
from seal_lib.knowledge import experiment
from seal_lib.report import frames, words
from seal_lib.report.stats import Estimate


def row(arm: str, metric: str, value: float, half: float = 0.05, model: str = "m", **more) -> dict:
    return Estimate(value, value - half, value + half, 20, **more).row("x", arm, metric, "clean", model, "exact")


ROWS = [
    row("seal_round_1", "accuracy", 0.6, loops=3),
    row("own_untrained", "accuracy", 0.4),
    row("frozen", "accuracy", 0.1),
    row("own_untrained", "blank_rate", 0.0),
    row("frozen", "half_life", 3.25, 1.0),
    row("seal_round_1 - own_untrained", "difference", 0.2, p=0.0004),
    row("own_untrained - frozen", "difference", -0.01, p=0.5),
]


def test_levels_have_labels_units_intervals_and_gaps() -> None:
    table = frames.levels(ROWS, ["accuracy", "blank_rate", "half_life", "coverage"])
    assert list(table.index) == ["frozen model", "untrained self-edits", "SEAL, round 1"]
    assert list(table) == ["right, %", "blank, %", "half of the gain is gone after, edits", "n"]
    assert table.loc["SEAL, round 1"].tolist() == ["60.0 [55.0, 65.0]", "–", "–", "20 passages × 3 loops"]
    assert table.loc["frozen model", "half of the gain is gone after, edits"] == "3.25 [2.25, 4.25]"
    assert list(frames.levels(ROWS + [row("frozen", "accuracy", 0.2, model="other")], ["accuracy"]).index.names) == [
        "model",
        "arm",
    ]
    assert len(frames.levels([], ["accuracy"])) == 0


def test_contrasts_have_points_chance_and_the_one_verdict() -> None:
    table = frames.contrasts(ROWS)
    assert table.loc["SEAL, round 1 − untrained self-edits"].tolist() == [
        "+20.0 [+15.0, +25.0]",
        "20 passages",
        "p < 0.001",
        "yes",
    ]
    assert table.loc["untrained self-edits − frozen model", "separable"] == "no"


def test_metrics_have_words() -> None:
    assert frames.metric_words("AA_8") == ("right after 8 edits (AA)", "%")
    assert frames.metric_words("change_8_to_32") == ("change from 8 to 32 edits", "points")
    assert frames.metric_words("LA_9_to_16") == ("right after the own edit (LA), edits 9 to 16", "%")
    assert frames.metric_words("never_heard_of") == ("never heard of", "")


def test_what_is_written_is_told_from_its_rows_and_real_text_has_no_styles() -> None:
    rows = [
        row("own_untrained", "edit_tokens", 40.0, 2.0),
        row("own_untrained", "style_share:verbatim", 0.5),
        row("own_untrained", "style_share:remark", 0.3),
        row("own_untrained", "style_share:other", 0.0),
        row("own_untrained", "coverage", 0.2),
    ]
    told = experiment.writing(rows)
    assert "**untrained self-edits** are 40.0 [38.0, 42.0] tokens long." in told
    assert "By style: *verbatim* 50.0 % [45.0, 55.0], *remark* 30.0 % [25.0, 35.0]." in told and "20.0 %" in told
    assert experiment.writing(rows[:1]).count("\n") == 0 and experiment.writing([]) == words.NOTHING_SEPARABLE


def test_graders_that_turn_the_order_of_arms_are_named() -> None:
    levels = {"exact": (0.5, 0.4), "contains": (0.5, 0.6)}
    rows = [
        row(arm, f"accuracy:{grader}", value)
        for grader, values in levels.items()
        for arm, value in zip(("external", "gold_notes"), values, strict=True)
    ]
    rows += [row(agreement.ALL, "agree:exact:contains", 0.9)]
    told = agreement.in_words(rows)
    assert "**exact** and **contains** agree on 90.0 % [85.0, 95.0] of the answers." in told
    assert "another order: **stronger writer's notes** and **gold notes** (exact: 50.0 and 40.0 %" in told
    same = [r for r in rows if r["metric"] != "accuracy:contains"] + [row("gold_notes", "accuracy:contains", 0.4)]
    assert "the same order" in agreement.in_words(same + [row("external", "accuracy:contains", 0.7)])
    alone = [r for r in rows if r["metric"] == "accuracy:exact"]
    assert "order" not in agreement.in_words(alone)  # one grader alone has no agreement
    assert math.isnan(ROWS[0]["p"])
