"""Supervised fine-tuning of one corpus, and the schedules shared with the bank."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from seal_lib.errors import DataError, DivergedError, ParameterError
from seal_lib.training.adapters import merge
from seal_lib.training.bank import AdapterBank
from seal_lib.training.finetune import sft
from seal_lib.training.jobs import Example, Job, learning_rate

torch.set_num_threads(1)
SETTINGS = dict(rank=4, alpha=8, lr=1e-2, epochs=2, batch=4, seed=3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=53,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=True,
        )
    ).eval()


@pytest.fixture
def pairs():
    draw = torch.Generator().manual_seed(1)
    return [
        tuple(torch.randint(1, 53, (n,), generator=draw).tolist() for n in (3 + 2 * i % 5, 2 + i)) for i in range(6)
    ]


def difference(a, b) -> float:
    return max(float((a.delta(n) - b.delta(n)).norm() / b.delta(n).norm()) for n in b.weights)


@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_those_of_transformers(warmup):
    def theirs(make, *total):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule, factors = make(optimizer, warmup, *total), []
        for _ in range(10):
            factors.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return factors

    for name, expected in (
        ("linear", theirs(get_linear_schedule_with_warmup, 10)),
        ("cosine", theirs(get_cosine_schedule_with_warmup, 10)),
        ("constant", theirs(get_constant_schedule_with_warmup)),
    ):
        assert [learning_rate(name, step, 10, warmup) for step in range(10)] == pytest.approx(expected)


def test_first_loss_is_the_mean_over_completion_tokens_alone(model, pairs):
    _, report = sft(model, pairs, **SETTINGS | {"batch": 6, "epochs": 1})
    nll = []
    for prompt, completion in pairs:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        nll.append(F.cross_entropy(logits, torch.tensor(completion), reduction="none"))
    assert report["first_loss"] == pytest.approx(torch.cat(nll).mean().item(), rel=1e-5)
    assert report["targets"] == sum(len(completion) for _, completion in pairs)
    _, whole = sft(model, pairs, **SETTINGS | {"batch": 6, "epochs": 1}, loss_on="all")
    assert whole["targets"] == report["tokens"] - len(pairs)
    assert abs(whole["first_loss"] - report["first_loss"]) > 1e-3


@pytest.mark.parametrize(
    "options", [{"batch": 2, "accumulate": 2}, {"batch": 1, "accumulate": 4}, {"gradient_checkpointing": True}]
)
def test_how_a_batch_is_cut_and_padded_does_not_matter(model, pairs, options):
    whole, report = sft(model, pairs, **SETTINGS)
    cut, other = sft(model, pairs, **SETTINGS | options)
    assert difference(cut, whole) < 1e-3
    assert other["losses"] == pytest.approx(report["losses"], rel=1e-4)


def test_sft_and_the_bank_train_the_same_adapter(model, pairs):
    ours, report = sft(model, pairs, **SETTINGS | {"batch": 2}, schedule="cosine", warmup_ratio=0.5)
    masked = [Example(p + c, weights=[0.0] * len(p) + [1.0] * len(c)) for p, c in pairs]
    job = Job("sft", masked, lr=1e-2, epochs=2, rank=4, alpha=8, batch=2, seed=3, schedule="cosine", warmup=3)
    with AdapterBank(model) as bank:
        (result,) = bank.run([job])
    assert difference(ours, result.adapter) < 1e-3
    assert report["losses"] == pytest.approx(result.losses, rel=1e-4)


def test_same_seed_same_bits_and_the_model_is_left_alone(model, pairs):
    before = {name: p.clone() for name, p in model.state_dict().items()}
    model.lm_head.weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    torch.manual_seed(1)
    first, report = sft(model, pairs, **SETTINGS)
    torch.manual_seed(2)  # the global generator plays no part
    again, _ = sft(model, pairs, **SETTINGS)
    other, _ = sft(model, pairs, **SETTINGS | {"seed": 4})
    assert first.digest() == again.digest() != other.digest()
    assert report["last_loss"] < report["first_loss"] and report["steps"] == 4
    assert {n: p for n, p in model.state_dict().items()}.keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags and not model.training


def test_the_merged_model_has_the_loss_training_ended_with(model, pairs):
    settings = SETTINGS | {"batch": 6, "epochs": 6}
    adapter, report = sft(model, pairs, **settings)
    merged = merge(model, adapter, copy=True)
    _, after = sft(merged, pairs, **settings | {"epochs": 1})
    assert report["losses"] == sorted(report["losses"], reverse=True)
    assert after["first_loss"] < report["last_loss"]  # the merged model is one update further


def test_full_fine_tuning_changes_a_copy_or_the_model_itself(model, pairs):
    before = {name: p.clone() for name, p in model.state_dict().items()}
    trained, report = sft(model, pairs, **SETTINGS, method="full")
    assert trained is not model and not any(p.requires_grad for p in trained.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not torch.equal(trained.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert report["last_loss"] < report["first_loss"]
    same, _ = sft(model, pairs, **SETTINGS, method="full", in_place=True)
    assert same is model
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), trained.parameters(), strict=True))


def test_divergence_is_an_error_and_leaves_the_model_plain(model, pairs):
    names = list(model.state_dict())
    with pytest.raises(DivergedError, match=r"step 2 of 4; lower lr 1e\+30"):
        sft(model, pairs, **SETTINGS | {"lr": 1e30}, clip=None)
    assert list(model.state_dict()) == names and not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pairs": []}, DataError, "no examples"),
        ({"pairs": [([1, 2], [])]}, DataError, "example 0 has no token to predict"),
        ({"pairs": [([1], [2] * 32)]}, DataError, "33 tokens, the model takes 32"),
        ({"loss_on": "prompt"}, ParameterError, "'prompt'"),
        ({"method": "qlora"}, ParameterError, "'qlora'"),
        ({"schedule": "step"}, ParameterError, "'step'"),
        ({"targets": "c_attn"}, ParameterError, "'c_attn'"),
    ],
)
def test_what_cannot_be_trained_is_refused(model, pairs, change, error, message):
    change = {"pairs": pairs} | change
    with pytest.raises(error, match=message):
        sft(model, change.pop("pairs"), **SETTINGS | change)
