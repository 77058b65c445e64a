"""The loops, line by line, on a domain and a policy made by hand: no model, and everything that is called is seen.

A unit is a letter; a self-edit is a number as text ("?" cannot be parsed, "" is silent); training on it makes an
adapter of that number; the adapted policy answers it, and the accuracy is a tenth of the answer.

Run: pytest tests/loops/test_loops.py
"""

import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures_seal import MemoryRun

from seal_lib.errors import DataError
from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.loops import inner, outer, updates, wording
from seal_lib.loops.domain import TOO_LONG, Candidate, Rejected, job_settings
from seal_lib.loops.settings import OuterLoop, Pretraining
from seal_lib.loops.updates import Group, Update
from seal_lib.records import Round, SelfEdit
from seal_lib.runs.work import Work
from seal_lib.seeds import derive_seed
from seal_lib.training.jobs import Example, Job, Result

NAN = math.nan


@dataclass(frozen=True)
class Unit:
    id: str


@dataclass(frozen=True)
class Trial:
    id: str
    unit_id: str
    accuracy: float
    key: str = ""
    edit: Any = None


@dataclass(frozen=True)
class Number:
    """An adapter; ``save`` leaves a file."""

    value: float

    def save(self, folder: Path, base: str, revision: str | None) -> None:
        folder.mkdir(parents=True)
        (folder / "adapter").write_text(f"{self.value} {base} {revision}")


@dataclass
class Toy:
    """The domain."""

    max_tries: int = 1
    chunk: int = 7
    schema: str | None = None
    name: str = "toy"
    grader: str = "tenth"
    training: Any = field(default_factory=lambda: {"slots": 3})
    answering: Sampling = Sampling(5)
    asks: int = 2
    seen: list = field(default_factory=list)

    def prompt(self, unit, tokenizer):
        return f"about {unit.id}"

    def read(self, unit, edit, arm, seed):
        self.seen.append((edit.id, arm, seed))
        if edit.text == "?":
            return Rejected("unread", unread=True)
        if edit.text == "no":
            return Rejected("refused")
        return Candidate(f"{unit.id}={edit.text}", unit, edit.text, arm, seed)

    def jobs(self, candidates, tokenizer):
        return [
            Rejected("silent") if not c.edit else Job(c.id, [Example([1] * int(c.edit)), Example([1])])
            for c in candidates
        ]

    def questions(self, candidate, adapter, tokenizer, positions):
        assert positions == 99
        return [None, *(Request(f"{candidate.unit.id}?", n, adapter) for n in range(self.asks - 1))]

    def grade(self, candidates, results, answers, count):
        self.seen.append((results, answers))
        texts = [next((a.text for a in given if a), None) for given in answers]
        return [
            Trial(c.id, c.unit.id, NAN if t is None else float(t) / 10) for c, t in zip(candidates, texts, strict=True)
        ]

    def trial(self, edit, tried):
        if isinstance(tried, Rejected):
            return Trial(edit.id, edit.unit_id, NAN, tried.reason, edit)
        return replace(tried, id=edit.id, key=edit.text, edit=edit)

    def load(self, row):
        return Trial(**row | {"accuracy": NAN if row["accuracy"] is None else row["accuracy"]})

    def reward_seeds(self, seed, count):
        return [100 * seed + s for s in range(count)]

    def target(self, unit, text, policy):
        return [ord(unit.id)], [text]


class Rating(Toy):
    def rate(self, candidates, count):
        self.seen.append([c.id for c in candidates])
        return [NAN if c.edit == "8" else float(c.edit) / 100 for c in candidates]


