"""The adapter bank trains each job exactly as if it were alone. Run: pytest tests/training/test_bank.py"""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from seal_lib.errors import DataError, ParameterError, SealError
from seal_lib.seeds import derive_seed
from seal_lib.training import packing
from seal_lib.training.adapters import target_linears
from seal_lib.training.bank import AdapterBank
from seal_lib.training.finetune import lora, train_alone
from seal_lib.training.jobs import Example, Job, Result, pad_examples, uniform

torch.set_num_threads(1)
SIZES = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=96,
    tie_word_embeddings=True,
)
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=8)),
}


def make(family: str = "llama", dtype=torch.float32):
    torch.manual_seed(0)
    model = FAMILIES[family]()
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.1)
    return model.to(dtype).eval()


@pytest.fixture
def exact(monkeypatch):
    """A float64 model without Hugging Face's float32 islands, so that only the order of sums differs."""
    monkeypatch.setattr(
        LlamaRMSNorm,
        "forward",
        lambda self, x: self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon),
    )
    return make(dtype=torch.float64)


def tokens(seed: int, length: int) -> list[int]:
    return torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def examples(seed: int, n: int = 3, low: int = 4) -> list[Example]:
    return [Example(tokens(100 * seed + i, low + (7 * i + 3 * seed) % 11)) for i in range(n)]


def mixed_jobs() -> list[Job]:
    """Eleven jobs that differ in everything a job can differ in."""
    masked = [
        replace(e, weights=[0.0, 0.0, *[0.5 + i % 3 for i in range(len(e.ids) - 3)], 0.0]) for e in examples(3, 4)
    ]
    return [
        Job("plain", examples(0), lr=1e-2, epochs=3, rank=4, alpha=8, seed=1),
        Job("pairs", examples(1, 5), lr=3e-3, epochs=2, rank=4, alpha=4, batch=2, seed=2),
        Job("full rank", examples(2, 2, low=12), lr=1e-3, epochs=5, rank=8, alpha=16, seed=3),
        Job("masked", masked, lr=5e-3, epochs=2, rank=2, alpha=8, seed=4, schedule="cosine", warmup=2),
        Job("tight clip", examples(4), lr=1e-2, epochs=3, rank=1, alpha=2, seed=5, clip=0.05),
        Job("no clip", examples(5, 1), lr=1e-2, epochs=7, rank=8, alpha=8, seed=6, clip=None, schedule="constant"),
        Job("decay", examples(6), lr=2e-2, epochs=2, rank=3, alpha=6, seed=7, weight_decay=0.1, betas=(0.8, 0.99)),
        Job("one step", examples(7, 1), lr=1e-2, epochs=1, rank=4, alpha=8, seed=8),
        Job("probes", [pad_examples(tokens(5, 9), "probe:6", 60, 0, 1)], lr=1e-2, epochs=6, rank=4, alpha=8, seed=9),
        Job("ordered", examples(8), lr=1e-2, rank=5, alpha=8, seed=10, order=[(0,), (2, 1), (1,), (0, 1, 2)]),
        Job("late", examples(9, 4), lr=3e-3, epochs=3, rank=4, alpha=16, batch=3, seed=11, eps=1e-6),
    ]


def difference(a, b) -> float:
    """Largest relative Frobenius difference of any module's update."""
    return max(float((a.delta(n) - b.delta(n)).norm() / b.delta(n).norm()) for n in b.weights)


def test_products_are_grouped_where_torch_can():
    for dtype, can in ((torch.float32, True), (torch.float64, False)):
        with AdapterBank(make(), slots=2, dtype=dtype) as bank:
            assert bank.groupable is can


def test_eleven_mixed_jobs_through_eight_slots_equal_each_alone_in_float64(exact):
    jobs = mixed_jobs()
    with AdapterBank(exact, slots=8, dtype=torch.float64) as bank:
        results = bank.run(jobs)
    assert [r.id for r in results] == [j.id for j in jobs]
    for job, result in zip(jobs, results, strict=True):
        alone = train_alone(exact, job)
        assert difference(result.adapter, alone.adapter) <= 1e-9, job.id
        assert result.losses == pytest.approx(alone.losses, rel=1e-9)
        assert (result.steps, result.tokens) == (alone.steps, alone.tokens)


@pytest.mark.parametrize("grouped_from", [math.inf, 0])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_peft_in_float32(family, grouped_from, monkeypatch):
    monkeypatch.setattr(packing, "GROUPED_FROM", grouped_from)
    model = make(family)
    jobs = [job for job in mixed_jobs() if family != "mistral" or job.id != "probes"]
    with AdapterBank(model, slots=8) as bank:
        results = bank.run(jobs)
    for job, result in zip(jobs, results, strict=True):
        alone = train_alone(model, job)
        assert difference(result.adapter, alone.adapter) <= 1e-3, job.id
        assert len(set(result.losses)) == result.steps  # something is learnt at every step


