"""What every generation engine promises; a new engine is one more row of ENGINES."""

import json
import os
import random
import subprocess
import sys
import textwrap
from functools import lru_cache

import pytest
from fixtures_seal import DOMAIN, NEEDS_VLLM, WORDING, candidate, made, seedling, vllm_settings

from seal_lib.errors import DataError
from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.generation.hf import HFGenerator, next_tokens


def _hf(batch: int = 256):
    return HFGenerator(*seedling(), batch=batch)


def _fixed(batch: int = 256):
    """As on a GPU, but that nothing is captured."""
    return HFGenerator(*seedling(), batch=batch, fixed=True)


def _vllm(batch: int = 256):
    from seal_lib.generation.vllm_engine import VLLMGenerator

    return VLLMGenerator(*seedling(), vllm_settings(), batch)


#: name → constructor taking the number of rows decoded at once
ENGINES = {"hf": _hf, "hf, fixed sizes": _fixed, "vllm": _vllm}

engines = pytest.mark.parametrize("engine", ["hf", "hf, fixed sizes", pytest.param("vllm", marks=NEEDS_VLLM)])
SAMPLED = Sampling(40, temperature=1.0, top_p=0.95, n=3)


def prompts(count: int = 6) -> list[str]:
    """Prompts of very different lengths."""
    passages = made(count)
    return [
        WORDING.write(p) if i % 2 else WORDING.ask(p, p.questions[0], in_context=i % 4 == 2)
        for i, p in enumerate(passages)
    ]


@lru_cache
def adapters() -> tuple:
    """Three adapters that have each learnt another passage; untrained ones would prove nothing."""
    from seal_lib.loops.inner import train
    from seal_lib.loops.policy import Policy

    gold = [candidate(p, p.references["gold"], seed=i) for i, p in enumerate(made(3))]
    return tuple(result.adapter for result in train(Policy("untrained", *seedling()), gold, DOMAIN))


def test_fixed_sizes_write_the_same_texts() -> None:
    plain, fixed, several = _hf(), _fixed(), [*adapters(), None, None, None]
    asked = [Request(p, adapter=a) for p, a in zip(prompts(), several, strict=True)]
    for sampling in (Sampling(21), SAMPLED, Sampling(1), Sampling(30, stop=("\n",))):
        assert fixed.generate(asked, sampling) == plain.generate(asked, sampling)


@engines
def test_n_completions_per_prompt_in_the_order_asked(engine: str) -> None:
    generator, asked = ENGINES[engine](), prompts()
    greedy = generator.generate([Request(p) for p in asked], Sampling(20))
    shuffled = list(range(len(asked)))
    random.Random(1).shuffle(shuffled)
    again = generator.generate([Request(asked[i]) for i in shuffled], Sampling(20))
    assert again == [greedy[i] for i in shuffled]
    assert len({c.text for (c,) in greedy}) > 3  # different prompts, so a mix-up would show
    sampled = generator.generate([Request(p, i) for i, p in enumerate(asked)], SAMPLED)
    assert [len(several) for several in sampled] == [3] * len(asked)
    assert generator.generate([], Sampling(5)) == []


@engines
def test_samples_differ_by_number_and_by_seed_and_repeat_with_the_same_seed(engine: str) -> None:
    generator, prompt = ENGINES[engine](), WORDING.write(made(1)[0])
    sampling = Sampling(40, temperature=1.0, n=8)
    first, other, again = (generator.generate([Request(prompt, seed)], sampling)[0] for seed in (1, 2, 1))
    assert len({c.text for c in first}) >= 6
    assert {c.text for c in first} != {c.text for c in other}
    assert first == again