@dataclass(frozen=True)
class Player:
    """The policy: ``says`` maps (prompt, attempt) to the numbers that it writes, one per sample."""

    name: str = "base"
    says: Any = None
    learned: tuple = ()
    log: list = field(default_factory=list)
    positions: int | None = None
    halvings: int = 0
    source: Any = None
    tokenizer: None = None

    @property
    def model(self):
        return SimpleNamespace(config=SimpleNamespace(max_position_embeddings=self.positions))

    def place(self, run):
        return "weights", "r1"

    def generator(self):
        return SimpleNamespace(positions=99, generate=self._generate)

    def _generate(self, requests, sampling):
        self.log.append((list(requests), sampling))
        return [[self._one(request, k) for k in range(sampling.n)] for request in requests]

    def _one(self, request, k):
        if request.prompt.endswith("?"):
            return Completion(str(getattr(request.adapter, "value", 1)), 1, "eos")
        text = self.says(request, k)
        return Completion(f" {text} ", 2, "too_long" if text == "" else "eos")

    def bank(self, **settings):
        bank = SimpleNamespace(halvings=self.halvings)

        def run(jobs):
            self.log.append((settings, [job.id for job in jobs]))
            return [  # 9 diverges
                Result(job.id, None, [], 3, 20, "diverged", "it diverged")
                if job.id.endswith("=9")
                else Result(job.id, Number(len(job.examples[0].ids)), [1.0], 3, 20)
                for job in jobs[::-1]
            ]

        bank.run = run
        manager = type("Bank", (), {"__enter__": lambda self: bank, "__exit__": lambda *_: None})
        return manager()

    def finetuned(self, run, pairs, outer, *, name, seed):
        return replace(self, name=name, learned=(*self.learned, (name, seed, pairs))), 0.25


def edits_of(unit: str, *texts: str) -> list[SelfEdit]:
    return [SelfEdit(f"{unit}/{k}", unit, text, "p") for k, text in enumerate(texts)]


def trials_of(*numbers: float, unit: str = "a") -> tuple:
    return tuple((Trial(f"{unit}/{k}", unit, n, str(k)),) for k, n in enumerate(numbers))


UNITS = [Unit("a"), Unit("b")]


class Watched(MemoryRun):
    """A run that says what it was asked."""

    def __init__(self, folder=None, shelf=None):
        super().__init__(folder)
        self.chunks, self.shelf, self.asked = {}, shelf, []

    def map(self, phase, units, fn, chunk=32):
        self.chunks[phase] = chunk
        return super().map(phase, units, fn, chunk)

    def adapters(self, phase):
        self.asked.append(phase)
        return self.shelf


# ---------------------------------------------------------------------------------------------- writing


def test_self_edits_are_sampled_unit_by_unit() -> None:
    run, policy = Watched(), Player("p", says=lambda request, k: str(k + 1) if request.prompt[-1] == "a" else "")
    settings = OuterLoop(samples=2, edit_tokens=11, temperature=0.7, top_p=0.9)
    domain = Toy(schema="{}")
    edits = outer.write_self_edits(run, policy, UNITS, domain, settings, phase="w", seed=5, chunk=1)
    assert [(e.id, e.unit_id, e.text, e.source, e.seed, e.tokens, e.tries) for e in edits] == [
        ("a/0", "a", "1", "p", 5, 2, 1),
        ("a/1", "a", "2", "p", 5, 2, 1),
        ("b/0", "b", "", "p", 5, 2, 1),
        ("b/1", "b", "", "p", 5, 2, 1),
    ]
    assert [e.unwritten for e in edits] == ["", "", outer.LONG, outer.LONG]
    (first, sampling), (second, _) = policy.log
    assert [(r.prompt, r.seed) for r in first + second] == [
        (f"about {name}", derive_seed(5, name, "self-edit")) for name in "ab"
    ]
    assert sampling == Sampling(11, 0.7, 0.9, 2, schema="{}", skip_long=True)
    assert run.counts == {"generated": 8} and run.chunks == {"w": 1} and domain.seen == []
    more = outer.write_self_edits(Watched(), policy, UNITS, domain, settings, phase="w", seed=5, samples=3)
    assert [e.id for e in more] == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"]


