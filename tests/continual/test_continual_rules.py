"""Each update rule against its equation: what it trains on, what it adds to the history, what answers a question.

Run: pytest tests/continual/test_continual_rules.py
"""

import inspect
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from fixtures_seal import WORDING, random_adapter, seedling

from seal_lib.continual import states, streams
from seal_lib.continual.arm import Arm
from seal_lib.continual.lab import Lab
from seal_lib.continual.rules import RULES, equation, penalties
from seal_lib.continual.rules.base import RATES, State
from seal_lib.continual.rules.rehearsal import mixed, past
from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import StreamBank
from seal_lib.errors import DataError, ParameterError
from seal_lib.knowledge.domain import InnerLoop, Knowledge
from seal_lib.loops.policy import Policy
from seal_lib.records import Question
from seal_lib.training.adapters import Adapter, target_linears
from seal_lib.training.jobs import Example, Job

INNER = InnerLoop(lr=4e-3, epochs=1, rank=4, alpha=8.0, targets="all-linear", answer_tokens=6)
ALL = tuple(RULES)
TRAINED = tuple(name for name, rule in RULES.items() if rule.trains)


@cache
def policy() -> Policy:
    return Policy("base", *seedling())


def lab(**changes: object) -> Lab:
    return Lab(policy(), Knowledge(replace(INNER, **changes), WORDING), anchors=12, anchor_tokens=24)


def stream(length: int = 3, **changes: object) -> Stream:
    plain = streams.load_streams("world:heldout", 1, length, seed=3, questions=2)
    return replace(streams.with_edits(plain, "gold")[0], **changes)


def adapter(seed: int, rank: int = 4) -> Adapter:
    """A random one of every linear layer, small enough for a model that still speaks."""
    return random_adapter(policy().model, "all-linear", rank, seed, scale=1 / 8)


def equal(one: Adapter, parts: list[tuple[Adapter, float]]) -> bool:
    """Whether an adapter is the weighted sum of others."""
    return all(
        torch.allclose(one.delta(name), sum(w * part.delta(name) for part, w in parts), atol=1e-4)
        for name in one.weights
    )


def job(name: str, given: Stream, state: State, k: int, bench: Lab | None = None, **knobs: float):
    (made,) = RULES[name](bench or lab(), **knobs).jobs([given], [state], k)
    return made


def texts(examples) -> list[list[int]]:
    return [list(example.ids) for example in examples]


@pytest.mark.parametrize("name", ALL)
def test_the_equation_is_the_first_paragraph_on_one_line(name: str) -> None:
    assert equation(name) == " ".join(inspect.getdoc(RULES[name]).partition("\n\n")[0].split()) != ""


@pytest.mark.parametrize("name", ALL)
def test_a_learning_rate_that_is_not_scaled_leaves_the_lab_alone(name: str) -> None:
    """Arms of one lab share what it has measured."""
    bench = lab()
    rule = RULES[name](bench)
    assert (rule.lab is bench) == (name != "sequential_authors") and rule.lab.cache is bench.cache


# what answers a question


@pytest.mark.parametrize("name", ALL)
def test_what_answers_a_question(name: str) -> None:
    """After two of three edits: the question of an edited passage, of the next one, and of prior knowledge."""
    rule, given = RULES[name](lab()), stream(3)
    parts = (adapter(1), adapter(2))
    state = State(adapter(3), parts)
    found = {
        own: rule.serve(given, state, 2, title, question, own)
        for own, (title, question) in {
            **{n: (p.title, p.questions[0]) for n, p in enumerate(given.passages)},
            None: ("Nowhere", Question("Qqq zzz?", "no")),
        }.items()
    }
    if name in ("passage_in_context", "rag"):
        wanted = {n: (given.passages[n], None) if n in (0, 1) else (None, None) for n in (0, 1, 2, None)}
    elif name in ("isolation", "isolation_oracle"):
        wanted = {n: (None, parts[n]) if n in (0, 1) else (None, None) for n in (0, 1, 2, None)}
    else:
        wanted = dict.fromkeys((0, 1, 2, None), (None, state.history))
    assert found == wanted


# plain rules


