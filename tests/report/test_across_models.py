"""Several models side by side: every model's lines, the lines over all of them, and sentences that follow the rows."""

import pytest
from fixtures_seal import trial

from seal_lib.arc import tables
from seal_lib.arc.domain import Attempt, PuzzleTrial
from seal_lib.knowledge import evaluate
from seal_lib.loops.outer import Loop
from seal_lib.plan import cells
from seal_lib.plan.work import totals
from seal_lib.records import Round, SelfEdit
from seal_lib.report import across_models
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
    label = {"protocol": "clean", "grader": "exact"}
    return across_models.model_rows("knowledge/models", named, evaluate.table_rows, **label)


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
    assert across_models.in_words(rows_of(loop(0.5, 0.5, 0.5), loop(0.5, 0.5, 0.5))).startswith("No comparison")


def test_a_size_has_its_frozen_model_and_is_pooled_with_none() -> None:
    loops = {"m-7b": loop(0.4, 0.7, 0.3), "m-3b": loop(0.3, 0.3, 0.3)}
    frozen = {
        name: [trial(f"p{i}", [1.0] * right + [0.0] * (20 - right), "frozen") for i in range(PASSAGES)]
        for name, right in {"m-7b": 3, "m-3b": 1}.items()
    }
    sizes = {"smaller": "m-3b", "main": "m-7b"}
    rows = across_models.size_rows(
        "knowledge/model_size", sizes, loops, frozen, evaluate.table_rows, protocol="clean", grader="exact"
    )
    assert {(r["experiment"], r["model"]) for r in rows} == {
        (f"knowledge/model_size/{size}", model) for size, model in sizes.items()
    }
    assert value(rows, "m-3b", "frozen", "accuracy")["value"] == pytest.approx(0.05)
    assert value(rows, "m-7b", "own_untrained - frozen")["value"] == pytest.approx(0.25)
    told = across_models.sizes_in_words(rows)
    small, main = told.split("`m-7b`:")
    assert small.startswith("`m-3b`:") and "SEAL, round 1 − untrained" not in small
    assert "**SEAL, round 1 − untrained self-edits**: +30.0 points" in main and "over 9 passages." in main


