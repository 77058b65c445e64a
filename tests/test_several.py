"""Finetuning over several cards, here over several processes on a CPU.

The weights and errors are those of one process, and the plan says how many cards a run takes.
"""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from fixtures_seal import MemoryRun

from seal_lib import models
from seal_lib.errors import DivergedError, ParameterError
from seal_lib.loops.policy import Policy, Source
from seal_lib.loops.settings import OuterLoop, Pretraining
from seal_lib.models import budget
from seal_lib.plan import cells, costs, needs
from seal_lib.runs import manifest, params
from seal_lib.training.finetune import HalfAdamW
from seal_lib.training.several import sft_over

NAME = "seedling-grids"
OUTER = OuterLoop(sft_rank=4, sft_alpha=8.0, sft_lr=1e-2, sft_epochs=2, sft_batch=3)
#: seven texts in steps of three: shares of two and one, and a last step with nothing for the second process
TEXTS = [([1 + n, 2, 3], [5 + n, 6, 7, 8][: 2 + n % 3]) for n in range(7)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Policy:
    """A policy after one round, so that the processes must merge an adapter to start from the same weights."""
    base = Policy("untrained", *models.load(NAME), source=Source(NAME))
    return base.finetuned(MemoryRun(tmp_path_factory.mktemp("run")), TEXTS[:3], OUTER, name="round_1", seed=0)[0]


def furthest(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def test_an_adapter_trained_over_two_processes_is_that_of_one(policy, tmp_path) -> None:
    made = {
        cards: policy.finetuned(MemoryRun(tmp_path / str(cards)), TEXTS, replace(OUTER, cards=cards), name="x", seed=1)
        for cards in (1, 2)
    }
    (one, loss), (two, same) = made.values()
    assert same == pytest.approx(loss, rel=1e-5)
    assert furthest(one.model, two.model) < 1e-3 * furthest(one.model, policy.model)  # sums in another order


def test_all_weights_trained_over_two_processes_are_those_of_one(policy) -> None:
    settings = Pretraining(cpt_lr=1e-3, cpt_epochs=2, cpt_batch=3)
    documents = [asked + text for asked, text in TEXTS]
    (one, first), (two, second) = (
        policy.pretrained(documents, replace(settings, cards=cards), seed=1) for cards in (1, 2)
    )
    assert second["losses"] == pytest.approx(first["losses"], rel=1e-5)
    assert (second["tokens"], second["targets"]) == (first["tokens"], first["targets"])
    # AdamW divides by the size of a gradient, so the order of a sum shows where gradients are small
    assert furthest(one.model, two.model) < 5e-3 * furthest(one.model, policy.model)


def test_what_ends_a_training_ends_it_with_the_same_error(policy) -> None:
    settings = {"lr": 1e30, "epochs": 3, "batch": 3, "method": "full", "clip": None}
    with pytest.raises(DivergedError, match="sft: loss is .* at step .* of 9; lower lr"):
        sft_over(2, policy.model, vars(policy.base), TEXTS, **settings)


def test_more_cards_than_there_are_are_refused_before_anything_starts(monkeypatch) -> None:
    class OnCard(torch.nn.Module):
        def parameters(self, recurse: bool = True):
            return iter([type("Weight", (), {"device": torch.device("cuda")})()])

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ParameterError, match="cards: 4 were asked for, this machine shows 2"):
        sft_over(4, OnCard(), {}, TEXTS, lr=1.0, epochs=1, batch=1)


def test_bfloat16_weights_that_are_cut_are_updated_as_whole_ones_are(tmp_path) -> None:
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    start, gradient = torch.randn(8, 4).bfloat16(), torch.randn(8, 4).bfloat16()
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        trained = []
        for place in (lambda t: t.clone(), lambda t: distribute_tensor(t.clone(), mesh)):
            weight = torch.nn.Parameter(place(start))
            weight.grad = place(gradient)
            HalfAdamW([weight], 1e-2, 0.0, seed=3).step()
            trained.append(weight.detach())
        assert torch.equal(trained[0], trained[1].full_tensor()) and not torch.equal(trained[0], start)
    finally:
        dist.destroy_process_group()


def test_the_plan_says_what_one_card_and_what_several_need() -> None:
    name = "30_continued_pretraining"
    p = params.resolve(name, "paper")
    work, shape, card = cells.of(name, p), budget.shape_of(p["model"]), costs.device("h100")

    def all_weights(cards: int) -> budget.Budget:
        found = needs.budgets(p | {"cards": cards}, work, shape, card)
        return next(one for one in found if one.title.endswith("all weights"))

    assert not all_weights(1).fits and all_weights(2).fits
    assert all_weights(1).needed > all_weights(2).needed > all_weights(4).needed
    assert manifest.run_key(name, p) == manifest.run_key(name, p | {"cards": 4})  # not part of the key