@engines
def test_a_request_does_not_see_the_rest_of_the_batch(engine: str) -> None:
    requests = [Request(p, seed=i) for i, p in enumerate(prompts())]
    whole = ENGINES[engine]().generate(requests, SAMPLED)
    for batch in (1, 4):
        assert ENGINES[engine](batch).generate(requests, SAMPLED) == whole, batch
    backwards = ENGINES[engine]().generate(requests[::-1], SAMPLED)
    assert backwards[::-1] == whole
    assert ENGINES[engine]().generate(requests[2:3], SAMPLED) == whole[2:3]
    double = ENGINES[engine]().generate([requests[0], *requests], SAMPLED)
    assert double == [whole[0], *whole]  # the same request twice is answered the same twice


@engines
def test_greedy_is_the_models_own_generate_token_by_token(engine: str) -> None:
    import torch

    model, tokenizer = seedling()
    asked = prompts()
    ours = ENGINES[engine]().generate([Request(p) for p in asked], Sampling(48))
    for prompt, (mine,) in zip(asked, ours, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        mask = torch.ones_like(ids)
        whole = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=48)
        theirs = whole[0, ids.shape[1] :].tolist()
        ended = theirs[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(theirs[:-1] if ended else theirs)
        assert mine == Completion(text, len(theirs), "eos" if ended else "length")


@engines
def test_stop_texts_cut_the_text_wherever_they_begin(engine: str) -> None:
    generator, prompt = ENGINES[engine](), WORDING.write(made(2)[1])
    (free,) = generator.generate([Request(prompt)], Sampling(60))[0]
    assert free.text.count("\n") >= 1 and "Passage:" in prompt
    inside = free.text[7:10]  # begins in the middle of a token
    for stop in [("\n",), (inside,), ("\n", inside), (inside, "\n"), (free.text[20:26], "absent")]:
        (cut,) = generator.generate([Request(prompt)], Sampling(60, stop=stop))[0]
        assert cut.text == free.text[: min(free.text.find(s) for s in stop if s in free.text)]
        assert cut.finish == "stop" and cut.tokens < free.tokens
    # what the prompt says stops nothing, and a text that never comes changes nothing
    for stop in (("Passage:",), ("absent",)):
        assert generator.generate([Request(prompt)], Sampling(60, stop=stop))[0] == [free]


@engines
def test_a_stopped_row_does_not_stop_its_neighbours(engine: str) -> None:
    asked = [Request(p) for p in prompts()]
    together = ENGINES[engine]().generate(asked, Sampling(40, stop=("\n",)))
    assert together == [ENGINES[engine]().generate([request], Sampling(40, stop=("\n",)))[0] for request in asked]
    assert len({c.tokens for (c,) in together}) > 1


@engines
def test_max_tokens_is_a_bound_and_the_finish_says_so(engine: str) -> None:
    generator, asked = ENGINES[engine](), [Request(WORDING.write(p), i) for i, p in enumerate(made(4))]
    tokenizer = seedling()[1]
    for limit in (1, 5):
        for several in generator.generate(asked, Sampling(limit, temperature=1.0, n=3)):
            for done in several:
                assert done.tokens == limit if done.finish == "length" else done.tokens <= limit
                assert len(tokenizer(done.text)["input_ids"]) <= limit
    long = generator.generate(asked, Sampling(400, temperature=1.0, n=2))
    assert all(done.finish == "eos" and "<eos>" not in done.text for several in long for done in several)


@engines
def test_each_prompt_gets_its_own_adapter(engine: str) -> None:
    one, two, three = adapters()
    passages = made(3)
    asked = [
        Request(WORDING.ask(p, q), seed=i, adapter=adapter)
        for i, p in enumerate(passages)
        for q in p.questions[:2]
        for adapter in (two, None, one, three, None)
    ]
    for sampling in (Sampling(8), Sampling(8, temperature=1.0, n=2)):
        mixed = ENGINES[engine]().generate(asked, sampling)
        for group in (one, two, three, None):
            here = [i for i, request in enumerate(asked) if request.adapter is group]
            alone = ENGINES[engine]().generate([asked[i] for i in here], sampling)
            assert [mixed[i] for i in here] == alone
        assert ENGINES[engine](4).generate(asked, sampling) == mixed
    greedy = [several[0].text for several in ENGINES[engine]().generate(asked, Sampling(8))]
    by_adapter = {id(a): [t for t, r in zip(greedy, asked, strict=True) if r.adapter is a] for a in (one, two, None)}
    assert by_adapter[id(one)] != by_adapter[id(None)] != by_adapter[id(two)] != by_adapter[id(one)]


@engines
def test_an_adapter_answers_as_peft_answers_with_the_exported_folder(engine: str, tmp_path) -> None:
    import copy

    import torch
    from peft import PeftModel

    model, tokenizer = seedling()
    adapter, passage = adapters()[0], made(3)[0]
    adapter.save(tmp_path / "adapter", "seedling-knowledge")
    peft = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").eval()
    asked = [WORDING.ask(passage, q) for q in passage.questions] + [WORDING.write(passage)]
    ours = ENGINES[engine]().generate([Request(p, adapter=adapter) for p in asked], Sampling(24))
    base = ENGINES[engine]().generate([Request(p) for p in asked], Sampling(24))
    for prompt, (mine,) in zip(asked, ours, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        theirs = peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)[
            0, ids.shape[1] :
        ].tolist()
        assert mine.tokens == len(theirs) and mine.text == tokenizer.decode(theirs, skip_special_tokens=True)
    assert ours != base


@engines
def test_the_model_is_left_as_it_was(engine: str) -> None:
    from fixtures_seal import digest

    before = digest(seedling()[0])
    ENGINES[engine]().generate([Request("Topic:", adapter=adapters()[0]), Request("Topic:")], Sampling(4))
    assert digest(seedling()[0]) == before


@engines
def test_a_prompt_that_cannot_be_read_is_named(engine: str) -> None:
    generator = ENGINES[engine]()
    with pytest.raises(DataError, match="prompt 1 is empty"):
        generator.generate([Request("Topic"), Request("")], Sampling(4))
    with pytest.raises(DataError, match="prompt 2 has .* tokens .*2048"):
        generator.generate([Request("a"), Request("b"), Request("Topic: " * 1500)], Sampling(4))
    with pytest.raises(DataError, match="max_tokens"):
        generator.generate([Request("Topic")], Sampling(2048))
    assert generator.generate([Request("Topic")], Sampling(4))  # and nothing is broken after it


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match="n=3 greedy"):
        Sampling(5, n=3)
    for wrong in (
        {"max_tokens": 0},
        {"max_tokens": 5, "top_p": 0.0},
        {"max_tokens": 5, "top_p": 1.5},
        {"max_tokens": 5, "temperature": -1.0},
    ):
        with pytest.raises(DataError, match="max_tokens ≥ 1"):
            Sampling(**wrong)


