"""The made world of puzzles, and the shipped model that was grown in it."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from fixtures_seal import MemoryRun

from seal_lib import models
from seal_lib.arc import experiment, prompts, self_edits
from seal_lib.arc import world as world
from seal_lib.arc.data import load_tasks
from seal_lib.arc.domain import Puzzles, TestTimeTraining
from seal_lib.errors import DataError
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.runs import params
from seal_lib.seedling import growth
from seal_lib.seedling.acceptance import ACCEPTANCE
from seal_lib.seedling.grid_recipe import CONFIG_EPOCHS, CONFIG_RATES, GridRecipe, draw_config
from seal_lib.seeds import rng

RECIPE = GridRecipe()


@pytest.fixture(scope="module")
def seedling():
    return models.load("seedling-grids")


def test_every_rule_belongs_to_one_population() -> None:
    groups = world.populations()
    everything = [rule for rules in groups.values() for rule in rules]
    assert sorted(everything) == sorted(product(range(4), repeat=4))
    assert len(groups["seen"]) == 8 and len(groups["learning"]) == 100 and len(groups["heldout"]) == 148


def test_rules_move_cells_as_their_names_say() -> None:
    grid = ((1, 2), (3, 4))
    assert world.apply(world.SEEN["left and right exchanged"], grid) == ((2, 1), (4, 3))
    assert world.apply(world.SEEN["turned by 180 degrees"], grid) == ((4, 3), (2, 1))
    assert world.apply(world.SEEN["top row twice"], grid) == ((1, 2), (1, 2))
    assert world.apply(world.SEEN["left column twice"], grid) == ((1, 1), (3, 3))
    assert world.apply((2, 0, 3, 1), grid) == ((3, 1), (4, 2))  # a quarter turn, never seen in growing


def test_a_task_shows_its_rule_and_no_seen_rule_gives_its_answer() -> None:
    for task in world.tasks("heldout", 40, seed=1):
        rule = tuple(int(c) for c in task.id.removeprefix("heldout-"))
        assert rule in world.populations()["heldout"]
        assert all(world.apply(rule, pair.input) == pair.output for pair in task.train)
        assert world.apply(rule, task.tests[0]) == task.solutions[0]
        assert all(world.apply(seen, task.tests[0]) != task.solutions[0] for seen in world.SEEN.values())


def test_tasks_depend_on_the_seed_and_are_of_different_rules() -> None:
    a, b = world.tasks("heldout", 20, seed=0), world.tasks("heldout", 20, seed=1)
    assert a == world.tasks("heldout", 20, seed=0) and a != b
    assert len({task.id for task in a}) == 20
    assert load_tasks("world:heldout:20") == a and load_tasks("world:heldout:20", ids=[a[3].id]) == [a[3]]


@pytest.mark.parametrize(
    "source, told",
    [
        ("world:heldout", "does not say how many"),
        ("world:elsewhere:3", "is not one of"),
        ("world:seen:9", "has 8 rules"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(source: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_tasks(source)


def test_configurations_are_drawn_evenly_and_read_back() -> None:
    draws = rng("test")
    drawn = [draw_config(draws) for _ in range(4000)]
    assert all(self_edits.read(config.text()).config == config for config in drawn)
    for values, of in ((CONFIG_RATES, lambda c: c.learning_rate), (CONFIG_EPOCHS, lambda c: c.epochs)):
        shares = [sum(of(c) == value for c in drawn) / len(drawn) for value in values]
        assert all(abs(share - 1 / len(values)) < 0.03 for share in shares)
    for switch in self_edits.SWITCHES:
        assert abs(sum(switch in c.switches for c in drawn) / len(drawn) - 0.5) < 0.03


def test_documents_predict_outputs_only_and_depend_on_the_step_alone(seedling) -> None:
    tokenizer = seedling[1]
    kinds = RECIPE.documents(3, tokenizer)
    assert kinds == RECIPE.documents(3, tokenizer) != RECIPE.documents(4, tokenizer)
    assert set(kinds) == {"rules", "whole", "large", "configurations"}
    assert all(RECIPE.weight(kind) > 0 for kind in kinds)
    for ids, predicted in kinds["rules"]:
        told = tokenizer.decode([i for i, voiced in zip(ids, predicted, strict=True) if voiced])
        lines = tokenizer.decode(ids).split("#\n")[:-1]
        assert told.split("#")[:-1] == [line.split(" -> ")[1] for line in lines[1:]]
    for ids, predicted in kinds["configurations"]:
        told = tokenizer.decode([i for i, voiced in zip(ids, predicted, strict=True) if voiced])
        assert told.endswith("<eos>") and self_edits.read(told.removesuffix("<eos>")).config
    assert all(all(predicted) for _, predicted in kinds["whole"])


def test_no_document_shows_an_unseen_rule(seedling) -> None:
    """Every demonstration the model was grown on fits a seen rule, but for configurations' puzzles without any rule."""
    tokenizer = seedling[1]
    for step in range(3):
        for ids, _ in RECIPE.documents(step, tokenizer)["rules"]:
            pairs = [
                line.split(" -> ")
                for line in tokenizer.decode(ids).replace("#", "").replace("]\n [", "] [").split("\n")
            ]
            grids = [[json.loads(g.replace("] [", "],[").replace(" ", ",")) for g in pair] for pair in pairs if pair[0]]
            fits = [
                all(list(map(list, world.apply(rule, tuple(map(tuple, a))))) == b for a, b in grids)
                for rule in world.SEEN.values()
            ]
            assert any(fits)


