"""Edits on a history equal edits on literally merged weights, and each rule's term is the one its equation says.

Run: pytest tests/continual/test_continual_trainer.py
"""

from dataclasses import replace

import pytest
import torch
from test_bank import exact, examples, make, tokens  # noqa: F401 - exact is a fixture

from seal_lib.continual import states, trainer
from seal_lib.continual.lab import basis
from seal_lib.continual.rules.rehearsal import mixed
from seal_lib.continual.trainer import Anchor, EditJob, StreamBank
from seal_lib.errors import DataError, ParameterError
from seal_lib.seeds import rng
from seal_lib.training.adapters import Adapter, merge, target_linears
from seal_lib.training.attached import attached
from seal_lib.training.finetune import train_alone
from seal_lib.training.jobs import Example, Job

STEPS = dict(lr=1e-2, epochs=3, rank=4, alpha=8.0)


def relative(a: Adapter, b: Adapter) -> float:
    return max(float((a.delta(n) - b.delta(n)).norm() / b.delta(n).norm().clamp_min(1e-30)) for n in b.weights)


def train(model, jobs, **options):
    with StreamBank(model, slots=len(jobs), dtype=model.dtype, **options) as bank:
        return bank.run(jobs)


def wide(adapter: Adapter) -> Adapter:
    return replace(adapter, weights={n: (a.double(), b.double()) for n, (a, b) in adapter.weights.items()})


@pytest.mark.parametrize("history", ["ranks", "dense"])
def test_a_stream_equals_literal_merging_in_float64(exact, history: str) -> None:  # noqa: F811
    """Three streams of three edits side by side on their histories, against train_alone on a merged copy each."""
    past: list[Adapter | None] = [None, None, None]
    merged = [make(dtype=torch.float64) for _ in past]
    for k in range(3):
        jobs = [EditJob(f"{s}/{k}", examples(10 * s + k, n=2 + s), seed=s, history=past[s], **STEPS) for s in range(3)]
        results = train(exact, jobs, history=history)
        for s in range(3):
            alone = train_alone(merged[s], Job("x", jobs[s].examples, seed=s, **STEPS))
            assert results[s].losses == pytest.approx(alone.losses, rel=1e-9)
            assert relative(results[s].adapter, wide(alone.adapter)) < 1e-9
            merged[s] = merge(merged[s], alone.adapter)
            past[s] = states.concatenate([(past[s], 1.0), (results[s].adapter, 1.0)])
    probe = torch.tensor([tokens(5, 9)])
    for s in range(3):
        assert past[s].rank == 12
        with torch.no_grad():
            expected = merged[s](input_ids=probe).logits
            for state in (past[s], states.from_dense({n: past[s].delta(n) for n in past[s].weights}, past[s].targets)):
                with attached(exact, [state], [0]):
                    assert (exact(input_ids=probe).logits - expected).abs().max() < 1e-9


def test_histories_are_summed_where_that_takes_little_memory(monkeypatch) -> None:
    model = make()
    (first,) = train(model, [EditJob("a", examples(1), seed=1, **STEPS)])
    job = EditJob("b", examples(2), seed=2, history=states.concatenate([(first.adapter, 1.0)]), **STEPS)
    all_slots = 4 * 3 * sum(layer.weight.numel() for layer in target_linears(model, "all-linear").values())
    for bound, history, change, dense in (
        (all_slots + 1, "auto", {}, True),
        (all_slots, "auto", {}, False),
        (0, "dense", {}, True),
        (all_slots + 1, "ranks", {}, False),
        (all_slots + 1, "auto", {"orthogonal": 0.1}, False),
        (all_slots + 1, "auto", {"from_base": True}, False),
        (all_slots + 1, "auto", {"history": None}, False),
    ):
        monkeypatch.setattr(trainer, "DENSE_BYTES", bound)
        with StreamBank(model, slots=3, history=history) as bank:
            assert bank.run([replace(job, **change)])[0].outcome == "ok"
            assert (bank._dense, bank._past) == (dense, 4 if not dense and "history" not in change else 0), change