@pytest.mark.parametrize("name", TRAINED)
def test_an_edit_without_documents_has_nothing_to_train_on(name: str) -> None:
    bench, rules = lab(add_passage=False), {}
    for edits in (("", "1. a fact"), ("1. a fact", ""), ("", "")):
        rules[edits] = [RULES[name](bench).nothing(stream(2, edits=edits), k) for k in (0, 1)]
    if name == "sequential_authors":  # it trains on the passage too
        assert not any(sum(rules.values(), []))
    elif name == "joint":  # and so on everything so far
        assert list(rules.values()) == [[True, False], [False, False], [True, True]]
    else:
        assert list(rules.values()) == [[True, False], [False, True], [True, True]]


def test_the_authors_way_is_theirs_whatever_the_settings_are() -> None:
    bench = lab(split_newlines=False, add_passage=False, document_limit=1, targets="all-linear")
    inner = RULES["sequential_authors"](replace(bench, authors_pads="probe:7")).lab.inner
    assert (inner.split_newlines, inner.add_passage, inner.document_limit) == (True, True, None)
    assert (inner.protocol, inner.targets, inner.pad_loss) == ("authors_v1", "qv", "probe:7")
    assert (inner.lr, inner.epochs, inner.rank, inner.alpha) == (INNER.lr, 1, 4, 8.0)


@pytest.mark.parametrize("name", [n for n in TRAINED if n not in ("joint", "merge", "ties") and "isolation" not in n])
def test_an_edit_is_trained_on_the_history_and_added_to_it(name: str) -> None:
    bench, given, before, edit = lab(), stream(3), adapter(1), adapter(2)
    bench.write = lambda found, count, seeds: [[[5, 6, 7]] * count for _ in found]
    rule = RULES[name](bench)
    if name not in ("gated_merge", "kl", "kl_replay"):  # these have tests of their own
        linears = target_linears(bench.model, "all-linear")
        kept = {names[0]: torch.eye(linears[names[0]].in_features)[:, :1] for names in bench.groups}
        extra = kept if "null_space" in name or name == "inflora" else {}
        made = job(name, given, State(before, extra=extra), 1, bench)
        assert made.history is before and made.id == f"{given.id}/2" and made.seed == given.seed(1, "inner loop")
        assert texts(made.examples)[: len(rule.texts_of(given, 1))] == rule.texts_of(given, 1)
    if name not in ("gated_merge", "ewc", "null_space", "inflora"):
        for k, weight in enumerate([1, 1 / math.sqrt(2), 1 / math.sqrt(3)] if name == "delta_scaling" else [1, 1, 1]):
            after = rule.after(given, State(before), k, edit)
            assert equal(after.history, [(before, 1.0), (edit, weight)]), k
            assert equal(rule.after(given, State(), k, edit).history, [(edit, weight)])
    if name == "o_lora":  # it reads the old rows of A
        many = rule.after(given, State(adapter(1, rank=200)), 0, edit).history
        assert many.rank == 204


def test_joint_retraining_starts_from_the_base_with_everything_so_far() -> None:
    bench, given, before, edit = lab(), stream(3), adapter(1), adapter(2)
    rule = RULES["joint"](bench)
    for k in range(3):
        made = job("joint", given, State(before), k, bench)
        assert made.history is None
        assert texts(made.examples) == [ids for j in range(k + 1) for ids in rule.texts_of(given, j)]
        assert equal(rule.after(given, State(before), k, edit).history, [(edit, 1.0)])


# penalties


@pytest.mark.parametrize("share, layers", [(0.0, 0), (0.34, 1), (0.5, 2), (0.67, 2), (1.0, 3)])
def test_the_lower_layers_are_frozen(share: float, layers: int) -> None:
    assert policy().model.config.num_hidden_layers == 3
    frozen = job("freeze_lower", stream(1), State(), 0, share=share).frozen_layers
    names = target_linears(policy().model, "all-linear")
    assert frozen == {name for name in names if any(f".{n}." in name for n in range(layers))}
    assert penalties._layer("lm_head") > penalties._layer("model.layers.999.mlp") == 999


def test_the_penalties_reach_the_job() -> None:
    l2 = job("l2", stream(1), State(), 0, strength=0.7)
    assert (l2.strength, l2.from_base, l2.penalty, l2.orthogonal) == (0.7, True, {}, 0.0)
    assert job("o_lora", stream(1), State(), 0, lam=0.6).orthogonal == 0.6


