"""Steps of fixed sizes, which a GPU replays as graphs: the same adapters, few operations, no host read.

Run: pytest tests/training/test_captured.py. What needs a GPU is in tests/test_gpu.py.
"""

import random
from dataclasses import replace

import pytest
import torch
from test_bank import FAMILIES, difference, examples, make, mixed_jobs, tokens
from test_bank_memory import Shortage, same
from torch.utils._python_dispatch import TorchDispatchMode

from seal_lib.training import adamw, captured, packing
from seal_lib.training.bank import AdapterBank
from seal_lib.training.finetune import Minibatch
from seal_lib.training.jobs import Example, Job
from seal_lib.training.slots import Slot

torch.set_num_threads(1)


def plain_jobs() -> list[Job]:
    return [job for job in mixed_jobs() if job.id != "probes"]


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_sizes_train_the_same_adapters(family, monkeypatch):
    monkeypatch.setattr(packing, "GROUPED_FROM", 0)
    model, jobs = make(family), plain_jobs()
    with AdapterBank(model, slots=6) as bank:
        expected = bank.run(jobs)
    with AdapterBank(model, slots=6, fixed=True) as bank:
        assert bank.fixed
        got = bank.run(jobs)
        assert (bank.captures, bank.replays) == (0, 0)  # only a GPU has graphs
    for one, other in zip(got, expected, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=2e-4), one.id
        assert difference(one.adapter, other.adapter) <= 1e-3, one.id
        assert (one.steps, one.tokens) == (other.steps, other.tokens)


def test_steps_of_either_kind_alternate_in_one_run(monkeypatch):
    monkeypatch.setattr(packing, "GROUPED_FROM", 0)
    model, jobs = make(), mixed_jobs()  # with pads in the loss: those steps are plain
    with AdapterBank(model, slots=6) as bank:
        expected = bank.run(jobs)
    kinds = []
    for kind in ("_plain_step", "_fixed_step"):
        inner = getattr(AdapterBank, kind)
        monkeypatch.setattr(AdapterBank, kind, lambda *a, inner=inner, kind=kind: kinds.append(kind) or inner(*a))
    with AdapterBank(model, slots=6, fixed=True) as bank:
        got = bank.run(jobs)
    assert {*kinds} == {"_plain_step", "_fixed_step"} and kinds != sorted(kinds)
    same(got, expected, 2e-3)


def test_memory_that_runs_out_in_a_fixed_step_halves_and_goes_on(monkeypatch):
    model, jobs = make(), plain_jobs()
    with AdapterBank(model, slots=6, fixed=True) as bank:
        expected = bank.run(jobs)
    monkeypatch.setattr(adamw, "update", Shortage(adamw.update, (5,)))
    with AdapterBank(model, slots=6, fixed=True) as bank:
        got = bank.run(jobs)
        assert (bank.halvings, bank.slots) == (1, 3)
    same(got, expected, 2e-3)


