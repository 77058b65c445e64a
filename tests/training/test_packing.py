"""Where tokens lie: moving them and back, and padding where that is cheaper."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from seal_lib.training import packing, steps
from seal_lib.training.bank import AdapterBank
from seal_lib.training.jobs import Example, Job, pad_examples
from seal_lib.training.packing import Ragged, level, worth_levelling

torch.set_num_threads(1)


def test_collect_undoes_spread_and_its_adjoint_leaves_pads_at_zero():
    x, rows = torch.randn(9, 2), Ragged(torch.tensor([4, 2, 3]), torch.device("cpu"))
    assert torch.equal(rows.collect(rows.spread(x)), x)
    assert torch.equal(rows.spread(x)[1, 2:], x[5].expand(2, 2))  # a pad repeats the last token of its row
    y = torch.randn(3, 4, 2)
    assert (rows.collect(y) * x).sum() == pytest.approx((y * rows.spread_back(x)).sum().item(), rel=1e-5)
    assert not rows.spread_back(x)[1, 2:].any()


def test_level_lengthens_the_last_example_of_each_slot():
    lengths, visible = torch.tensor([3, 2, 4, 1, 2]), torch.tensor([3, 2, 2, 1, 2])
    lengths, visible, slots = level(lengths, visible, torch.tensor([5, 4, 3]))
    assert (lengths.tolist(), visible.tolist(), slots.tolist()) == ([3, 2, 5, 1, 4], [3, 2, 2, 1, 4], [5, 5, 5])


def test_levelling_is_for_slots_of_nearly_one_length_in_narrow_models():
    near, far = torch.tensor([12, 10, 11, 12]), torch.tensor([12, 3, 4, 5])
    assert worth_levelling(near, 128) and not worth_levelling(far, 128)
    assert not worth_levelling(near, 8192)  # where tokens are dear
    assert not worth_levelling(near, 128, most=47) and worth_levelling(near, 128, most=48)  # memory
    assert not worth_levelling(torch.tensor([12, 0, 12]), 128)  # a slot without tokens has none to repeat
    assert not worth_levelling(torch.tensor([12, 12]), 128)  # nothing to do


def test_levelled_or_not_the_adapters_are_the_same(monkeypatch):
    monkeypatch.setattr(
        LlamaRMSNorm,
        "forward",
        lambda self, x: self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon),
    )
    torch.manual_seed(0)
    model = (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=97,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=96,
            )
        )
        .double()
        .eval()
    )
    draw = torch.Generator().manual_seed(1)

    def ids(n: int) -> list[int]:
        return torch.randint(1, 97, (n,), generator=draw).tolist()

    jobs = [
        Job(str(i), [Example(ids(9 + (i + j) % 4)) for j in range(3)], lr=1e-2, epochs=2, rank=3, alpha=6, seed=i)
        for i in range(4)
    ]
    jobs.append(Job("pads", [pad_examples(ids(6), "probe:4", 40)], lr=1e-2, epochs=6, rank=3, alpha=6))
    jobs.append(replace(jobs[0], id="pairs", batch=2, examples=[Example(ids(5 + j % 2)) for j in range(4)], epochs=3))
    calls = []
    monkeypatch.setattr(steps, "level", lambda *args: calls.append(args) or level(*args))
    results = []
    for most in (1e9, 0.0):
        monkeypatch.setattr(packing, "LEVELLING_COST", most)
        with AdapterBank(model, slots=6, dtype=torch.float64) as b:
            results.append(b.run(jobs))
    assert len(calls) >= 6  # all of the first bank, none of the second
    for job, one, other in zip(jobs, *results, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-9), job.id
        for name in other.adapter.weights:
            gap = (one.adapter.delta(name) - other.adapter.delta(name)).norm()
            assert gap <= 1e-9 * other.adapter.delta(name).norm(), (job.id, name)