def test_no_samples_at_all_is_refused() -> None:
    for n in (0, -1):
        with pytest.raises(DataError):
            Sampling(5, temperature=1.0, n=n)


# ------------------------------------------------------------------------------- sampling by hand


def frequencies(probabilities: list[float], **settings) -> list[float]:
    """How often `next_tokens` takes each token over an even grid of draws: the distribution itself."""
    import torch

    count = 4000
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    logits = torch.tensor(probabilities).log().expand(count, -1)
    taken = next_tokens(logits, Sampling(1, **settings), draws)
    return [(taken == token).double().mean().item() for token in range(len(probabilities))]


P = [0.15, 0.5, 0.05, 0.3]  # not sorted, so the order must be restored


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"temperature": 1.0}, P),
        ({"temperature": 0.5}, [x * x / sum(y * y for y in P) for x in P]),
        ({"temperature": 1.0, "top_p": 0.75}, [0, 0.625, 0, 0.375]),
        ({"temperature": 1.0, "top_p": 0.85}, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),  # the token that crosses stays
        ({"temperature": 1.0, "top_p": 0.4}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_p": 1e-9}, [0, 1, 0, 0]),
        # the nucleus is taken after the temperature: at 0.5 the first two hold 0.89 of the mass
        ({"temperature": 0.5, "top_p": 0.85}, [0, 0.25 / 0.34, 0, 0.09 / 0.34]),
    ],
    ids=str,
)
def test_choose_draws_the_nucleus_distribution(settings: dict, expected: list[float]) -> None:
    assert frequencies(P, **settings) == pytest.approx(expected, abs=5e-4)