def test_what_cannot_be_parsed_is_sampled_again_alone_up_to_the_tries() -> None:
    """a/0 is read at the third try, a/1 at the first, b/0 never; b/1 is read and refused, which is no second try."""
    run, domain = Watched(), Toy(max_tries=4)

    def says(request, k):
        attempt = len(run.phases) + 1
        if attempt == 1:
            return {"about a": ["?", "5"], "about b": ["?", "no"]}[request.prompt][k]
        return "6" if request.prompt == "about a" and attempt == 3 else "?"

    policy = Player(says=says)
    edits = outer.write_self_edits(run, policy, UNITS, domain, OuterLoop(samples=2), phase="w", seed=5)
    assert [(e.id, e.text, e.tries, e.tokens) for e in edits] == [
        ("a/0", "6", 3, 6),
        ("a/1", "5", 1, 2),
        ("b/0", "?", 4, 8),
        ("b/1", "no", 1, 2),
    ]
    assert list(run.phases) == ["w", "w/again_2", "w/again_3", "w/again_4"]
    assert [list(rows) for rows in run.phases.values()] == [["a", "b"], ["a/0", "b/0"], ["a/0", "b/0"], ["b/0"]]
    assert [sampling.n for _, sampling in policy.log] == [2, 1, 1, 1]
    seeds = [derive_seed(5, "again", attempt) for attempt in (2, 3, 4)]
    assert [e["seed"] for rows in run.phases.values() for e in next(iter(rows.values()))["edits"]] == [5, 5, *seeds]
    assert {(arm, seed) for _, arm, seed in domain.seen} == {("", 0)}

    run = Watched()  # all are read: no further try
    good = outer.write_self_edits(run, Player(says=lambda *_: "1"), UNITS, domain, OuterLoop(), phase="w", seed=5)
    assert list(run.phases) == ["w"] and len(good) == 10


# ---------------------------------------------------------------------------------------------- ratings


def test_each_candidate_is_rated_once_and_none_is_no_rating() -> None:
    run, domain = Watched(), Rating()
    edits = [*edits_of("a", "3", "?", "8"), *edits_of("b", "3", "5")] + [SelfEdit("a/9", "a", "3", "p")]
    ratings = outer.rate_edits(run, Player(), edits, UNITS, domain, phase="r")
    assert {k: v for k, v in ratings.items() if k not in ("a/1", "a/2")} == {
        "a/0": 0.03,
        "b/0": 0.03,
        "b/1": 0.05,
        "a/9": 0.03,
    }
    assert math.isnan(ratings["a/1"]) and math.isnan(ratings["a/2"])
    assert domain.seen[-1] == ["a=3", "a=8", "b=3", "b=5"] and run.counts == {"rated": 4, "unrated": 1}
    assert {(arm, seed) for _, arm, seed in domain.seen[:-1]} == {("r", 0)}
    assert [row["rating"] for row in run.phases["r"].values()] == [0.03, None, 0.03, 0.05]
    with pytest.raises(DataError, match="the domain toy cannot rate a text"):
        outer.rate_candidates(run, Player(), [], Toy(), phase="x")


def test_finalists_are_the_best_of_each_unit_in_their_old_order() -> None:
    edits = [*edits_of("a", *"wxyz"), *edits_of("b", *"vw")]
    ratings = dict(zip((e.id for e in edits), [0.1, 0.7, NAN, 0.7, NAN, 0.0], strict=True))
    chosen = {most: [e.id for e in outer.finalists_of(edits, ratings, most)] for most in (1, 2, 3, 9)}
    assert chosen[1] == ["a/1", "b/1"] and chosen[2] == ["a/1", "a/3", "b/0", "b/1"]
    assert chosen[3] == ["a/0", "a/1", "a/3", "b/0", "b/1"] and chosen[9] == [e.id for e in edits]


# ---------------------------------------------------------------------------------------------- the E-step


def practised(settings: OuterLoop, domain: Toy | None = None, says=lambda request, k: str(k + 2)):
    run, policy = Watched(), Player(says=says)
    groups, frozen = outer.practise(run, policy, UNITS, domain or Rating(), settings, phase="r", seed=3)
    assert [group.unit for group in groups] == UNITS
    assert [[e.id for e in group.edits] for group in groups] == [["a/0", "a/1", "a/2"], ["b/0", "b/1", "b/2"]]
    return run, groups, frozen


