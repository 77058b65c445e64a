"""The bank when memory is short, and what a GPU would wait for. Run: pytest tests/training/test_bank_memory.py"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_bank import difference, exact, examples, make, mixed_jobs  # noqa: F401 (exact is a fixture)
from transformers import Qwen2Config, Qwen2ForCausalLM

from seal_lib.continual.trainer import Anchor, EditJob, StreamBank
from seal_lib.errors import ParameterError, SealError
from seal_lib.models import budget
from seal_lib.training import bank as bank_module
from seal_lib.training import packing, slots
from seal_lib.training.adapters import target_linears
from seal_lib.training.bank import AdapterBank
from seal_lib.training.jobs import Example, Job

WIDE = dict(slots=8, dtype=torch.float64)


class Shortage:
    """Makes a function run out of memory at its calls of the given numbers, counted from 1."""

    def __init__(self, function, at, after: bool = False):
        self.function, self.at, self.after, self.calls = function, set(at), after, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls in self.at and not self.after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words.")
        result = self.function(*args, **options)
        if self.calls in self.at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result


def same(results, expected, tolerance: float = 1e-9) -> None:
    assert [r.id for r in results] == [r.id for r in expected]
    for result, other in zip(results, expected, strict=True):
        assert (result.steps, result.tokens, result.outcome) == (other.steps, other.tokens, other.outcome), other.id
        assert result.losses == pytest.approx(other.losses, rel=tolerance), other.id
        assert difference(result.adapter, other.adapter) <= tolerance, other.id


def backward_fails(step: Shortage):
    """A function for `_hidden` whose result cannot be propagated back when `step` says so."""

    def hidden(*args):
        h = inner(*args)
        h.register_hook(lambda grad: step(grad))
        return h

    inner = step.function
    step.function = lambda grad: grad
    return hidden


SEVERAL = [(8,), (1, 2, 3)]  # numbers of calls
UNDISTURBED: list = []  # the results of all these tests


@pytest.fixture
def undisturbed(exact):  # noqa: F811
    if not UNDISTURBED:
        with AdapterBank(exact, **WIDE) as bank:
            UNDISTURBED.extend(bank.run(mixed_jobs()))
    return UNDISTURBED


@pytest.mark.parametrize(
    ("where", "at"),
    [(where, at) for where in ("_hidden", "backward", "_open", "_after_update", "adamw") for at in SEVERAL]
    + [("_allocate", (1,)), ("_allocate", (1, 2, 3)), ("_bind", (1, 4)), ("_hidden", (3, 11))],
)
def test_out_of_memory_changes_no_result(exact, undisturbed, monkeypatch, where, at):  # noqa: F811
    jobs, seen = mixed_jobs(), []
    with AdapterBank(exact, **WIDE) as bank:
        if where == "adamw":  # some slots of a step are updated, others not
            monkeypatch.setattr(torch, "_fused_adamw_", Shortage(torch._fused_adamw_, at, after=True))
        elif where == "backward":
            monkeypatch.setattr(bank, "_hidden", backward_fails(Shortage(bank._hidden, at)))
        else:
            monkeypatch.setattr(bank, where, Shortage(getattr(bank, where), at))
        results = bank.run(jobs, on_step=seen.append)
        assert bank.halvings == seen[-1]["halvings"] == len(at) and bank.slots == 8 >> len(at)
        assert max(s["live"] for s in seen if s["halvings"] == len(at)) <= 8 >> len(at)
        assert seen[-1]["steps"] == seen[-1]["of"]
    same(results, undisturbed)


def test_a_shortage_halves_the_tokens_of_the_step_that_failed_if_there_was_one(monkeypatch):
    jobs = [Job(str(i), [Example([5] * 9)] * 2, epochs=1, rank=4, alpha=8, seed=i) for i in range(4)]
    for where, left in (("_hidden", 4 * 8 // 2), ("_allocate", None)):
        with AdapterBank(make(), slots=4) as bank:
            monkeypatch.setattr(bank, where, Shortage(getattr(bank, where), [1]))
            bank.run(jobs)
            assert (bank.slots, bank.tokens_per_step) == (2, left), where


def test_what_is_learnt_is_kept_unless_an_update_was_under_way(exact, monkeypatch):  # noqa: F811
    jobs = [Job(str(i), examples(i), lr=1e-2, epochs=4, rank=4, alpha=8, seed=i) for i in range(4)]
    for where, again in (("_hidden", 4), ("_after_update", 4 + 4 * 6)):  # the failed step; and six before it
        with AdapterBank(exact, slots=4, dtype=torch.float64) as bank:
            served: list[int] = []
            monkeypatch.setattr(bank, "_serve", partial(_recorded, bank._serve, served))
            monkeypatch.setattr(bank, where, Shortage(getattr(bank, where), [7]))
            bank.run(jobs)
        assert len(served) == 4 * 12 + again


def _recorded(serve, served: list[int], *args) -> list[int]:
    chosen = serve(*args)
    served += chosen
    return chosen


def test_a_diverging_neighbour_and_a_finished_one_survive_a_shortage(monkeypatch):
    model, jobs = make(), mixed_jobs()[:5]
    bad = Job("bad", examples(0), lr=1e30, epochs=4, rank=4, alpha=8, seed=1, clip=None)
    short = Job("short", examples(1, 1), lr=1e-3, epochs=2, rank=2, alpha=8, seed=1)
    with AdapterBank(model, slots=8) as bank:
        expected = bank.run([bad, short, *jobs])
    for at in range(1, 5):
        with AdapterBank(model, slots=8) as bank:
            monkeypatch.setattr(bank, "_hidden", Shortage(bank._hidden, [at]))
            results = bank.run([bad, short, *jobs])
        assert [r.outcome for r in results] == [r.outcome for r in expected] == ["diverged", *["ok"] * 6]
        assert results[0].reason == expected[0].reason
        for result, other in zip(results[1:], expected[1:], strict=True):
            assert difference(result.adapter, other.adapter) <= 1e-4


def test_one_adapter_that_does_not_fit_is_an_error_with_the_ways_out(monkeypatch):
    with AdapterBank(make(), slots=4) as bank:
        monkeypatch.setattr(bank, "_hidden", Shortage(bank._hidden, range(1, 9)))
        with pytest.raises(SealError, match=r"with one adapter, \d+ tokens a step: CUDA.*GiB. Use gradient_check") as e:
            bank.run(mixed_jobs())
        assert "\n" not in str(e.value) and bank.halvings == 2
        monkeypatch.undo()
        assert bank.run(mixed_jobs()[:1])[0].outcome == "ok"


def test_histories_survive_a_shortage(monkeypatch):
    model = make()
    with AdapterBank(model, slots=1) as bank:
        history = bank.run([Job("past", examples(30), lr=1e-2, epochs=2, rank=4, alpha=8)])[0].adapter
    basis = {
        n: torch.linalg.qr(torch.randn(x.in_features, 3)).Q for n, x in target_linears(model, "all-linear").items()
    }
    jobs = [
        EditJob(str(i), examples(i), lr=1e-2, epochs=3, rank=4, alpha=8, seed=i, history=history, protect=basis)
        for i in range(4)
    ]
    for kind in ("ranks", "dense"):
        with StreamBank(model, slots=4, history=kind) as bank:
            expected = bank.run(jobs)
        for where in ("_hidden", "_after_update"):
            with StreamBank(model, slots=4, history=kind) as bank:
                monkeypatch.setattr(bank, where, Shortage(getattr(bank, where), [4]))
                results = bank.run(jobs)
                assert bank.halvings == 1
            for result, other in zip(results, expected, strict=True):
                assert difference(result.adapter, other.adapter) <= 1e-3, (kind, where)


def test_slots_take_turns_and_are_refilled():
    jobs, seen = mixed_jobs(), []
    with AdapterBank(make(), slots=3) as bank:
        bank.run(jobs, on_step=seen.append)
    assert [s["live"] + s["waiting"] for s in seen] == sorted((s["live"] + s["waiting"] for s in seen), reverse=True)
    refilled = [(a, b) for a, b in zip(seen, seen[1:], strict=False) if b["waiting"] < a["waiting"]]
    assert sum(a["waiting"] - b["waiting"] for a, b in refilled) == 8  # eleven jobs, three at once
    assert seen[-1]["steps"] == seen[-1]["of"] and seen[-1]["live"] == 0


# logits in parts


def test_logits_in_parts_give_the_same_gradients(exact, undisturbed, monkeypatch):  # noqa: F811
    jobs = mixed_jobs()
    with AdapterBank(exact, **WIDE) as bank:
        rows, head = [], bank._head
        monkeypatch.setattr(bank, "_head", lambda h: rows.append(len(h)) or head(h))
        bank._chunk = 7
        results = bank.run(jobs)
    same(results, undisturbed)
    assert max(rows) == 7 and len(rows) > 3 * max(r.steps for r in results)


def test_teachers_are_met_in_parts_too(exact, monkeypatch):  # noqa: F811
    teacher = torch.randn(9, 97, dtype=torch.float64).log_softmax(-1)
    anchor = Anchor(list(range(1, 11)), teacher=teacher)
    jobs = [
        EditJob(str(i), [*examples(i), anchor], lr=1e-2, epochs=2, rank=4, alpha=8, seed=i, batch=2) for i in range(4)
    ]
    found = []
    for chunk in (1 << 20, 5):
        with StreamBank(exact, slots=4, dtype=torch.float64) as bank:
            bank._chunk = chunk
            found.append(bank.run(jobs))
    same(*found)


def test_only_large_vocabularies_are_cut():
    with AdapterBank(make()) as bank:
        assert bank._chunk * 97 <= budget.LOGITS < (bank._chunk + 1) * 97
    assert budget.LOGITS // 1330 > 50_000  # the seedlings' steps are never that long
    assert budget.chunk_of(budget.SHAPES["Qwen/Qwen2.5-7B"]) == 441


# slots from the budget


def test_as_many_slots_as_the_memory_takes(exact):  # noqa: F811
    jobs = [Job(str(i), examples(i), lr=1e-2, epochs=1, rank=4, alpha=8, seed=i) for i in range(9)]
    shape = budget.Shape.of(exact.config)
    tokens = max(len(e.ids) for job in jobs for e in job.examples) - 1
    with AdapterBank(exact, **WIDE) as bank:
        expected = bank.run(jobs)
    counts = []
    for memory in (1e9, 8e5, 4e5):
        planned = budget.slots_that_fit(shape, memory, "all-linear", 4, tokens, dtype="float64")
        with AdapterBank(exact, slots="auto", dtype=torch.float64, memory=memory) as bank:
            seen = []
            same(bank.run(jobs, on_step=seen.append), expected)
            counts.append(seen[0]["live"] + seen[0]["waiting"] and max(s["live"] for s in seen))
            assert counts[-1] <= min(planned, len(jobs))
    assert counts == sorted(counts, reverse=True) and counts[0] == 9 > counts[-1] >= 1
    with (
        AdapterBank(exact, slots=0, memory=1e4) as bank,
        pytest.raises(ParameterError, match="Not one adapter.*0.0 GB"),
    ):
        bank.run(jobs)
    for wrong in (-1, "many", 2.5):
        with pytest.raises(ParameterError, match="slots"):
            AdapterBank(exact, slots=wrong)


def test_a_large_model_takes_its_tokens_in_portions(monkeypatch):
    assert AdapterBank(make()).tokens_per_step is None
    monkeypatch.setattr(bank_module.budget, "LARGE", 1000)
    with AdapterBank(make()) as bank:
        assert bank.tokens_per_step == bank_module.budget.STEP_TOKENS
    with AdapterBank(make(), tokens_per_step=77) as bank:
        assert bank.tokens_per_step == 77


def test_the_run_is_told_of_a_shortage(monkeypatch):
    from fixtures_seal import WORDING, seedling

    from seal_lib.knowledge.domain import InnerLoop, Knowledge
    from seal_lib.knowledge.world import passages
    from seal_lib.loops import inner
    from seal_lib.loops.domain import Candidate
    from seal_lib.loops.policy import Policy

    counted, policy = [], Policy("untrained", *seedling())
    settings = InnerLoop(lr=1e-3, epochs=1, rank=8, alpha=16, targets="all-linear", slots=0)
    candidates = [Candidate(str(i), p, None, "passage_only", i) for i, p in enumerate(passages("heldout", 3))]
    expected = inner.train(policy, candidates, Knowledge(settings, WORDING), lambda **n: counted.append(n))
    assert not counted
    step = Shortage(AdapterBank._hidden, [2])  # the first is the bank's own check
    monkeypatch.setattr(AdapterBank, "_hidden", lambda self, *args: step(self, *args))
    results = inner.train(policy, candidates, Knowledge(settings, WORDING), lambda **n: counted.append(n))
    assert counted == [{"out_of_memory": 1}]
    assert [(r.id, r.steps, r.tokens) for r in results] == [(r.id, r.steps, r.tokens) for r in expected]


# nothing in a step waits for the device


@pytest.mark.parametrize("grouped_from", [math.inf, 0])
@pytest.mark.parametrize("chunk", [1 << 20, 16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_reads_nothing_back_from_the_device(grouped_from, chunk, checkpointing, monkeypatch):
    """On torch's device without memory (meta) every read of a value is an error, and the code is that of a GPU."""
    monkeypatch.setattr(packing, "GROUPED_FROM", grouped_from)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=104,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    jobs = [replace(job, rank=8) for job in mixed_jobs()[:5]]
    with AdapterBank(model, slots=5, dtype=torch.bfloat16, gradient_checkpointing=checkpointing) as bank:
        model.to("meta")
        bank.device, bank._chunk = torch.device("meta"), chunk
        live = [bank._prepare(i, job) for i, job in enumerate(jobs)]
        bank._allocate(5, 8)
        for _ in range(2):
            losses = bank._train_step(live, range(5))
        assert losses.device.type == "meta" and [slot.step for slot in live] == [2] * 5
        with pytest.raises(RuntimeError):  # what the test relies on
            losses.tolist()
        bank._release()


def test_losses_are_read_seldom_and_in_one_piece(monkeypatch):
    now = slots.SlotQueue([], 1, 1)
    slot = slots.Slot(0, Job("j", [Example([1, 2])]), [(0,)] * 3, {}, torch.zeros(()))
    now.pending = [([slot, slot], [1], torch.tensor([5.0, 1.0])), ([slot], [0], torch.tensor([2.0]))]
    reads, cat = [], torch.cat
    monkeypatch.setattr(bank_module.torch, "cat", lambda parts: reads.append(1) or cat(parts))
    now.read()
    assert slot.losses == [1.0, 2.0] and len(reads) == 1 and not now.pending