def test_the_model_and_the_history_are_not_written() -> None:
    model = make()
    (first,) = train(model, [EditJob("a", examples(1), seed=1, **STEPS)])
    past = states.concatenate([(first.adapter, 1.0)])
    before = past.digest(), {n: p.clone() for n, p in model.state_dict().items()}
    train(model, [EditJob("b", examples(2), seed=2, history=past, **STEPS)])
    assert past.digest() == before[0]
    assert all(torch.equal(p, before[1][n]) for n, p in model.state_dict().items())
    with pytest.raises(ParameterError, match="one rank"):
        train(model, [EditJob("a", examples(1), rank=4), EditJob("b", examples(1), rank=8)])


def test_soft_targets_are_the_kl_to_the_teacher() -> None:
    model = make(dtype=torch.float64)
    ids = tokens(3, 8)
    with torch.no_grad():
        q = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    teacher = torch.randn(7, 97, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    expected = float((teacher.exp() * (teacher - q)).sum(-1).mean())
    (one,) = train(model, [EditJob("kl", [Anchor(ids, teacher=teacher)], epochs=1, lr=1e-3, rank=4, alpha=8)])
    assert one.losses[0] == pytest.approx(expected, rel=1e-6)
    (same,) = train(model, [EditJob("kl", [Anchor(ids, teacher=q)], epochs=1, lr=1e-3, rank=4, alpha=8)])
    assert abs(same.losses[0]) < 1e-6  # a model is at no distance from itself
    hard = Example(tokens(4, 6))
    (both,) = train(model, [EditJob("both", [hard, Anchor(ids, teacher=teacher)], order=[(0, 1)], rank=4, alpha=8)])
    (alone,) = train(model, [EditJob("hard", [hard], order=[(0,)], rank=4, alpha=8)])
    assert both.losses[0] == pytest.approx((5 * alone.losses[0] + 7 * expected) / 12, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 2])
def test_replay_adds_the_memory_with_its_weight(batch: int) -> None:
    model = make(dtype=torch.float64)
    plain = Job("p", examples(1, 2), epochs=1, seed=3, rank=4, alpha=8, batch=batch)
    memory = examples(9, 4, low=9)

    def nll(example: Example) -> float:
        return train(model, [EditJob("x", [example], order=[(0,)], rank=4, alpha=8)])[0].losses[0]

    made = mixed(plain, memory, m=2, weight=3.0)
    fresh, old = made["order"][0][:batch], made["order"][0][batch:]
    expected = sum(nll(plain.examples[i]) for i in fresh) / batch + 3.0 * sum(nll(memory[i - 2]) for i in old) / 2
    (got,) = train(model, [EditJob("mixed", rank=4, alpha=8, **made)])
    assert len(made["order"]) == 2 // batch and len(old) == 2 and got.losses[0] == pytest.approx(expected, rel=1e-6)
    assert mixed(plain, [], m=2, weight=1.0) == {"examples": plain.examples}


def test_protected_inputs_are_not_moved() -> None:
    model = make(dtype=torch.float64)
    draw = torch.Generator().manual_seed(2)
    linears = target_linears(model, "all-linear")
    space = {
        n: torch.linalg.qr(torch.randn(x.in_features, 5, generator=draw, dtype=torch.float64))[0]
        for n, x in linears.items()
    }
    for n in linears:  # siblings share a basis
        space[n] = space[n.replace("k_proj", "q_proj").replace("v_proj", "q_proj").replace("up_proj", "gate_proj")]
    free, held = (train(model, [EditJob("e", examples(1), seed=1, protect=p, **STEPS)])[0].adapter for p in ({}, space))
    for n in linears:
        assert (held.delta(n) @ space[n]).norm() < 1e-12 * (1 + held.delta(n).norm()) and held.delta(n).norm() > 0
        assert (free.delta(n) @ space[n]).norm() > 1e-4


