"""Several models side by side: every model's lines, the lines over all of them, and sentences that follow the rows."""

import pytest
from fixtures_seal import trial

from seal_lib.knowledge import across_models
from seal_lib.knowledge.experiment import Loop
from seal_lib.plan import counts
from seal_lib.records import Round
from seal_lib.runs import manifest, params

PASSAGES = 9


def loop(untrained: float, seal: float, blind: float) -> Loop:
    """One round; of 20 questions to a passage each arm has that share right, give or take one by passage."""
    wobble = {
        "own_untrained": lambda i: i % 3 - 1,
        "seal_round_1": lambda i: i // 3 - 1,
        "random_edit_sft": lambda i: 0,
    }
    evaluated = {}
    for (arm, more), share in zip(wobble.items(), (untrained, seal, blind), strict=True):
        right = [round(20 * share) + more(i) for i in range(PASSAGES)]
        evaluated[arm] = [trial(f"p{i}", [1.0] * n + [0.0] * (20 - n), arm) for i, n in enumerate(right)]
    return Loop(0, (Round(1, (), (), (), 0.0),), evaluated, ([],))


def rows_of(*loops: Loop) -> list[dict]:
    named = {f"model-{i}": one for i, one in enumerate(loops)}
    return across_models.model_rows(named, protocol="clean", grader="exact")


def value(rows: list[dict], model: str, arm: str, metric: str = "difference") -> dict:
    (row,) = [r for r in rows if (r["model"], r["arm"], r["metric"]) == (model, arm, metric)]
    return row


def test_each_model_has_its_lines_and_all_of_them_theirs() -> None:
    rows = rows_of(loop(0.4, 0.7, 0.3), loop(0.5, 0.7, 0.4), loop(0.2, 0.6, 0.1))
    assert {r["experiment"] for r in rows} == {"knowledge/models"}
    assert list(dict.fromkeys(r["model"] for r in rows)) == ["model-0", "model-1", "model-2", "3 models"]
    gains = [value(rows, f"model-{i}", "seal_round_1 - own_untrained")["value"] for i in range(3)]
    assert gains == pytest.approx([0.3, 0.2, 0.4])
    over_all = value(rows, "3 models", "seal_round_1 - own_untrained")
    assert over_all["value"] == pytest.approx(0.3)
    assert (over_all["n"], over_all["loops"], over_all["unit"]) == (PASSAGES, 3, "passage")
    # other models would differ: the gains of 20, 30 and 40 points must leave their mark on the interval
    assert over_all["high"] - over_all["low"] > 0.2
    level = value(rows, "3 models", "own_untrained", "accuracy")
    assert level["value"] == pytest.approx((0.4 + 0.5 + 0.2) / 3) and level["grader"] == "exact"


def test_one_model_is_not_pooled() -> None:
    rows = rows_of(loop(0.4, 0.7, 0.3))
    assert {r["model"] for r in rows} == {"model-0"}
    assert "over 9 passages." in across_models.in_words(rows) and "models" not in across_models.in_words(rows)


def test_words_say_what_is_separable_over_all_models_and_are_silent_about_the_rest() -> None:
    told = across_models.in_words(
        rows_of(*(loop(0.3 + shift, 0.7 + shift, 0.3 + 3 * shift) for shift in (0.0, 0.05, -0.05)))
    )
    assert told.count("\n") == 1  # random − untrained is 0, +10 and −10
    assert "**SEAL, round 1 − untrained self-edits**: +40.0 points" in told
    assert "9 passages × 3 models; model by model +40.0, +40.0, +40.0, separable alone on 3 of 3." in told
    below = across_models.in_words(rows_of(*(loop(0.5, 0.5, 0.2) for _ in range(3))))
    assert (
        "**random self-edit kept − untrained self-edits**: −30.0 points" in below
        and "SEAL, round 1 − untrained" not in below
    )
    assert across_models.in_words(rows_of(loop(0.5, 0.5, 0.5), loop(0.5, 0.5, 0.5))) == ""


def test_weights_of_every_model_named_are_part_of_what_a_run_is(tmp_path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    parameters = {"model": "seedling-knowledge", "other_models": [str(folder), "owner/on-the-hub"]}
    before = manifest.input_hashes(parameters)
    assert set(before) == {"model", "other_models[0]"}
    (folder / "config.json").write_text("{ }")
    after = manifest.input_hashes(parameters)
    assert after["model"] == before["model"] and after["other_models[0]"] != before["other_models[0]"]


def test_the_plan_counts_one_loop_for_each_model() -> None:
    others = ["seedling-knowledge-1", "seedling-knowledge-2"]
    p = {**params.resolve("17_other_models", "seedling"), "other_models": others}
    alone = {**params.resolve("12_restem_rounds", "seedling"), "seeds": [0], "controls": [], "rounds": p["rounds"]}
    alone["n_passages"] = p["n_passages"]
    one, all_of_them = (
        counts.totals(counts.of("12_restem_rounds", alone)),
        counts.totals(counts.of("17_other_models", p)),
    )
    assert all_of_them == {key: pytest.approx(3 * number) for key, number in one.items()}
