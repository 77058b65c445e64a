"""The outer loop on puzzles: the M-step's schedule is the authors', and every setting of it reaches the optimiser."""

import json
from dataclasses import fields, replace

import pytest
import torch
from fixtures_seal import MemoryRun
from transformers.optimization import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from seal_lib import models
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.runs import params
from seal_lib.training import finetune as training

OUTER = OuterLoop(sft_rank=4, sft_alpha=4, sft_lr=5e-5, sft_epochs=3, sft_batch=2, sft_schedule="cosine")
PAIRS = [([1, 2, 3], [4, 5 + k]) for k in range(7)]  # 4 steps an epoch, 12 in all


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy("untrained", *models.load("seedling-grids"))


def rates(policy: Policy, folder, outer: OuterLoop) -> list[float]:
    """The learning rate of each step of an M-step, as its artifact records them."""
    run = MemoryRun(folder)
    policy.finetuned(run, PAIRS, outer, name="p", seed=0)
    return json.loads((folder / "policies" / "p" / "report.json").read_text())["learning_rates"]


def theirs(make, steps: int, warmup: int, lr: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule, found = make(optimizer, warmup, steps), []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(("ratio", "warmup"), [(0.0, 0), (0.25, 3)])
def test_the_m_step_falls_as_transformers_cosine_step_by_step(policy, tmp_path, ratio: float, warmup: int) -> None:
    ours = rates(policy, tmp_path / "c", replace(OUTER, sft_warmup_ratio=ratio))
    assert ours == pytest.approx(theirs(get_cosine_schedule_with_warmup, 12, warmup, 5e-5))
    straight = rates(policy, tmp_path / "l", replace(OUTER, sft_schedule="linear", sft_warmup_ratio=ratio))
    assert straight == pytest.approx(theirs(get_linear_schedule_with_warmup, 12, warmup, 5e-5))
    assert max(abs(a - b) for a, b in zip(ours, straight, strict=True)) > 5e-6


def test_every_setting_of_the_m_step_reaches_it(policy, tmp_path, monkeypatch) -> None:
    """A field named sft_… that changes nothing in the call is a parameter that lies."""
    seen: list[dict] = []

    class Enough(Exception):
        pass

    def sft(model, pairs, **options):
        seen.append(options)
        raise Enough

    monkeypatch.setattr(training, "sft", sft)
    other = {
        "sft_rank": 8,
        "sft_alpha": 8.0,
        "sft_lr": 1e-4,
        "sft_epochs": 1,
        "sft_batch": 3,
        "sft_schedule": "constant",
        "sft_warmup_ratio": 0.5,
        "sft_weight_decay": 0.1,
        "sft_clip": 0.0,
        "sft_targets": "qv",
    }
    names = [field.name for field in fields(OuterLoop) if field.name.startswith("sft_")]
    assert set(names) == set(other)
    for k, changes in enumerate(({}, *({name: other[name]} for name in names))):
        with pytest.raises(Enough):
            policy.finetuned(MemoryRun(tmp_path / str(k)), PAIRS, replace(OUTER, **changes), name="p", seed=0)
    first, *rest = seen
    for name, options in zip(names, rest, strict=True):
        assert {key for key in first if first[key] != options[key]}, f"{name} does not reach sft"


@pytest.mark.parametrize(("scale", "schedule"), [("paper", "cosine"), ("small", "cosine"), ("seedling", "cosine")])
def test_arc_uses_the_authors_schedule_at_every_scale(scale: str, schedule: str) -> None:
    found = params.pick(OuterLoop, params.resolve("21_arc_self_edits", scale))
    assert (found.sft_schedule, found.sft_warmup_ratio, found.sft_weight_decay, found.sft_clip) == (schedule, 0, 0, 1)


def test_knowledge_uses_the_trainers_linear_decay() -> None:
    found = params.pick(OuterLoop, params.resolve("12_restem_rounds", "paper"))
    assert (found.sft_schedule, found.sft_warmup_ratio, found.sft_weight_decay, found.sft_clip) == ("linear", 0, 0, 1)