def gradient(job: EditJob, model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The gradients of the first step, unclipped, from the bank's own storage: module -> (dA, dB)."""
    seen = {}

    class Reader(StreamBank):
        def _after_update(self, live):
            for name, a, b in self._parts(self._storage[1][0], job.rank):
                seen[name] = (a.clone(), b.mT.clone())

    with Reader(model, slots=1, dtype=model.dtype) as bank:
        bank.run([replace(job, clip=None, order=[(0,)])])
    return seen


def test_a_protected_space_is_left_before_the_first_step_too() -> None:
    """The first gradient is that of an A that lies in the complement already."""
    model = make(dtype=torch.float64)
    init = start(model, 1)
    groups = {
        n: n.replace("k_proj", "q_proj").replace("v_proj", "q_proj").replace("up_proj", "gate_proj")
        for n in init.weights
    }
    draw = torch.Generator().manual_seed(2)
    read = {
        n: torch.linalg.qr(torch.randn(init.weights[n][0].shape[1], 3, generator=draw).double())[0]
        for n in dict.fromkeys(groups.values())
    }
    space = {n: read[first] for n, first in groups.items()}
    out = {n: (a - a @ space[n] @ space[n].mT, b) for n, (a, b) in init.weights.items()}
    job = EditJob("e", examples(1, 1), rank=4, alpha=8.0, init=init)
    got = gradient(replace(job, protect=space), model)
    wanted, other = (gradient(replace(job, init=replace(init, weights=w)), model) for w in (out, init.weights))
    for name in init.weights:
        for one, two in zip(got[name], wanted[name], strict=True):
            assert torch.allclose(one, two, rtol=1e-9, atol=1e-12), name
    assert not torch.allclose(got[name][1], other[name][1], rtol=1e-2)


def start(model, seed: int) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    weights = {
        n: (
            torch.randn(4, x.in_features, generator=draw).double(),
            torch.randn(x.out_features, 4, generator=draw).double(),
        )
        for n, x in target_linears(model, "all-linear").items()
    }
    return Adapter(4, 8.0, tuple({n.rpartition(".")[2] for n in weights}), weights)


@pytest.mark.parametrize("which", ["l2", "ewc", "o_lora"])
def test_penalties_have_the_gradient_of_their_equation(which: str) -> None:
    model = make(dtype=torch.float64)
    init, past = start(model, 1), states.concatenate([(start(model, 2), 1.0)])
    fisher = {
        n: torch.rand(x.weight.shape, dtype=torch.float64) for n, x in target_linears(model, "all-linear").items()
    }
    job = EditJob("e", examples(1, 1), rank=4, alpha=8.0, init=init, history=past)
    more = {
        "l2": dict(strength=0.3, from_base=True),
        "ewc": dict(strength=0.3, penalty=fisher),
        "o_lora": dict(orthogonal=0.2),
    }[which]
    plain, with_term = gradient(job, model), gradient(replace(job, **more), model)
    for name, (a0, b0) in init.weights.items():
        a, b = a0.clone().requires_grad_(), b0.clone().requires_grad_()
        delta, old = 2.0 * b @ a, past.weights[name]
        if which == "l2":
            term = 0.15 * (delta + past.delta(name)).square().sum()
        elif which == "ewc":
            term = 0.15 * (fisher[name] * delta.square()).sum()
        else:
            term = 0.2 * (a @ old[0].mT).abs().sum()
        want = torch.autograd.grad(term, [a, b], allow_unused=True)
        for got, base, wanted in zip(with_term[name], plain[name], want, strict=True):
            wanted = torch.zeros_like(got) if wanted is None else wanted
            assert torch.allclose(got - base, wanted, rtol=1e-6, atol=1e-8)


def test_frozen_layers_and_a_frozen_a() -> None:
    model = make(dtype=torch.float64)
    names = list(target_linears(model, "all-linear"))
    lower = frozenset(n for n in names if ".0." in n)
    (kept,) = train(model, [EditJob("e", examples(1), seed=1, frozen_layers=lower, **STEPS)])
    assert all((kept.adapter.delta(n).norm() == 0) == (n in lower) for n in names)
    init = wide(start(model, 3))
    (fixed,) = train(model, [EditJob("e", examples(1), init=init, frozen_a=True, **STEPS)])
    for n in names:
        assert torch.equal(fixed.adapter.weights[n][0], init.weights[n][0])
        assert not torch.equal(fixed.adapter.weights[n][1], init.weights[n][1])


def test_sums_of_states_are_exact() -> None:
    model = make(dtype=torch.float64)
    one, two = start(model, 1), start(model, 2)
    total = states.concatenate([(one, 0.5), (None, 1.0), (two, -2.0)])
    for n in one.weights:
        want = 0.5 * one.delta(n) - 2.0 * two.delta(n)
        assert torch.allclose(total.delta(n), want, atol=1e-12)
        many = states.concatenate([(one, 1.0)] * 20)
        assert many.rank == 80 and states.compact(many).rank == 32  # min(in, out) of this model
        assert torch.allclose(states.compact(many).delta(n), 20 * one.delta(n), atol=1e-9)
    assert states.concatenate([]) is None and states.compact(total) is total and states.update_norm(None) == 0
    odd = Adapter(4, 8.0, ("q_proj",), {"elsewhere": next(iter(one.weights.values()))})
    with pytest.raises(DataError, match="different layers"):
        states.concatenate([(one, 1.0), (odd, 1.0)])


def test_ties_by_hand() -> None:
    def adapter(*rows: list[float]) -> Adapter:
        return states.from_dense({"w": torch.tensor(rows)}, ("w",))

    one, two, three = (
        adapter([4.0, 1.0], [-3.0, 0.1]),
        adapter([2.0, -5.0], [1.0, 0.2]),
        adapter([0.5, -3.0], [-4.0, 0.3]),
    )
    # density .5 keeps [4, 0, -3, 0], [2, -5, 0, 0], [0, -3, -4, 0]; signs + - - 0; means of those that agree
    assert torch.allclose(states.ties([one, two, three], 0.5).delta("w"), torch.tensor([[3.0, -4.0], [-3.5, 0.0]]))
    # density 1 trims nothing, not even the smallest weight: signs + - - +
    assert torch.allclose(states.ties([one, two, three], 1.0).delta("w"), torch.tensor([[6.5 / 3, -4.0], [-3.5, 0.2]]))


def test_a_basis_holds_the_energy_and_extends() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=draw) @ torch.diag(torch.tensor([5.0, 4, 3, 2, 1] + [0.1] * 7))
    for energy in (0.5, 0.9, 0.99):
        u = basis(x, energy)
        kept, fewer = ((x @ v).square().sum() / x.square().sum() for v in (u, u[:, :-1]))
        assert torch.allclose(u.mT @ u, torch.eye(u.shape[1]), atol=1e-5) and kept >= energy > fewer
    y = torch.randn(50, 12, generator=draw)
    grown = basis(y, 0.95, basis(x, 0.9))
    assert torch.allclose(grown[:, : basis(x, 0.9).shape[1]], basis(x, 0.9))
    assert torch.allclose(grown.mT @ grown, torch.eye(grown.shape[1]), atol=1e-5)
    assert (y @ grown).square().sum() / y.square().sum() >= 0.95
    assert basis(x, 0.5, basis(x, 0.9)).shape[1] == basis(x, 0.9).shape[1]  # nothing to add
    assert basis(y, 1.0).shape[1] == 12


def test_saved_states_come_back(tmp_path) -> None:
    one = start(make(), 1)
    path = tmp_path / "deep" / "edit_1.safetensors"
    states.save(path, {"history": one, "none": None}, {"u": torch.arange(3.0)}, {"diverged": "False"})
    adapters, extra, about = states.load(path)
    assert adapters["history"].digest() == one.digest() and set(adapters) == {"history"}
    assert extra["u"].tolist() == [0, 1, 2] and about == {"diverged": "False"}
    assert [p.name for p in path.parent.iterdir()] == ["edit_1.safetensors"]


def test_no_flipped_bit_of_saved_states_is_believed(tmp_path) -> None:
    path, draw = tmp_path / "edit_1.safetensors", rng("bits")
    states.save(path, {"history": start(make(), 1)}, {"u": torch.arange(3.0)}, {"diverged": "False"})
    whole = path.read_bytes()
    for _ in range(100):
        at, flipped = draw.randrange(8 * len(whole)), bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped[: draw.choice([len(whole), at // 8])])
        with pytest.raises(DataError, match="edit_1.safetensors is"):
            states.load(path)
