"""What only an NVIDIA GPU can show: captured steps, texts and adapters equal to the CPU's, memory that really runs out.

Run: make test-gpu. Without a GPU the same code runs on the CPU with a smaller model, which shows that it runs and no
more; what only a card has (graphs, its memory, 4 bits) is skipped there, visibly.
"""

import random

import pytest
import torch
from fixtures_seal import seedling
from test_bank import difference

from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation.hf import HFGenerator
from seal_lib.training import adamw
from seal_lib.training.bank import AdapterBank
from seal_lib.training.finetune import train_alone
from seal_lib.training.jobs import Example, Job, uniform

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
pytestmark = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")


def model(dtype: torch.dtype = torch.bfloat16, width: int = 512 if GPU else 64) -> torch.nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2048,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen2ForCausalLM(config).to(DEVICE, dtype).eval().requires_grad_(False)


def jobs(count: int = 14 if GPU else 5, vocabulary: int = 2048, **more) -> list[Job]:
    draw = random.Random(0)
    documents = [
        [Example([draw.randrange(2, vocabulary) for _ in range(draw.randrange(8, 90))]) for _ in range(3)]
        for _ in range(count)
    ]
    options = {"lr": 1e-3, "epochs": 6, "rank": 16, "alpha": 32} | more
    return [Job(str(i), examples, seed=i, **options) for i, examples in enumerate(documents)]


def apart(results, others) -> float:
    return max(difference(a.adapter, b.adapter) for a, b in zip(results, others, strict=True))


def test_initial_weights_are_those_of_a_cpu() -> None:
    assert torch.equal(uniform(3, 100, 1 << 20, DEVICE).cpu(), uniform(3, 100, 1 << 20, "cpu"))


def test_the_bank_equals_each_alone_in_float32() -> None:
    frozen, several = model(torch.float32), jobs()
    with AdapterBank(frozen, slots=8) as bank:
        assert not bank.fixed
        results = bank.run(several)
    assert apart(results, [train_alone(frozen, job) for job in several]) < 5e-3  # another seed: about 1.4


def test_captured_steps_are_as_near_to_plain_ones_as_plain_ones_are_to_float32() -> None:
    several, results = jobs(), {}
    ways = {"exact": (torch.float32, False), "plain": (torch.bfloat16, False), "captured": (torch.bfloat16, True)}
    for name, (dtype, fixed) in ways.items():
        with AdapterBank(model(torch.bfloat16).to(dtype), slots=8, fixed=fixed) as bank:
            results[name] = bank.run(several)
            assert bank.fixed == fixed and (bank.captures > 0 and bank.replays > 20) == (fixed and GPU)
    rounding = apart(results["plain"], results["exact"])
    assert rounding < 0.2 and apart(results["captured"], results["exact"]) < 1.5 * rounding  # another seed: about 1.4
    losses = [[r.losses[-1] for r in results[name]] for name in ("captured", "exact")]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_captured_steps_repeat_exactly_and_do_not_depend_on_their_size() -> None:
    found = []
    for tokens in (None, 200, None):
        with AdapterBank(model(), slots=8, tokens_per_step=tokens) as bank:
            found.append(bank.run(jobs()))
    assert apart(found[0], found[2]) == 0.0
    assert apart(found[0], found[1]) < 0.2


def test_the_compiled_update_is_the_plain_one() -> None:
    torch.manual_seed(0)
    stores = [torch.randn(5, 1000), torch.randn(5, 1000), torch.zeros(5, 1000), torch.zeros(5, 1000)]
    rows = torch.tensor([[1.0, 0.9, 1e-2, 0.1, 0.9, 0.99, 1e-8, 1.0], [*adamw.IDLE]] * 2 + [[*adamw.IDLE]])
    there = [x.to(DEVICE, copy=True) for x in stores]
    adamw.update(*stores, rows)
    adamw.update(*there, rows.to(DEVICE))
    for here, other in zip(stores, there, strict=True):
        assert torch.allclose(here, other.cpu(), rtol=1e-5, atol=1e-6)


@needs_gpu
def test_memory_that_really_runs_out_halves_the_slots_and_changes_no_result() -> None:
    frozen, several = model(width=1024), jobs(40)
    with AdapterBank(frozen, slots=4) as bank:
        expected = bank.run(several)
    torch.cuda.empty_cache()
    used, whole = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((used + 1.0e9) / whole)
    try:
        with AdapterBank(frozen, slots=40) as bank:
            results = bank.run(several)
            assert bank.halvings > 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert apart(results, expected) < 0.2


@pytest.mark.parametrize("fixed", [False, True])
def test_texts_are_those_of_a_cpu(fixed: bool) -> None:
    frozen, tokenizer = seedling()
    asked = [Request(f"Question: What is number {i}?\nAnswer:", seed=i) for i in range(9)]
    ways = (Sampling(24), Sampling(24, temperature=1.0, n=4), Sampling(24, temperature=1.0, top_p=0.9, stop=("\n",)))
    expected = [HFGenerator(frozen, tokenizer).generate(asked, sampling) for sampling in ways]
    try:
        there = HFGenerator(frozen.to(DEVICE), tokenizer, fixed=fixed)
        assert [there.generate(asked, sampling) for sampling in ways] == expected
    finally:
        frozen.to("cpu")


@needs_gpu
def test_four_bits_train_and_answer() -> None:
    pytest.importorskip("bitsandbytes")
    from seal_lib import models

    frozen, tokenizer = models.load("seedling", dtype="4bit", device="cuda")
    with AdapterBank(frozen, slots=2) as bank:
        assert not bank.fixed
        results = bank.run(jobs(2, vocabulary=len(tokenizer)))
    assert all(r.outcome == "ok" and r.losses[-1] < r.losses[0] for r in results)