def test_bfloat16_base_is_as_near_to_alone_as_rounding_allows():
    model, jobs = (
        make(dtype=torch.bfloat16),
        [Job(str(i), examples(i), lr=5e-3, epochs=4, rank=4, alpha=8, seed=i) for i in range(4)],
    )
    with AdapterBank(model, slots=4) as bank:
        results = bank.run(jobs)
    for job, result in zip(jobs, results, strict=True):
        assert result.adapter.weights["model.layers.0.self_attn.q_proj"][0].dtype == torch.float32
        assert difference(result.adapter, train_alone(model, job).adapter) < 0.2  # another seed: about 1.4
        assert result.losses == pytest.approx(train_alone(model, job).losses, rel=2e-2)


def test_a_layer_used_twice_gets_both_gradients(exact):
    exact.model.layers[1] = exact.model.layers[0]
    job = mixed_jobs()[0]
    with AdapterBank(exact, dtype=torch.float64) as bank:
        (result,) = bank.run([job])
    assert difference(result.adapter, train_alone(exact, job).adapter) <= 1e-9


def test_checkpointing_and_token_budget_change_nothing(exact):
    jobs = mixed_jobs()
    with AdapterBank(exact, slots=8, dtype=torch.float64) as bank:
        expected = bank.run(jobs)
    for options in (
        {"gradient_checkpointing": True},
        {"tokens_per_step": 25},
        {"tokens_per_step": 60},
        {"slots": 1},
    ):
        with AdapterBank(exact, **{"slots": 8, "dtype": torch.float64} | options) as bank:
            for result, other in zip(bank.run(jobs), expected, strict=True):
                assert difference(result.adapter, other.adapter) <= 1e-9, options


def test_a_job_does_not_feel_its_neighbours_or_its_place(exact):
    jobs = mixed_jobs()
    with AdapterBank(exact, slots=3, dtype=torch.float64) as bank:
        first = {r.id: r for r in bank.run(jobs)}
        second = {r.id: r for r in bank.stream([*reversed(jobs), Job("new", examples(20), rank=2, epochs=9)])}
    for job in jobs:
        assert difference(second[job.id].adapter, first[job.id].adapter) <= 1e-6


@pytest.mark.parametrize("grouped_from", [math.inf, 0])
def test_a_diverging_job_ends_with_a_reason_and_harms_nobody(grouped_from, monkeypatch):
    monkeypatch.setattr(packing, "GROUPED_FROM", grouped_from)
    model, jobs = make(), mixed_jobs()
    bad = Job("bad", examples(0), lr=1e30, epochs=4, rank=4, alpha=8, seed=1, clip=None)
    with AdapterBank(model, slots=12) as bank:
        undisturbed = bank.run(jobs)
        disturbed = bank.run([bad, *jobs[:5], replace(bad, id="worse", lr=float("nan")), *jobs[5:]])
    harmed = [r for r in disturbed if r.outcome != "ok"]
    assert [r.id for r in harmed] == ["bad", "worse"]
    assert all(r.adapter is None and "at step 2 of 12" in r.reason and len(r.losses) == 2 for r in harmed)
    for result, other in zip((r for r in disturbed if r.outcome == "ok"), undisturbed, strict=True):
        assert difference(result.adapter, other.adapter) <= 1e-4


def test_pads_in_the_loss_are_refused_where_attention_has_a_window():
    with AdapterBank(make("mistral")) as bank, pytest.raises(SealError, match="sees only 8 tokens back"):
        bank.run([Job("j", [pad_examples(tokens(1, 6), "probe:8", 60)])])


def test_divergence_in_the_last_update_is_found():
    with AdapterBank(make(), slots=2) as bank:
        (result,) = bank.run([Job("last", examples(7, 1), lr=float("nan"), epochs=1, rank=2, alpha=2)])
    assert (result.outcome, result.adapter) == ("diverged", None)
    assert "not finite after step 1" in result.reason


def test_initial_weights_depend_on_the_job_alone():
    model = make()
    still = Job("still", examples(1, 1), lr=0.0, epochs=1, rank=3, alpha=6, seed=5)
    with AdapterBank(model, slots=4) as bank:
        bank.least_rank = 9
        _, wide = bank.run([mixed_jobs()[2], still])
    with AdapterBank(model, slots=1) as bank:
        (narrow,) = bank.run([still])
        (other,) = bank.run([replace(still, seed=6)])
        (again,) = bank.run([replace(still, init=narrow.adapter, lr=1e-2, epochs=2)])
    assert wide.adapter.digest() == narrow.adapter.digest() != other.adapter.digest()
    a, b = narrow.adapter.weights["model.layers.0.mlp.down_proj"]
    assert not b.any() and 0.8 * 48**-0.5 < float(a.abs().max()) <= 48**-0.5  # PEFT's kaiming_uniform, a = sqrt 5
    assert again.losses[0] == pytest.approx(narrow.losses[0]) and again.losses[1] < again.losses[0]