def puzzles(untrained: int, seal: int, blind: int) -> Loop:
    """One round on nine tasks; so many of an arm's five self-edits are right, give or take one by task."""

    def trials(right: int, more) -> list[PuzzleTrial]:
        return [
            PuzzleTrial(
                SelfEdit(f"t{i}/{k}", f"t{i}", "", "p"),
                Attempt(f"t{i}/{k}", f"t{i}", "ok", attempts=((((1,),),),), pass_2=k < right + more(i)),
            )
            for i in range(PASSAGES)
            for k in range(5)
        ]

    arms = {
        "own_untrained": trials(untrained, lambda i: i % 3 - 1),
        "random_config_sft": trials(blind, lambda i: 0),
        "seal_round_1": trials(seal, lambda i: i // 3 - 1),
    }
    return Loop(0, (None,), arms)


def test_puzzles_are_told_as_passages_are() -> None:
    loops = {f"grids-{i}": puzzles(1, seal, 1) for i, seal in enumerate((4, 4, 3))}
    rows = across_models.model_rows("arc/models", loops, tables.table_rows, protocol="clean", grader="grid")
    assert {r["experiment"] for r in rows} == {"arc/models"}
    assert list(dict.fromkeys(r["model"] for r in rows)) == [*loops, "3 models"]
    level = value(rows, "3 models", "seal_round_1", "success_rate")
    assert (level["value"], level["n"], level["loops"], level["unit"], level["grader"]) == (
        pytest.approx(11 / 15),
        PASSAGES,
        3,
        "task",
        "grid",
    )
    assert value(rows, "grids-2", "seal_round_1 - own_untrained")["value"] == pytest.approx(0.4)
    told = across_models.in_words(rows)
    assert "**SEAL, round 1 − untrained self-edits**: +53.3 points" in told
    assert "over 9 tasks × 3 models; model by model +60.0, +60.0, +40.0, separable alone on 3 of 3." in told
    assert "**SEAL, round 1 − random self-edits kept**" in told and told.count("\n") == 1
    alone = across_models.model_rows(
        "arc/models", {"m": loops["grids-0"]}, tables.table_rows, protocol="c", grader="grid"
    )
    assert alone == [row | {"model": "m", "protocol": "c"} for row in rows if row["model"] == "grids-0"]


def test_weights_of_every_model_named_are_part_of_what_a_run_is(tmp_path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    parameters = {"model": "seedling-knowledge", "other_models": [str(folder), "owner/on-the-hub"], "larger_model": ""}
    before = manifest.input_hashes(parameters)
    assert set(before) == {"model", "other_models[0]"}
    (folder / "config.json").write_text("{ }")
    assert manifest.models_named(parameters | {"larger_model": "o/l"}) == {
        "model": "seedling-knowledge",
        "larger_model": "o/l",
        "other_models[0]": str(folder),
        "other_models[1]": "owner/on-the-hub",
    }
    after = manifest.input_hashes(parameters)
    assert after["model"] == before["model"] and after["other_models[0]"] != before["other_models[0]"]


@pytest.mark.parametrize("name", ["set", "set.JSON", "tasks/aa.JSON", "tasks/aa.json.gz"])
def test_data_under_any_name_is_part_of_what_a_run_is(tmp_path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    parameters = {"passages": str(tmp_path / name.partition("/")[0]), "prompts": "seedling", "judge": "x" * 5000}
    file.write_text("[]")
    before = manifest.input_hashes(parameters)
    assert set(before) == {"passages"}
    file.write_text("[1]")
    assert manifest.input_hashes(parameters) != before


def test_the_plan_counts_one_loop_for_each_model(monkeypatch) -> None:
    monkeypatch.setenv("SET", "full")
    p = params.resolve("17_other_models", "seedling")
    p |= {"other_models": ["seedling-knowledge-1"], "smaller_model": "seedling-knowledge-2", "larger_model": ""}
    alone = {**params.resolve("12_restem_rounds", "seedling"), "seeds": [0], "controls": ["frozen"]}
    alone["rounds"] = p["rounds"]
    alone["n_passages"] = p["n_passages"]
    one, all_of_them = (
        totals(cells.of("12_restem_rounds", alone)),
        totals(cells.of("17_other_models", p)),
    )
    assert all_of_them == {key: pytest.approx(3 * number, rel=0.02) for key, number in one.items()}


def test_the_plan_counts_one_loop_of_puzzles_for_each_model(monkeypatch) -> None:
    monkeypatch.setenv("SET", "full")
    others = ["seedling-grids-1", "seedling-grids-2"]
    p = {**params.resolve("24_other_puzzle_models", "seedling"), "other_models": others}
    theirs = params.resolve("21_arc_self_edits", "seedling")
    alone = {**theirs, **p, "oracle": "", "seeds": [0], "random_control": True}
    one, all_of_them = (
        totals(cells.of(name, given)) for name, given in (("21_arc_self_edits", alone), ("24_other_puzzle_models", p))
    )
    in_context = totals([w for w in cells.of("21_arc_self_edits", alone) if w.phase == "evaluate/icl"])
    assert in_context["answers"] > 0
    assert all_of_them == {
        key: pytest.approx(3 * (number - in_context[key]), rel=0.1 if "sft" in key else 0.02)
        for key, number in one.items()
    }


def test_both_notebooks_over_models_run_the_loops_of_their_own_domain() -> None:
    """What is not a matter of how many models or loops is as in the notebook whose loop it is."""
    for mine, theirs in (("17_other_models", "12_restem_rounds"), ("24_other_puzzle_models", "21_arc_self_edits")):
        for scale in ("small", "paper"):
            own, others = params.resolve(mine, scale), params.resolve(theirs, scale)
            assert {key for key in own if key in others and own[key] != others[key]} == set(), (mine, scale)