def test_the_shipped_model_has_the_recipes_shape_and_a_card_that_is_its_own(seedling) -> None:
    config, folder = seedling[0].config, models.SEEDLINGS / "grids"
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (64, 3, 32)
    assert config.rope_parameters["rope_theta"] == RECIPE.rope_theta and config.vocab_size == len(seedling[1])
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000
    import hashlib

    card = (folder / "README.md").read_text("utf-8")
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in card
    for key, (low, high) in ACCEPTANCE["grids"].accepted.items():
        (line,) = [line for line in card.splitlines() if line.startswith(f"| {key} ")]
        assert low <= float(line.split("|")[2]) <= high


def test_any_text_can_be_encoded(seedling) -> None:
    tokenizer = seedling[1]
    for text in ("[[1 2]\n [3 4]] -> ", "Grüße, 世界! \x00\n\t", "[[10 200]]"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("[[1 2]\n [3 4]]")["input_ids"]) == 9  # a cell is one token wherever it stands


def test_seen_rules_are_answered_in_context_and_others_are_not(seedling) -> None:
    settings = params.resolve("21_arc_self_edits", "seedling")
    inner = params.pick(TestTimeTraining, settings)
    policy, wording = Policy("untrained", *seedling), prompts.load("seedling")
    rate = {}
    for population, tasks in (
        ("seen", world.tasks("seen", 8, seed=3)),
        ("unseen", world.tasks("learning", 40, seed=11)),
    ):
        study = experiment.FewShot([], tasks, Puzzles(inner, wording), OuterLoop())
        attempts = study.fixed(MemoryRun(), policy, "icl", None)
        rate[population] = sum(a.success for a in attempts) / len(attempts)
    assert rate["seen"] >= 0.85 and rate["unseen"] <= 0.1


def test_the_hand_made_configuration_teaches_an_unseen_rule(seedling) -> None:
    settings = params.resolve("21_arc_self_edits", "seedling")
    inner, config = (
        params.pick(TestTimeTraining, settings),
        self_edits.read(settings["oracle"]).config,
    )
    domain = Puzzles(inner, prompts.load("seedling"))
    study = experiment.FewShot([], world.tasks("learning", 6, seed=12), domain, OuterLoop())
    right = study.fixed(MemoryRun(), Policy("untrained", *seedling), "oracle", config)
    wrong = study.fixed(MemoryRun(), Policy("untrained", *seedling), "idle", replace(config, learning_rate=1e-5))
    assert sum(a.success for a in right) >= 5 and sum(a.success for a in wrong) == 0


def test_two_growths_of_the_grid_recipe_give_the_same_weights(tmp_path) -> None:
    small = replace(RECIPE, hidden=32, heads=1, layers=1, mlp=32, steps=3, rule_documents=3, warmup=1)
    first, second = (growth.grow(small, tmp_path / name)[0].state_dict() for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)