def test_ewc_adds_the_information_of_an_edit_in_the_bases_unit() -> None:
    """Fisher information by hand: of the base 1 and 3 (unit 2), of each edit 4; the measured one has its own test."""
    bench, given = lab(), stream(3)
    first, *_, last = target_linears(bench.model, "all-linear")
    asked = []

    def fisher(found, adapter):
        asked.append((found, adapter))
        base = found is bench.base_texts
        return {first: torch.full((2, 3), 1.0 if base else 4.0), last: torch.full((3, 2), 3.0 if base else 4.0)}

    bench.fisher = fisher
    rule, state, edit = RULES["ewc"](bench, strength=0.3), State(), adapter(1)
    for k in range(3):
        (made,) = rule.jobs([given], [state], k)
        assert made.strength == 0.3 and not made.from_base
        assert [float(made.penalty[n].mean()) for n in (first, last)] == [0.5 + 2 * k, 1.5 + 2 * k]
        state = rule.after(given, state, k, edit)
        assert equal(state.history, [(edit, k + 1.0)])
    assert [found for found, _ in asked] == [bench.base_texts, *(rule.texts_of(given, k) for k in range(3))]
    assert asked[0][1] is None and asked[-1][1] is state.history  # the base's once; an edit's where it was learned


# projections


def test_inflora_has_fewer_rows_where_an_edit_has_fewer_tokens() -> None:
    bench = lab(max_length=2, document_limit=1, add_passage=False, rank=8)
    rule, given = RULES["inflora"](bench), stream(1)
    read = sum(len(ids) for ids in rule.texts_of(given, 0))
    made = job("inflora", given, State(), 0, bench)
    assert 0 < read < 8 and made.frozen_a
    names = target_linears(bench.model, "all-linear")
    assert set(made.init.targets) == {name.rpartition(".")[2] for name in names} and set(made.init.weights) == set(
        names
    )
    for a, b in made.init.weights.values():
        assert (a.norm(dim=1) > 0).tolist() == [True] * read + [False] * (8 - read) and not b.any()


# rehearsal


def test_memory_enters_every_step_with_its_share() -> None:
    fresh = [
        Example([1, 2, 3]),
        Example([4, 5], weights=[9.0, 2.0]),
        Example([6, 7, 8], denominator=4.0),
        Example([1, 2, 3, 4], weights=[5.0, 1.0, 0.0, 2.0], denominator=1.5),
    ]
    plain = Job("p", fresh, epochs=3, seed=3, rank=4, alpha=8, batch=2)
    memory = [Example([9, 9]), Example([8, 8, 8], weights=[0.0, 1.0, 1.0])]
    made = mixed(plain, memory, m=3, weight=6.0)
    assert texts(made["examples"]) == texts(fresh + memory)
    # a document counts 1/batch, whatever its length; the memory counts `weight` in all; a divisor of 1 a step
    shares = [sum(example.weights[1:]) for example in made["examples"]]
    assert shares == pytest.approx([1 / 2, 1 / 2, 1 / 4, 1, 2, 2])  # the third is a half of 2/4, the fourth of 3/1.5
    assert [example.denominator for example in made["examples"]] == [0.5] * 4 + [0.0] * 2
    assert made["examples"][1].weights == pytest.approx([9 / 4, 1 / 2])
    assert [step[:2] for step in made["order"]] == [tuple(step) for step in plain.plan()]
    drawn = [i for step in made["order"] for i in step[2:]]
    assert all(len(step) == 5 for step in made["order"]) and set(drawn) == {4, 5} and len(set(made["order"])) > 3
    assert mixed(plain, [], m=3, weight=6.0) == {"examples": fresh}


def test_replay_draws_from_every_earlier_edit() -> None:
    bench, given = lab(), stream(3)
    rule = RULES["replay"](bench, m=5, weight=2.0)
    for k in range(3):
        made = job("replay", given, State(), k, bench, m=5, weight=2.0)
        old = [ids for j in range(k) for ids in rule.texts_of(given, j)]
        assert texts(made.examples) == rule.texts_of(given, k) + old and len(past(bench, given, k)) == len(old)
        fresh = len(made.examples) - len(old)
        for step in made.plan():
            assert len(step) == (1 + 5 if old else 1) and all(fresh <= i < len(made.examples) for i in step[1:])
        assert [sum(e.weights[1:]) for e in made.examples[fresh:]] == pytest.approx([2.0 / 5] * len(old))