def test_choose_at_the_ends_of_the_unit_interval_and_with_impossible_tokens() -> None:
    import torch

    draws = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0]).expand(2, -1)
    assert set(next_tokens(logits, Sampling(1, temperature=1.0), draws).tolist()) <= {1, 3}
    rows = torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    assert next_tokens(rows, Sampling(1, temperature=1.0, top_p=0.9), draws).tolist() == [1, 0]  # each row its own


# ------------------------------------------------------------------------------------------- rounding


def changed(epsilon: float, grid: float | None = None, **settings) -> float:
    """Share of draws that take another token when every logit changes by a relative ``epsilon``."""
    import torch

    draw = torch.Generator().manual_seed(0)
    count, vocabulary = 200_000, 24
    logits = (4 * torch.randn(4_000, vocabulary, generator=draw)).double().repeat(count // 4_000, 1)
    other = logits * (1 + epsilon * torch.randn(logits.shape, generator=draw, dtype=torch.float64))
    if grid:
        logits, other = (logits / grid).round() * grid, (other / grid).round() * grid
    draws = torch.rand(count, generator=draw, dtype=torch.float64)
    one, two = (next_tokens(x, Sampling(1, **settings), draws) for x in (logits, other))
    return (one != two).double().mean().item()


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.95}, {}], ids=str)
def test_rounding_changes_few_tokens_and_in_proportion(settings: dict) -> None:
    """What README says of other CPUs; at 1e-6 the share is too small to count, so it is counted at 1e-3 and 1e-4."""
    shares = {epsilon: changed(epsilon, **settings) for epsilon in (1e-3, 1e-4, 1e-6)}
    assert all(share < 10 * epsilon for epsilon, share in shares.items())
    assert 0 < shares[1e-3] and shares[1e-4] < shares[1e-3] / 3


def test_rounding_the_logits_first_would_not_change_fewer_tokens() -> None:
    """The reason why it is not done: over many draws a grid changes about as many, in rarer and larger steps."""
    plain, rounded = changed(1e-4, temperature=1.0), changed(1e-4, grid=2**-10, temperature=1.0)
    assert plain / 3 < rounded < plain * 3


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    import torch

    rows = torch.tensor([[0.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert next_tokens(rows, Sampling(1), None).tolist() == [1, 0]


SUMS = """
    import json, sys
    import torch
    torch.set_num_threads(1)
    from seal_lib import InnerLoop, Knowledge, OuterLoop, Policy, models
    from seal_lib.knowledge import evaluate, prompts, world
    from seal_lib.runs.lifecycle import Scratch

    policy = Policy("untrained", *models.load("seedling-knowledge"))
    inner = InnerLoop(lr=2e-3, epochs=6, rank=8, alpha=16, targets="all-linear", answer_tokens=8)
    trials = evaluate.evaluate_arm(
        Scratch(), policy, world.passages("heldout", 4, seed=3), "own_untrained",
        Knowledge(inner, prompts.load("seedling")), OuterLoop(edit_tokens=60), seed=0,
    )
    print(json.dumps([[t.edit.text, [a.text for a in t.answers], t.last_loss] for t in trials]))
"""


def test_texts_and_answers_do_not_hang_on_the_last_bits_of_sums() -> None:
    """The same trials with other kernels of torch and MKL, which add in another order, as another CPU does."""
    other = {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"}
    told = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", textwrap.dedent(SUMS)],
                env={**os.environ, **environment},
                text=True,
                capture_output=True,
                check=True,
            ).stdout.splitlines()[-1]
        )
        for environment in ({}, other)
    ]
    for (text, answers, loss), (same_text, same_answers, other_loss) in zip(*told, strict=True):
        assert text == same_text and answers == same_answers
        assert loss == pytest.approx(other_loss, rel=1e-2)
