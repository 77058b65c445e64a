"""Growing a model: a killed run goes on and ends with the same weights; other seeds give other models of one recipe."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from seal_lib import models
from seal_lib.errors import DataError
from seal_lib.seedling import __main__ as command
from seal_lib.seedling.acceptance import ACCEPTANCE, SIZES
from seal_lib.seedling.growth import grow
from seal_lib.seedling.recipe import KnowledgeRecipe

SMALL = KnowledgeRecipe(
    hidden=32,
    layers=1,
    heads=1,
    mlp=32,
    steps=5,
    note_documents=2,
    question_documents=2,
    fact_documents=2,
    warmup=2,
    checkpoint_every=2,
)


class Killed(Exception):
    """Stands for a kill between two steps."""


def weights(model) -> dict:
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


def test_a_killed_recipe_ends_with_the_same_weights_and_repeats_no_finished_checkpoint(tmp_path) -> None:
    undisturbed = weights(grow(SMALL, tmp_path / "whole")[0])

    def kill(step: int, losses: dict) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        grow(SMALL, tmp_path / "killed", kill)
    assert not (tmp_path / "killed" / "model.safetensors").exists()  # nothing half-grown looks finished
    seen: list[int] = []
    again = weights(grow(SMALL, tmp_path / "killed", lambda step, losses: seen.append(step))[0])
    assert seen == [2, 3, 4]  # from the checkpoint after step 1
    assert all(torch.equal(again[name], undisturbed[name]) for name in undisturbed)
    assert not (tmp_path / "killed" / ".partial").exists()


def test_a_checkpoint_of_another_recipe_is_not_taken_up(tmp_path) -> None:
    def kill(step: int, losses: dict) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        grow(SMALL, tmp_path / "model", kill)
    seen: list[int] = []
    grow(replace(SMALL, lr=1e-3), tmp_path / "model", lambda step, losses: seen.append(step))
    assert seen == [0, 1, 2, 3, 4]


@pytest.fixture
def small(monkeypatch) -> dict[str, list[str]]:
    """Both worlds with a recipe of seconds and a measurement that only remembers what it was asked about."""
    measured: dict[str, list[str]] = {}
    for world, seedling in list(ACCEPTANCE.items()):

        def measure(folder, world=world):
            measured.setdefault(world, []).append(folder.name)
            return {"right": 1.0}

        made = replace(seedling, recipe=replace(SMALL, steps=1), accepted={"right": (0.5, 1.0)}, measure=measure)
        monkeypatch.setitem(ACCEPTANCE, world, made)
    return measured


def test_models_of_other_seeds_share_recipe_and_tokenizer_and_have_names_of_their_own(
    small, tmp_path, monkeypatch
) -> None:
    assert command.main(["--out", str(tmp_path), "--only", "knowledge", "--seeds", "3"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["knowledge", "knowledge-1", "knowledge-2"]
    assert small == {"knowledge": ["knowledge-growing", "knowledge-1-growing", "knowledge-2-growing"]}
    folders = {seed: tmp_path / command.model_name("knowledge", seed) for seed in range(3)}
    cards = {seed: folder.joinpath("README.md").read_text("utf-8") for seed, folder in folders.items()}
    recipes = {seed: json.loads(card.partition("```json")[2].partition("```")[0]) for seed, card in cards.items()}
    assert recipes == {seed: asdict(replace(SMALL, steps=1, seed=seed)) for seed in range(3)}
    assert len({folder.joinpath("tokenizer.json").read_bytes() for folder in folders.values()}) == 1
    assert len({folder.joinpath("model.safetensors").read_bytes() for folder in folders.values()}) == 3
    monkeypatch.setattr(models, "SEEDLINGS", tmp_path)
    assert [models.resolve(f"seedling-{folder.name}")[0] for folder in folders.values()] == [
        str(folder) for folder in folders.values()
    ]
    with pytest.raises(DataError, match="'seedling-knowledge-3' does not ship.*seedling-knowledge-1"):
        models.resolve("seedling-knowledge-3")


def test_what_is_to_be_grown_can_be_named() -> None:
    assert command.chosen(None, 1) == [("knowledge", 0), ("grids", 0)]
    assert command.chosen(None, 2) == [("knowledge", 0), ("knowledge", 1), ("grids", 0), ("grids", 1)]
    assert command.chosen("grids", 2) == [("grids", 0), ("grids", 1)]
    assert command.chosen("grids-2", 1) == [("grids", 2)]
    assert command.chosen("knowledge-large", 3) == [("knowledge-large", 0)]
    for wrong in ("grid", "grids-", "grids-x", "grids-1-2", "grids-small", "knowledge-small-1"):
        with pytest.raises(DataError, match=f"'{wrong}' is not one of knowledge, grids, knowledge-small"):
            command.chosen(wrong, 1)


def test_a_size_differs_from_its_model_in_width_alone_and_is_grown_by_name(small, tmp_path, monkeypatch) -> None:
    for size in SIZES.values():
        mine, shipped = asdict(size.recipe), asdict(KnowledgeRecipe())
        assert {key for key in mine if mine[key] != shipped[key]} == {"hidden", "heads", "mlp"}
        assert size.recipe.hidden == size.recipe.heads * size.recipe.head_size
    tiny = replace(ACCEPTANCE["knowledge"], recipe=replace(SMALL, steps=1, hidden=64, heads=2))
    monkeypatch.setitem(SIZES, "knowledge-small", tiny)
    assert command.main(["--out", str(tmp_path), "--only", "knowledge-small"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["knowledge-small"]
    assert json.loads((tmp_path / "knowledge-small" / "config.json").read_text("utf-8"))["hidden_size"] == 64