def test_own_texts_of_one_token_are_left_out_and_each_stream_has_its_own() -> None:
    bench, (one, two), asked = lab(), (stream(1), stream(1, id="other")), []
    end = bench.tokenizer.eos_token_id

    def write(found, count, seeds):
        asked.append((list(found), count, list(seeds)))
        return [[[], [9], [9, 2], [3, 4, 5, end]], [[6, 7], [8]]]

    bench.write = write
    rule, history = RULES["generative_replay"](bench, texts=7, m=2, weight=4.0), adapter(1)
    first, second = rule.jobs([one, two], [State(), State(history)], 0)
    assert texts(first.examples)[-2:] == [[9, 2, end], [3, 4, 5, end]] and texts(second.examples)[-1:] == [[6, 7, end]]
    assert len(second.examples) == len(rule.texts_of(two, 0)) + 1
    assert asked == [([None, history], 7, [one.seed(0, "own texts"), two.seed(0, "own texts")])]


@pytest.mark.parametrize("name", ["kl", "kl_replay"])
def test_the_teacher_is_the_model_before_the_edit(name: str) -> None:
    bench, given, before = lab(), stream(2), adapter(1)
    made = job(name, given, State(before), 1, bench, m=2, weight=3.0)
    fresh, anchors = len(RULES[name](bench).texts_of(given, 1)), bench.base_texts
    old = RULES[name](bench).texts_of(given, 0) if name == "kl_replay" else []
    assert texts(made.examples)[fresh:] == anchors + old
    shares = [sum(example.weights[1:]) for example in made.examples]
    assert shares == pytest.approx([1.0] * fresh + [3.0 / 2] * len(anchors) + [1 / 2] * len(old))
    assert [e.denominator for e in made.examples] == [1.0] * fresh + [0.0] * (len(anchors) + len(old))
    for step in made.plan():
        kinds = [(i >= fresh) + (i >= fresh + len(anchors)) for i in step]
        assert kinds == [0] + [1] * 2 + [2] * (2 if old else 0)
    for example, log in zip(made.examples[fresh:], bench.logprobs(anchors, before), strict=False):
        assert torch.allclose(example.teacher, log, atol=1e-5)
    first = job(name, given, State(), 0, bench, m=2, weight=3.0)  # no past yet: anchors alone
    assert len(first.examples) == len(RULES[name](bench).texts_of(given, 0)) + len(anchors)


# merging


@pytest.mark.parametrize("name", ["merge", "ties", "isolation", "isolation_oracle"])
def test_independent_edits_start_from_the_base_and_are_kept_apart(name: str) -> None:
    given, parts = stream(3), [adapter(n) for n in range(3)]
    knobs = {"merge": {"scale": 0.3}, "ties": {"density": 0.4, "scale": 0.7}}.get(name, {})
    rule, state = RULES[name](lab(), **knobs), State()
    for k in range(3):
        (made,) = rule.jobs([given], [replace(state, history=adapter(9))], k)
        assert made.history is None and texts(made.examples) == rule.texts_of(given, k)
        state = rule.after(given, state, k, parts[k])
        assert state.parts == tuple(parts[: k + 1])
        if name == "merge":
            assert equal(state.history, [(part, 0.3) for part in state.parts])
        elif name == "ties":
            assert equal(state.history, [(states.ties(state.parts, 0.4), 0.7)])
        else:
            assert state.history is None
    empty = rule.unedited(given, state, 3)  # keeps its place, so that the next edit has its own index
    assert len(empty.parts) == 4 and states.update_norm(empty.parts[3]) == 0
    assert set(empty.parts[3].weights) == set(parts[0].weights)