class Watch(TorchDispatchMode):
    """Counts operations, and notes those that make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.count, self.reads = 0, []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        name = operation.overloadpacket.__name__
        self.count += 1
        if name in ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "unique_consecutive"):
            self.reads.append(name)
        return operation(*arguments, **(options or {}))


def test_a_fixed_step_reads_nothing_on_the_host_and_its_work_does_not_grow_with_the_slots():
    counts = {}
    for slots in (2, 12):
        jobs = [Job(str(i), [Example(tokens(i, 6 + i % 3))], epochs=2, rank=4, alpha=8, seed=i) for i in range(slots)]
        seen = []

        def whole(step, inner, seen=seen):
            with Watch() as watch:
                losses = inner(step)
            seen.append(watch)
            return losses

        with AdapterBank(make(), slots=slots, fixed=True) as bank:
            bank._whole_step = lambda step, inner=bank._whole_step: whole(step, inner)
            bank.run(jobs)
        assert len(seen) == 2 and not [watch.reads for watch in seen if watch.reads]
        counts[slots] = seen[0].count
    assert counts[2] == counts[12]


def test_a_size_runs_as_it_is_first_and_is_then_captured_once_and_replayed(monkeypatch):
    log = []

    class Graph:
        def replay(self):
            log.append("replay")

    class Capture:
        def __init__(self, graph, pool):
            log.append(f"capture in {pool}")

        def __enter__(self):
            pass

        def __exit__(self, *exc):
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    step = captured.FixedStep(captured.Size(64, 3, 64), 2, torch.float32, torch.device("cpu"))
    for _ in range(captured.STEPS_BEFORE_CAPTURE + 3):
        step.run(lambda step: log.append("run") or torch.ones(2), "pool", capture=True)
    assert log == ["run"] * captured.STEPS_BEFORE_CAPTURE + ["capture in pool", "run"] + ["replay"] * 3


def test_sizes_are_few_and_waste_at_most_half():
    sizes = {captured.size_of(n) for n in range(1, 4097)}
    assert len(sizes) == 13 and {64, 96, 1024, 1536, 4096} <= sizes
    assert all(n <= captured.size_of(n) <= max(64, 1.5 * n) for n in range(1, 5000))


def test_buffers_hold_what_the_minibatches_say_and_what_is_left_over_has_no_weight():
    batches = [
        Minibatch([Example([5, 6, 7]), Example([8, 9])], "a", None, 97),
        None,
        Minibatch([Example([1, 2, 3, 4])], "b", None, 97),
    ]
    assert captured.Size.of(batches, 4) == (64, 64, 256) and captured.Size.of(batches, 70).examples == 71
    long = Minibatch([Example([1] * 258)], "c", None, 97)
    assert captured.Size.of([long], 4) == (384, 64, 384) and captured.Size.of([long, long], 4).tokens == 768
    step = captured.FixedStep(captured.Size(64, 6, 64), 4, torch.float32, torch.device("cpu"))
    step.fill(batches, [2.0, 3.0, 0.5], adamw.settings([], [], 4))
    assert step.ids[:7].tolist() == [5, 6, 8, 1, 2, 3, 0] and step.targets[:6].tolist() == [6, 7, 9, 2, 3, 4]
    assert step.ends.tolist() == [3, 3, 6, 64] and step.starts.tolist() == [0, 2, 3, 6, 64, 64, 64]
    assert step.weights[:7].tolist() == pytest.approx([1 / 3] * 6 + [0]) and not step.weights[6:].any()
    assert step.packing().gain[:7, 0].tolist() == [2, 2, 2, 0.5, 0.5, 0.5, 0] and not step.packing().gain[6:].any()
    step.fill(batches[:1], [1.0], adamw.settings([], [], 4))  # nothing of the last step stays
    assert not step.ids[3:].any() and step.ends.tolist() == [3, 3, 3, 64] and not step.weights[3:].any()


def test_one_call_updates_every_row_as_adamw_and_its_clip_would():
    draw, live = random.Random(0), []
    for k in range(5):
        job = Job(
            str(k),
            examples(k),
            lr=draw.uniform(1e-3, 1e-1),
            epochs=9,
            weight_decay=draw.choice([0.0, 0.3]),
            betas=(draw.uniform(0.5, 0.95), draw.uniform(0.9, 0.999)),
            eps=10 ** draw.uniform(-9, -3),
            clip=draw.choice([None, 0.1, 1.0]),
            schedule=draw.choice(["linear", "cosine", "constant"]),
        )
        live.append(Slot(k, job, job.plan(), {}))
    torch.manual_seed(0)
    p, m, v = torch.randn(5, 40), torch.zeros(5, 40), torch.zeros(5, 40)
    own = [torch.nn.Parameter(row.clone()) for row in p]
    optimizers = [
        torch.optim.AdamW([x], lr=s.job.lr, betas=s.job.betas, eps=s.job.eps, weight_decay=s.job.weight_decay)
        for x, s in zip(own, live, strict=True)
    ]
    for turn in range(6):
        g = torch.randn(5, 40)
        served = [k for k in range(5) if (k + turn) % 3]
        g[[k for k in range(5) if k not in served]] = torch.nan  # what no one wrote
        before = p.clone()
        adamw.update(p, g, m, v, adamw.settings(live, served, 5))
        for k in range(5):
            if k not in served:
                assert torch.equal(p[k], before[k])
                continue
            slot, job = live[k], live[k].job
            own[k].grad = g[k].clone()
            if job.clip:
                torch.nn.utils.clip_grad_norm_([own[k]], job.clip)
            optimizers[k].param_groups[0]["lr"] = job.lr * adamw.learning_rate(job.schedule, slot.step, len(slot.plan))
            optimizers[k].step()
            slot.step += 1
            assert torch.allclose(p[k], own[k], rtol=1e-5, atol=1e-6), (turn, k)


@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_alone_does_not_refuse_fixed_sizes(family):
    for seed in range(3):
        model = make(family, torch.bfloat16)
        torch.manual_seed(seed)
        for p in model.parameters():
            p.data.add_(0.02 * torch.randn(p.shape).to(p))
        with AdapterBank(model, slots=2, fixed=True) as bank:
            assert bank.fixed


def test_what_cannot_be_fixed_is_left_to_the_plain_step():
    model, job = make(), plain_jobs()[0]
    for options in ({"gradient_checkpointing": True}, {"fixed": False}, {}):
        with AdapterBank(model, slots=2, **({"fixed": True} | options if options else {})) as bank:
            assert not bank.fixed
            bank.run([replace(job)])