def test_rewards_are_the_accuracies_of_the_trials() -> None:
    run, groups, frozen = practised(OuterLoop(samples=3))
    assert list(run.phases) == ["r/sample", "r/score"] and frozen == {}
    assert [group.rewards for group in groups] == [(0.2, 0.3, 0.4)] * 2
    assert [[t.edit.id for (t,) in group.trials] for group in groups] == [[e.id for e in g.edits] for g in groups]


def test_several_reward_seeds_are_averaged() -> None:
    domain = Toy()
    run, groups, _ = practised(OuterLoop(samples=3, reward_seeds=3), domain)
    assert list(run.phases) == ["r/sample", "r/score", "r/score_1", "r/score_2"]
    assert all(len(several) == 3 for group in groups for several in group.trials)
    assert groups[0].rewards == pytest.approx((0.2, 0.3, 0.4))
    reads = [seen for seen in domain.seen if len(seen) == 3]
    assert [seed for name, arm, seed in reads if name == "a/0"] == [300, 301, 302] and {a for _, a, _ in reads} == {"r"}


def test_the_frozen_policy_is_asked_only_for_a_reward_that_compares() -> None:
    run, groups, frozen = practised(OuterLoop(samples=3, reward="improvement"), says=lambda request, k: str(k + 1))
    assert list(run.phases) == ["r/sample", "r/frozen", "r/score"] and frozen == {"a": 0.1, "b": 0.1}
    assert list(run.phases["r/frozen"]) == ["a/frozen", "b/frozen"]
    assert [group.rewards for group in groups] == [(0.0, 1.0, 1.0)] * 2  # 0.1 is no improvement on 0.1


@pytest.mark.parametrize("more", [{}, {"reward": "rubric"}, {"finalists": 2}, {"reward": "improvement"}])
def test_a_blind_filter_tries_and_rates_nothing(more: dict) -> None:
    run, groups, frozen = practised(OuterLoop(samples=3, filter="random", **more))
    assert list(run.phases) == ["r/sample"] and frozen == {}
    assert [(group.trials, group.rewards) for group in groups] == [((), ())] * 2


def test_a_rating_may_be_the_reward_and_then_nothing_is_trained() -> None:
    run, groups, _ = practised(OuterLoop(samples=3, reward="rubric"))
    assert list(run.phases) == ["r/sample", "r/rate"]
    assert [group.rewards for group in groups] == [(0.02, 0.03, 0.04)] * 2
    assert [[t.key for (t,) in group.trials] for group in groups] == [["untried"] * 3] * 2


def test_only_finalists_are_tried_and_only_they_have_a_reward() -> None:
    run, groups, _ = practised(OuterLoop(samples=3, finalists=2))
    assert list(run.phases) == ["r/sample", "r/rate", "r/score"]
    assert list(run.phases["r/score"]) == ["a=3", "a=4", "b=3", "b=4"]
    for group in groups:
        assert math.isnan(group.rewards[0]) and group.rewards[1:] == (0.3, 0.4)
        assert [t.key for (t,) in group.trials] == ["untried", "3", "4"]


# ---------------------------------------------------------------------------------------------- one round


def test_a_round_records_the_first_trial_of_every_self_edit() -> None:
    first, second, third = (Trial(f"t{n}", "a", n / 10) for n in (1, 2, 3))
    edits = tuple(edits_of("a", "x", "y"))
    groups = [Group(UNITS[0], edits, ((first, second, third), (second, third, first)), (0.2, 0.4))]
    update = Update(Player(), (edits[1],), 0.5)
    record = outer.as_round(4, groups, update, OuterLoop(reward="improvement"), {"a": 0.15})
    assert record == Round(
        4, (first, second), (0.2, 0.4), ("a/1",), 0.5, "improvement", {"a": 0.15}, ((0.0, 1.0, 1.0), (1.0, 1.0, 0.0))
    )
    rated = outer.as_round(1, groups, update, OuterLoop(reward="rubric"), {})
    assert rated.by_seed == () and rated.reward == "rubric"
    assert outer.reward_of([first, second, third], NAN, "accuracy") == pytest.approx(0.2)


def one(unit: str, *rewards: float) -> tuple[tuple, tuple]:
    return tuple(Trial(f"{unit}/{k}", unit, r, str(k)) for k, r in enumerate(rewards)), rewards