@pytest.mark.parametrize(
    "budget, share",
    [
        (2.0, 1.0),
        (1.0, 1.0),  # what reaches the budget is within it
        (0.99, 1.0 - 0.9 / 32),
        (0.55, 0.55),  # met at the first bisection, and never again
        (0.5, 0.1 + 0.9 * 14 / 32),
        (0.2, 0.1 + 0.9 * 3 / 32),
        (0.05, 0.1),  # the least that is added
        (0.0, 0.1),
    ],
)
def test_the_gate_bisects_for_the_largest_share_within_the_budget(budget: float, share: float) -> None:
    """With a measurement by hand, in which a share of the edit drifts by just that share per token."""
    bench, given, before, edit = lab(), stream(1), adapter(1), adapter(2)
    name = next(iter(edit.weights))
    bench.write = lambda found, count, seeds: [[[1, 2], [3, 4, 5]]]
    sure = torch.tensor([[0.0, -1000.0]], dtype=torch.float64)  # of two tokens the first

    def logprobs(found, state):
        share = (state.delta(name) - before.delta(name)).norm() / edit.delta(name).norm()
        return [sure.repeat(len(ids) - 1, 1) - round(float(share), 5) for ids in found]

    bench.logprobs = logprobs
    rule = RULES["gated_merge"](bench, budget=budget)
    (after,) = rule.update([given], [State(before)], 0, [type("Result", (), {"adapter": edit})])
    assert equal(after.history, [(before, 1.0), (edit, share)])
    got = (after.history.delta(name) - before.delta(name)).norm() / edit.delta(name).norm()
    assert float(got) == pytest.approx(share, abs=1e-4)


# on the shipped model, as measured


def test_a_gated_merge_adds_as_much_of_an_edit_as_its_budget_of_drift_allows() -> None:
    bench, given = lab(), [stream(1)]
    rule = RULES["gated_merge"](bench, budget=math.inf)
    with bench.bank(slots=1, targets=bench.inner.targets) as bank:
        results = bank.run(rule.jobs(given, [State()], 0))
    shares = []
    for budget in (math.inf, 1e-3, 1e-4, 1e-5, 1e-6, 0.0):
        (after,) = RULES["gated_merge"](bench, budget=budget).update(given, [State()], 0, results)
        shares.append(states.update_norm(after.history) / states.update_norm(results[0].adapter))
    assert shares[0] == pytest.approx(1.0) and shares[-1] == pytest.approx(0.1, rel=1e-5)
    assert shares == sorted(shares, reverse=True) and any(0.11 < share < 0.99 for share in shares)


def test_every_trained_rule_may_take_the_same_learning_rates() -> None:
    bench = lab()
    for name, rule in RULES.items():
        assert set(rule.ladders) <= set(rule.knobs), name
        assert (rule.ladders.get("lr_scale") == RATES) == rule.trains, name
        for scale in RATES if rule.trains else ():
            assert rule(bench, lr_scale=scale).lab.inner.lr == INNER.lr * scale, name
        for knob, ladder in rule.ladders.items():
            assert rule.knobs[knob] in ladder and list(ladder) == sorted(set(ladder)), (name, knob)
    # equal settings are one rule: a mean of edits is `merge` with scale 1/k, a lower rate or fewer epochs `sequential`
    assert not {"merge_mean", "merge_sum", "low_lr", "few_epochs"} & set(RULES)


def test_knobs_are_checked() -> None:
    with pytest.raises(ParameterError, match="no knob 'speed'"):
        RULES["replay"](lab(), speed=1)
    with pytest.raises(DataError, match="is not one of"):
        Arm("x", "unheard_of").make(lab())


def test_precision_accumulates() -> None:
    """Online EWC: the Fisher information of an edit is added in one unit, fixed by the base, so no weight's falls."""
    rule, given = RULES["ewc"](lab()), [stream(3)]
    means, state = [], State()
    for k in range(3):
        (job,) = rule.jobs(given, [state], k)
        means.append(sum(f.sum() for f in job.penalty.values()) / sum(f.numel() for f in job.penalty.values()))
        with StreamBank(rule.lab.model, slots=1, targets=rule.lab.inner.targets) as bank:
            results = bank.run([job])
        (after,) = rule.update(given, [state], k, results)
        assert all((after.extra[name] >= f - 1e-6).all() for name, f in job.penalty.items())
        state = after
    assert means[0] == pytest.approx(1.0, rel=1e-5) and means[0] < means[1] < means[2]


def trained(rule, given: list, state: State, k: int = 0) -> list[State]:
    """The states of streams after edit k."""
    jobs = rule.jobs(given, [state] * len(given), k)
    with StreamBank(rule.lab.model, slots=len(jobs), targets=rule.lab.inner.targets) as bank:
        results = bank.run(jobs)
    return rule.update(given, [state] * len(given), k, results)