def hashed(number: int) -> int:
    """One 32-bit integer through lowbias32, in Python's own integers."""
    number ^= number >> 16
    number = number * 0x21F0AAAD % 2**32
    number ^= number >> 15
    number = number * 0x735A2D97 % 2**32
    return number ^ number >> 15


def test_draws_follow_the_arithmetic_of_whole_numbers_and_are_uniform():
    key = derive_seed("uniform", 7)
    wanted = [hashed(hashed(i ^ key % 2**32) ^ key >> 32) // 256 / 2**23 - 1 for i in range(2**32 - 100, 2**32)]
    assert uniform(7, 2**32 - 100, 100, "cpu").tolist() == wanted
    one, other = uniform(0, 0, 50_000, "cpu"), uniform(1, 0, 50_000, "cpu")
    assert torch.equal(uniform(0, 20_000, 9, "cpu"), one[20_000:20_009])  # a stream, wherever it is entered
    for draws in (one, other):
        assert stats.kstest(draws.double().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
        assert abs(float(torch.corrcoef(torch.stack([draws[1:], draws[:-1]]))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.02
    assert len(set(one.tolist()) & set(other.tolist())) < 0.02 * len(one)  # neighbours' seeds are no permutations


def test_the_plain_model_comes_back_bitwise():
    model = make().train()
    model.lm_head.weight.requires_grad_(False)
    ids, flags = torch.randint(0, 97, (2, 9)), [p.requires_grad for p in model.parameters()]
    weights = {name: p.clone() for name, p in model.state_dict().items()}
    before, attention = model(input_ids=ids).logits, model.config._attn_implementation
    bank = AdapterBank(model, slots=4, gradient_checkpointing=True)
    bank.run(mixed_jobs()[:3])
    assert not any(p.requires_grad for p in model.parameters())
    bank.close()
    assert torch.equal(model(input_ids=ids).logits, before)
    assert all(torch.equal(p, weights[name]) for name, p in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model.config._attn_implementation == attention and not model.is_gradient_checkpointing
    assert all(module.training for module in model.modules())
    with pytest.raises(SealError, match="closed"):
        bank.run(mixed_jobs())


def test_an_abandoned_stream_leaves_the_bank_usable():
    model, jobs = make(), mixed_jobs()
    with AdapterBank(model, slots=2) as bank:
        stream = bank.stream(jobs)
        next(stream)
        with pytest.raises(SealError, match="still streaming"):
            bank.run(jobs)
        stream.close()
        seen = []
        assert bank.run(jobs[:2], on_step=seen.append)[0].outcome == "ok"
    assert seen[-1]["steps"] == seen[-1]["of"] == 15


def padded_loss(model, ids: list[int], length: int) -> torch.Tensor:
    """The authors' loss in Hugging Face's own words: padded with EOS (0), pads hidden as keys but kept as labels."""
    padded = torch.tensor([ids + [0] * (length - len(ids))])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids))])
    return model(input_ids=padded, attention_mask=mask, labels=padded.clone()).loss


def test_pad_loss_full_is_the_padded_computation():
    model = make()
    documents = [tokens(i, 6 + i) for i in range(3)]
    job = Job("full", [pad_examples(d, "full", 40, 0) for d in documents], lr=1e-2, epochs=2, rank=4, alpha=8)
    with AdapterBank(model, slots=1) as bank:
        (result,) = bank.run([job])
    order = [i for (i,) in job.plan()]
    assert result.losses[0] == pytest.approx(padded_loss(model, documents[order[0]], 40).item(), rel=1e-5)
    # and the same gradients: train with that loss through PEFT
    start = job.initial(target_linears(model, "all-linear"))
    with lora(model, start, 4, 8) as w:
        parameters = [p for pair in w.values() for p in pair]
        optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
        for step, i in enumerate(order):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 6)
            padded_loss(model, documents[i], 40).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        for name, (a, b) in w.items():
            delta = 2 * (b @ a).detach()
            assert float((result.adapter.delta(name) - delta).norm() / delta.norm()) < 1e-3


