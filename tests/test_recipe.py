"""The recipe of the shipped model: a killed run goes on and ends with the same weights."""

from dataclasses import replace

import pytest
import torch

from seal_lib.seedling.growth import grow
from seal_lib.seedling.recipe import Recipe

SMALL = Recipe(
    hidden=32, layers=1, heads=1, mlp=32, steps=5, note_documents=2, question_documents=2, fact_documents=2, warmup=2,
    checkpoint_every=2,
)  # fmt: skip


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