def test_the_fisher_information_starts_as_the_bases_and_an_edit_adds_its_own() -> None:
    rule, given = RULES["ewc"](lab()), [stream(1)]
    base = rule.lab.fisher(rule.lab.base_texts, None)
    unit = sum(f.sum() for f in base.values()) / sum(f.numel() for f in base.values())
    (job,) = rule.jobs(given, [State()], 0)
    assert set(job.penalty) == set(base) and job.strength == 0.1 and not job.from_base
    (state,) = trained(rule, given, State())
    more = rule.lab.fisher(rule.texts_of(given[0], 0), state.history)  # of the model that has learnt it
    for name, f in base.items():
        assert np.allclose(job.penalty[name], f / unit, rtol=1e-4, atol=1e-6), name
        assert np.allclose(state.extra[name], (f + more[name]) / unit, rtol=1e-3, atol=1e-5), name


def energy(u, x) -> float:
    """Share of the squared norm of x [tokens, in] in the span of the orthonormal u [in, n]."""
    return float((x @ u).square().sum() / x.square().sum())


def test_a_null_space_holds_what_each_layer_reads_and_grows_by_the_edit() -> None:
    rule, given = RULES["null_space"](lab(), energy=0.8, past=0.95), [stream(1)]
    (job,) = rule.jobs(given, [State()], 0)
    base = rule.lab.inputs(rule.lab.base_texts, None)
    (state,) = trained(rule, given, State())
    edit = rule.lab.inputs(rule.texts_of(given[0], 0), state.history)
    assert {name for names in rule.lab.groups for name in names} == set(job.protect)
    for names in rule.lab.groups:
        first, grown = job.protect[names[0]], state.extra[names[0]]
        assert energy(first, base[names[0]]) >= 0.8 - 1e-5 > energy(first[:, :-1], base[names[0]])
        assert all(job.protect[name] is first for name in names)
        assert np.allclose(grown[:, : first.shape[1]], first) and grown.shape[1] > first.shape[1]
        assert energy(grown, edit[names[0]]) >= 0.95 - 1e-5 > energy(grown[:, :-1], edit[names[0]])
    (after,) = rule.jobs(given, [state], 0)
    assert all(np.allclose(after.protect[name], state.extra[names[0]]) for names in rule.lab.groups for name in names)


def test_inflora_trains_outside_what_earlier_edits_read() -> None:
    rule, given = RULES["inflora"](lab(), past=0.6), [stream(2)]
    (state,) = trained(rule, given, State())
    read = rule.lab.inputs(rule.texts_of(given[0], 0), state.history)
    (job,) = rule.jobs(given, [state], 1)
    inputs = rule.lab.inputs(rule.texts_of(given[0], 1), state.history)
    for names in rule.lab.groups:
        u = state.extra[names[0]]
        assert energy(u, read[names[0]]) >= 0.6 - 1e-5
        free = inputs[names[0]].double() @ (torch.eye(len(u)) - u @ u.mT).double()
        values, vectors = torch.linalg.eigh(free.mT @ free)
        for name in names:
            a = job.init.weights[name][0].double() * math.sqrt(3)  # the rows of PEFT's A have this norm on average
            assert (a @ u.double()).norm() < 1e-3 and torch.allclose(a @ a.mT, torch.eye(4).double(), atol=1e-3), name
            assert (a @ free.mT).square().sum() == pytest.approx(float(values[-4:].sum()), rel=1e-3), name
            assert not job.init.weights[name][1].any()


def test_inflora_starts_without_a_null_space() -> None:
    """As the original: the first edit's A are the top directions of its own inputs, whatever the base knows."""
    rule, given = RULES["inflora"](lab()), [stream(2)]
    (job,) = rule.jobs(given, [State()], 0)
    assert job.protect == {} and job.frozen_a
    inputs = rule.lab.inputs(rule.texts_of(given[0], 0), None)
    for names in rule.lab.groups:
        top = torch.linalg.svd(inputs[names[0]], full_matrices=False).Vh[: rule.lab.inner.rank]
        a = job.init.weights[names[0]][0][: len(top)] * math.sqrt(3)
        assert torch.allclose((a @ top.mT).abs(), torch.eye(len(top)), atol=1e-3)