def test_as_many_probes_as_pads_are_the_full_loss_and_few_estimate_it():
    model, ids = make(), tokens(3, 11)
    assert pad_examples(ids, "probe:500", 40, 0, seed=3) == pad_examples(ids, "full", 40, 0)
    probes = pad_examples(ids, "probe:8", 90, 0, seed=3)
    assert len(probes.ids) == 11 + 8 + 1 and sum(probes.weights[1:]) == pytest.approx(89)
    where = probes.positions[11:19]
    assert all(11 + 78 * i / 8 - 1 < p < 11 + 78 * (i + 1) / 8 for i, p in enumerate(where))  # one in each stratum
    kinds = ("full", "probe:8", "none")
    jobs = [Job(kind, [pad_examples(ids, kind, 90, 0, 3)], epochs=1, rank=2, alpha=2) for kind in kinds]
    with AdapterBank(model, slots=3) as bank:
        full, probe, plain = (r.losses[0] for r in bank.run(jobs))
    assert abs(probe - full) < 0.5 * abs(plain - full)


@pytest.mark.parametrize(
    ("example", "reach"),
    [
        (Example([5, 6, 7]), 2),  # the last token is only predicted
        (Example([5, 6, 7, 8], weights=[0, 0, 1.0, 0]), 2),  # nothing is asked of what comes later
        (Example([5, 6, 7], weights=[1.0, 0, 0]), 0),  # the first is never predicted
        (Example([5, 6, 7], positions=[0, 4, 9]), 5),
        (pad_examples([5] * 3, "full", 8), 7),
        (pad_examples([5] * 3, "none", 8), 2),
    ],
)
def test_an_example_reaches_as_many_positions_as_its_inputs_take(example, reach):
    assert example.reach == reach


def test_a_padded_example_by_hand():
    full = pad_examples([5, 6, 7], "full", 9, eos=2)
    assert (full.ids, full.positions) == ([5, 6, 7] + [2] * 6, list(range(9)))
    assert (full.weights, full.visible, full.denominator) == ([1.0] * 9, 3, 8)
    few = pad_examples([5, 6, 7], "probe:2", 9, eos=2)
    assert few.ids == [5, 6, 7, 2, 2, 2] and few.weights == [1.0] * 4 + [2.5] * 2 and few.denominator == 8
    assert few.positions[3] in (3, 4) and few.positions[4] in (5, 6, 7) and few.positions[5] == few.positions[4] + 1
    assert pad_examples([5], "full", 4, eos=2).ids == [5, 2, 2, 2]
    for n, pads, positions in ((7, 2, [*range(9)]), (8, 1, None), (9, 0, None)):  # too short for one pad after another
        short = pad_examples([5] * n, "full", 9, eos=2)
        assert (short.ids, short.positions, short.denominator) == ([5] * n + [2] * pads, positions, 8)


def test_a_result_sums_up_its_first_and_last_loss():
    assert Result("j", None, [3.0, 2.0, 1.0], 3, 7).summary() == {
        "steps": 3,
        "tokens": 7,
        "first_loss": 3.0,
        "last_loss": 1.0,
    }
    assert math.isnan(Result("j", None, [], 0, 0).summary()["last_loss"])


def test_pad_examples_eos_and_errors():
    assert pad_examples([5, 6], "none", eos=0).ids == [5, 6]
    assert pad_examples([5, 6], "eos", eos=0).ids == pad_examples([5, 6, 0], "eos", eos=0).ids == [5, 6, 0]
    assert pad_examples([5] * 40, "full", 40, 0).ids == [5] * 40
    with pytest.raises(ParameterError, match="'probe:0'"):
        pad_examples([5, 6], "probe:0")
    with pytest.raises(DataError, match="41 tokens"):
        pad_examples([5] * 41, "full", 40)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job("j", []), "'j' has no examples"),
        (Job("j", [Example([3])]), "none to predict"),
        (Job("j", [Example(tokens(1, 98))]), "position 96, past the model's 96"),
        (Job("j", [Example([3, 97])]), "outside 0 … 96"),
        (Job("j", [Example([3, 4], positions=[0])]), "do not fit"),
        (Job("j", examples(1), schedule="exponential"), "'exponential'"),
        (Job("j", examples(1), epochs=0), "epochs must be at least 1"),
    ],
)
def test_a_job_that_cannot_be_trained_is_refused_before_anything_runs(job, message):
    with AdapterBank(make(), slots=2) as bank, pytest.raises(SealError, match=message):
        bank.run([Job("good", examples(1), rank=2), job], on_step=lambda _: pytest.fail("a step was taken"))


def test_bad_target_and_uncooperative_model_leave_the_model_alone(monkeypatch):
    model = make()
    with pytest.raises(ParameterError, match="'c_attn' names no Linear"):
        AdapterBank(model, targets=["c_attn"])
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **kw: type(o := forward(**kw))(logits=o.logits * 1.1))
    with pytest.raises(SealError, match="own logits"):
        AdapterBank(model)
    assert all("forward" not in m.__dict__ for m in model.modules() if m is not model)