@pytest.mark.parametrize(
    "which, rewards, warned",
    [
        ("best_of_k", [(0.5, 0.5), (0.1, 0.2)], False),  # tied in half of the units: not more than half
        ("best_of_k", [(0.5, 0.5), (0.1, 0.2), (0.3, 0.3)], True),
        ("best_of_k", [(0.0, 0.0), (0.0, 0.0), (0.1, 0.2)], True),
        ("best_of_k", [(0.1, 0.2), (0.1, 0.2)], False),
        ("threshold", [(0.5, 0.5), (0.3, 0.3)], False),  # keeps both: a tie hides nothing
        ("threshold", [(0.0, 0.0), (0.3, 0.3)], False),
        ("threshold", [(0.0, 0.0), (0.3, 0.3), (0.0, 0.0)], True),
        ("best_above", [(0.5, 0.5), (0.3, 0.3)], True),
    ],
)
def test_a_round_whose_reward_tells_nothing_apart_warns_the_caller(monkeypatch, which, rewards, warned) -> None:
    units = [Unit(name) for name in "abc"[: len(rewards)]]
    groups = [
        Group(u, tuple(edits_of(u.id, "x", "y")), trials_of(*r, unit=u.id), r)
        for u, r in zip(units, rewards, strict=True)
    ]
    monkeypatch.setattr(outer, "practise", lambda *_, **__: (groups, {}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outer.one_round(
            MemoryRun(), Player(), units, Toy(), OuterLoop(samples=2, filter=which), index=1, name="r", seed=0
        )
    assert len(caught) == warned
    if warned:
        assert caught[0].filename == __file__ and f"filter {which!r}" in str(caught[0].message)
        assert ("is shared by several" in str(caught[0].message)) == which.startswith("best")


def test_the_fresh_reward_of_a_unit_is_a_mean_without_what_cannot_be_scored() -> None:
    trials = [Trial("x", "a", 0.2), Trial("y", "a", 0.6), Trial("z", "a", NAN), Trial("x", "b", NAN)]
    record = Round(1, (), (), (), frozen={"a": 0.3})
    assert outer.fresh_rewards(record, trials) == {"a": pytest.approx(0.4)}
    assert outer.fresh_rewards(replace(record, reward="improvement"), trials) == {"a": 0.5}
    assert outer.fresh_rewards(replace(record, reward="rubric"), trials) == {"a": pytest.approx(0.4)}


def test_without_rewards_every_self_edit_is_worth_nothing() -> None:
    group = Group(UNITS[0], tuple(edits_of("a", "x", " ", "y")), (), ())
    for threshold, kept in ((-0.5, ["a/0", "a/2"]), (0.0, []), (0.5, [])):
        settings = OuterLoop(filter="threshold", threshold=threshold)
        assert [e.id for e in updates.kept_of([group], settings, 0)] == kept


# ---------------------------------------------------------------------------------------------- the whole loop


@pytest.mark.parametrize("control", ["", "random_edit_sft", "random_config_sft"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_the_whole_loop_phase_by_phase(control: str, rounds: int) -> None:
    """Every phase in its order, who wrote and who learned what, with which seed."""
    run, asked = Watched(), []
    policy = Player(says=lambda request, k: str(k + 2))
    drawn = {index: derive_seed(4, index) for index in (1, 2)}
    loop = outer.run_loop(
        run,
        policy,
        Toy(),
        OuterLoop(samples=3),
        practice=lambda index: asked.append(index) or UNITS[index - 1 :],
        held_out=UNITS,
        rounds=rounds,
        seed=4,
        control=control,
        samples=2,
        group="m/",
    )
    phases = ["m/seed_4/evaluate/own_untrained/write", "m/seed_4/evaluate/own_untrained"]
    for index in range(1, rounds + 1):
        name = f"m/seed_4/seal_round_{index}"
        phases += [f"{name}/sample", f"{name}/score", f"{name}/fresh_seed"]
        phases += [f"m/seed_4/evaluate/seal_round_{index}/write", f"m/seed_4/evaluate/seal_round_{index}"]
        if index == 1 and control == "random_config_sft":
            phases += [f"m/seed_4/evaluate/{control}/write", f"m/seed_4/evaluate/{control}"]
    if control == "random_edit_sft":
        phases += [f"m/seed_4/random_round_{index}/sample" for index in range(1, rounds + 1)]
        phases += [f"m/seed_4/evaluate/{control}/write", f"m/seed_4/evaluate/{control}"]
    assert list(run.phases) == phases
    assert asked == [*range(1, rounds + 1)] * (2 if control == "random_edit_sft" else 1)
    arms = ["own_untrained", *(f"seal_round_{n}" for n in range(1, rounds + 1)), control]
    assert sorted(loop.evaluated) == sorted(filter(None, arms))
    assert all(len(trials) == 4 for trials in loop.evaluated.values())  # two units × two samples
    assert [record.index for record in loop.rounds] == [*range(1, rounds + 1)] and loop.seed == 4
    assert [record.kept for record in loop.rounds] == [("a/2", "b/2"), ("b/2",)][:rounds]
    assert [[t.edit.id for t in trials] for trials in loop.fresh] == [["a/2", "b/2"], ["b/2"]][:rounds]
    wrote = {
        phase: {e["source"] for row in rows.values() for e in row["edits"]}
        for phase, rows in run.phases.items()
        if phase.endswith(("/write", "/sample"))
    }
    assert wrote["m/seed_4/evaluate/own_untrained/write"] == {"base"}
    assert wrote["m/seed_4/seal_round_1/sample"] == {"base"}
    for index in range(1, rounds + 1):
        assert wrote[f"m/seed_4/evaluate/seal_round_{index}/write"] == {f"m/seed_4/seal_round_{index}"}
        sampled = run.phases[f"m/seed_4/seal_round_{index}/sample"]
        assert {e["seed"] for row in sampled.values() for e in row["edits"]} == {drawn[index]}
    if rounds == 2:
        assert wrote["m/seed_4/seal_round_2/sample"] == {"m/seed_4/seal_round_1"}
    if control == "random_edit_sft":
        last = f"m/seed_4/random_round_{rounds}"
        assert wrote["m/seed_4/random_round_1/sample"] == {"base"}
        assert wrote[f"m/seed_4/evaluate/{control}/write"] == {last}
    if control == "random_config_sft":
        assert wrote[f"m/seed_4/evaluate/{control}/write"] == {f"m/seed_4/{control}"}


def test_the_control_learns_once_from_as_many_of_the_first_rounds_self_edits(monkeypatch) -> None:
    learned = {}
    finetuned = Player.finetuned

    def spy(self, run, pairs, settings, *, name, seed):
        learned[name] = (self.name, pairs, seed)
        return finetuned(self, run, pairs, settings, name=name, seed=seed)

    monkeypatch.setattr(Player, "finetuned", spy)
    settings = OuterLoop(samples=8, filter="threshold", threshold=0.65)  # keeps 7 and 8; 9 diverges
    policy = Player(says=lambda request, k: str(k + 2))
    outer.run_loop(
        Watched(),
        policy,
        Toy(),
        settings,
        practice=lambda _: UNITS,
        held_out=UNITS,
        rounds=2,
        seed=4,
        control="random_config_sft",
    )
    assert list(learned) == ["seed_4/seal_round_1", "seed_4/random_config_sft", "seed_4/seal_round_2"]
    assert learned["seed_4/seal_round_1"] == (
        "base",
        [([ord(u)], [t]) for u in "ab" for t in "78"],
        derive_seed(4, 1),
    )
    whose, pairs, seed = learned["seed_4/random_config_sft"]
    assert (whose, seed, len(pairs)) == ("base", derive_seed(4, 1), 4)
    assert sorted(text for prompt, (text,) in pairs if prompt == [ord("a")]) != ["7", "8"]
    assert learned["seed_4/seal_round_2"][0] == "seed_4/seal_round_1"


# ---------------------------------------------------------------------------------------------- the inner loop


def candidates(*texts: str) -> list[Candidate]:
    return [Candidate(f"a={text}", UNITS[0], text, "x", 0) for text in texts]


def test_what_is_rejected_leaves_the_others_to_train() -> None:
    policy, counted = Player(halvings=2), {}
    found = inner.train(policy, candidates("3", "", "5"), Toy(), lambda **counts: counted.update(counts))
    assert [getattr(one, "id", None) for one in found] == ["a=3", None, "a=5"]  # in their order, not the bank's
    assert found[1] == Rejected("silent") and policy.log == [({"slots": 3}, ["a=3", "a=5"])]
    assert counted == {"out_of_memory": 2}
    calm = Player()
    assert inner.train(calm, candidates("", ""), Toy()) == [Rejected("silent")] * 2 and calm.log == []
    inner.train(calm, candidates("3"), Toy(), lambda **counts: pytest.fail(f"counted {counts}"))


@pytest.mark.parametrize("positions, fits", [(None, True), (5, True), (6, True), (4, False)])
def test_an_example_beyond_the_models_positions_is_rejected_by_name(positions: int | None, fits: bool) -> None:
    (found,) = inner.train(Player(positions=positions), candidates("6"), Toy())  # the last token is predicted only
    if fits:
        assert found.outcome == "ok"
    else:
        assert found == Rejected(TOO_LONG, "an example takes 5 positions, the model has 4")


def test_a_candidate_that_failed_is_not_asked_and_the_rest_are_counted() -> None:
    policy, domain, counted = Player(), Toy(asks=3), {}
    plain = Candidate("plain", UNITS[1], None, "frozen", 0, trains=False)
    several = [*candidates("9", "4", ""), plain]
    trials = inner.try_all(policy, several, lambda **counts: counted.update(counts), domain=domain)
    assert [(t.id, t.accuracy) for t in trials][1] == ("a=4", 0.4)
    assert math.isnan(trials[0].accuracy) and math.isnan(trials[2].accuracy) and trials[3].accuracy == 0.1
    results, answers = domain.seen[-1]
    assert [getattr(r, "outcome", None) for r in results] == ["diverged", "ok", None, None]
    assert results[2] == Rejected("silent") and results[3] is None
    assert [[a and a.text for a in given] for given in answers] == [[], [None, "4", "4"], [], [None, "1", "1"]]
    assert counted == {"trained": 40, "scored": 4}
    (requests, sampling) = policy.log[-1]
    assert [(r.prompt, getattr(r.adapter, "value", None)) for r in requests] == [("a?", 4)] * 2 + [("b?", None)] * 2
    assert sampling == domain.answering


def test_without_a_question_no_engine_is_asked() -> None:
    policy, domain = Player(), Toy(asks=1)
    (trial,) = inner.ask_candidates(
        policy, [Candidate("p", UNITS[0], None, "frozen", 0, trains=False)], {}, domain=domain
    )
    assert math.isnan(trial.accuracy) and policy.log == [] and domain.seen[-1] == ([None], [[None]])


def test_adapters_are_kept_by_name_where_the_run_keeps_them(tmp_path) -> None:
    run, policy = Watched(shelf=tmp_path), Player()
    several = [*candidates("3", "9"), Candidate("a/b c=4", UNITS[0], "4", "x", 0)]
    inner.score_candidates(run, policy, several, Toy(), phase="s")
    kept = {folder.name: (folder / "adapter").read_text() for folder in tmp_path.iterdir()}
    assert kept == {"a=3": "3 weights r1", "a%2Fb%20c=4": "4 weights r1"}  # none of what diverged
    assert run.asked == ["s"] and run.chunks == {"s": 7}
    mixed = [candidates("5")[0], Candidate("p", UNITS[0], None, "frozen", 0, trains=False)]
    inner.score_candidates(run, policy, mixed, Toy(), phase="t", chunk=2)
    assert run.asked == ["s", "t"] and run.chunks["t"] == 2 and (tmp_path / "a=5").is_dir()
    inner.score_candidates(run, policy, mixed[1:], Toy(), phase="u")  # nothing is trained: no folder is asked for
    assert run.asked == ["s", "t"]
    bare = Watched()
    assert [t.accuracy for t in inner.score_candidates(bare, policy, candidates("3"), Toy(), phase="s")] == [0.3]


def test_equal_self_edits_are_trained_once_and_each_has_its_trial() -> None:
    run, policy, domain = Watched(), Player(), Toy()
    edits = [*edits_of("a", "3", "?", "3"), *edits_of("b", "3", "no")]
    trials = inner.score_edits(run, policy, edits, UNITS, domain, arm="x", phase="s", seed=6)
    assert list(run.phases["s"]) == ["a=3", "b=3"] and [t.edit for t in trials] == edits
    assert [t.key for t in trials] == ["3", "unread", "3", "3", "refused"]
    assert {(arm, seed) for _, arm, seed in (s for s in domain.seen if len(s) == 3)} == {("x", 6)}


def test_the_settings_that_a_job_has_by_the_same_name_are_passed_on() -> None:
    @dataclass
    class Inner:
        lr: float = 0.5
        epochs: int = 7
        answer_tokens: int = 3

    assert job_settings(Inner()) == {"lr": 0.5, "epochs": 7}


# ---------------------------------------------------------------------------------------------- settings, wording


def test_settings_that_cannot_be_met_are_refused() -> None:
    assert OuterLoop(samples=3, finalists=3).finalists == 3 and OuterLoop(reward="rubric").finalists == 0
    with pytest.raises(DataError, match="finalists: 4 cannot be tried, there are 3"):
        OuterLoop(samples=3, finalists=4)
    with pytest.raises(DataError, match="finalists: 1 cannot be tried, by reward rubric none is tried"):
        OuterLoop(reward="rubric", finalists=1)
    for key in ("cpt_method", "cpt_schedule", "cpt_passages"):
        with pytest.raises(DataError, match=f"{key}: 'x' is not one of"):
            Pretraining(**{key: "x"})


def test_slots_are_filled_and_braces_of_values_stay() -> None:
    assert wording.fill("{a} {b} {c} {{a}} {}", a="{b}", b="2") == "{b} 2 {c} {{b}} {}"


def test_own_entries_come_before_shipped_ones(tmp_path) -> None:
    shipped, own, wrong = (tmp_path / f"{name}.yaml" for name in ("shipped", "own", "wrong"))
    shipped.write_text("one: {p: 1}\ntwo: {p: 2}\n")
    own.write_text("two: {p: 3}\nthree: {p: 4}\n")
    assert wording.entries(shipped, None, "p") == {"one": ({"p": 1}, "shipped.yaml"), "two": ({"p": 2}, "shipped.yaml")}
    found = wording.entries(shipped, str(own), "p")
    assert list(found) == ["one", "two", "three"] and found["two"] == ({"p": 3}, str(own))
    for text in ("- p\n", "one: {p: 1}\ntwo: 2\n", "word\n"):
        wrong.write_text(text)
        with pytest.raises(DataError, match="wrong.yaml: expected `name: {p: …}` entries"):
            wording.entries(shipped, str(wrong), "p: …")


def test_a_template_without_its_slot_is_named() -> None:
    entry = {"write": "{title} {text}", "ask": "{question}"}
    wording.check_slots(entry, {"write": ("title", "text"), "ask": ("question",)}, "f, x")
    with pytest.raises(DataError, match=r"f, x, ask: the slot \{title\} is missing"):
        wording.check_slots(entry, {"write": ("text",), "ask": ("question", "title")}, "f, x")


def test_the_work_of_a_loop_is_a_function_that_others_can_import() -> None:
    """What workers get: the module's function with plain settings."""
    got = {}

    class Reader(MemoryRun):
        def map(self, phase, units, fn, chunk=32):
            got[phase] = fn
            return super().map(phase, units, fn, chunk)

    outer.practise(
        Reader(), Player(says=lambda request, k: str(k + 2)), UNITS, Rating(), OuterLoop(finalists=1), phase="r", seed=0
    )
    assert all(
        isinstance(work, Work) and work.unit.func.__module__.startswith("seal_lib.loops") for work in got.values()
    )
    assert list(got) == ["r/sample", "r/rate", "r/score"]
