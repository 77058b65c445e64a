"""Puzzles of three kinds: which copies are fair for which, and whether reading the puzzle is measured as such."""

import random
from collections import Counter

import pandas as pd
import pytest
import scipy.stats

from seal_lib.arc import kind_plots, kinds, mixed_world, reading, world
from seal_lib.arc.augment import SWITCHES, colour_permutation, recolour
from seal_lib.arc.data import load_tasks
from seal_lib.arc.domain import Attempt, PuzzleTrial
from seal_lib.arc.self_edits import Config
from seal_lib.arc.tasks import Pair
from seal_lib.errors import DataError
from seal_lib.loops.outer import Loop
from seal_lib.loops.updates import Update
from seal_lib.records import Round, SelfEdit

PAINTS = [recolour(colour_permutation(range(10), random.Random(seed))) for seed in range(5)]
NAMES = ("mixed-seen", "mixed-learning", "mixed-heldout")


def pairs_of(task) -> list[Pair]:
    return [*task.train, Pair(task.tests[0], task.solutions[0])]


def follows(pairs: list[Pair], kind: str, name: str) -> bool:
    """Whether every pair follows the rule that the task's name spells."""
    last = name.rsplit("-", 1)[1]
    if kind == "moves":
        return all(world.apply(tuple(map(int, last)), pair.input) == pair.output for pair in pairs)
    if kind == "key_colour":
        old, new = map(int, last)
        changed = [tuple(new if cell == old else cell for cell in mixed_world.cells(pair.input)) for pair in pairs]
        return all(cells == mixed_world.cells(pair.output) for cells, pair in zip(changed, pairs, strict=True))
    place, rule = mixed_world.BLACK[name.split("-")[-2]], tuple(map(int, last))
    for pair in pairs:
        black = {i for i, cell in enumerate(mixed_world.cells(pair.input)) if cell == 0}
        back = [
            t
            for t in mixed_world.SYMMETRIES
            if {i for i, c in enumerate(mixed_world.cells(t(pair.input))) if c == 0} == set(place)
        ]
        assert len(black) == len(place) and back
        if any(world.apply(rule, turn(pair.input)) != turn(pair.output) for turn in back):
            return False
    return True


def test_no_rule_is_in_two_populations() -> None:
    for kind in mixed_world.RULE_KINDS:
        rules = [rule for name in NAMES for rule in mixed_world.populations()[name][kind]]
        assert len(rules) == len(set(rules)) == {"moves": 256, "around_black": 28, "key_colour": 72}[kind]


@pytest.mark.parametrize("population", NAMES[1:])
def test_which_copies_follow_the_rule_depends_on_its_kind(population: str) -> None:
    """What the world is made for: all copies of all tasks that the three ways make, against the rule's own words."""
    fair = {"turned": Counter(), "recoloured": Counter()}
    tasks = mixed_world.tasks(population, 36, seed=3)
    for task in tasks:
        kind, pairs = mixed_world.kind_of(task), pairs_of(task)
        assert follows(pairs, kind, task.id)
        copies = {"turned": mixed_world.SYMMETRIES[1:], "recoloured": PAINTS}
        for way, augmenters in copies.items():
            fair[way][kind] += all(follows(list(map(a.pair, pairs)), kind, task.id) for a in augmenters)
    assert fair["recoloured"] == {"moves": 12, "around_black": 12, "key_colour": 0}
    assert fair["turned"]["around_black"] == fair["turned"]["key_colour"] == 12
    assert fair["turned"]["moves"] <= 1  # a few maps, such as all cells alike, look the same when turned


def test_the_test_of_a_black_task_has_black_where_no_demonstration_has_it() -> None:
    def places(grid) -> tuple:
        return tuple(i for i, cell in enumerate(mixed_world.cells(grid)) if cell == 0)

    for task in mixed_world.tasks("mixed-heldout", 36, seed=1):
        if mixed_world.kind_of(task) == "around_black" and "diagonal" not in task.id:
            assert places(task.tests[0]) not in {places(pair.input) for pair in task.train}


def test_tasks_come_by_name_in_thirds() -> None:
    tasks = load_tasks("world:mixed-heldout:18")
    assert tasks == mixed_world.tasks("mixed-heldout", 18) != mixed_world.tasks("mixed-heldout", 18, seed=1)
    assert Counter(map(mixed_world.kind_of, tasks)) == dict.fromkeys(mixed_world.RULE_KINDS, 6)
    assert len({task.id for task in tasks}) == 18
    assert mixed_world.kind_of("heldout-2001") == "unknown"
    for wrong, says in (("mixed-heldout:19", "third"), ("mixed-heldout:300", "rules"), ("mixed-else:3", "not one of")):
        with pytest.raises(DataError, match=says):
            load_tasks(f"world:{wrong}")


HAND = Config((SWITCHES[2],), "train_using_output_tokens", 0.01, 4)


def test_blind_configurations_are_of_every_way_and_do_not_know_the_puzzle() -> None:
    seen = [mixed_world.kind_of(task) for seed in range(100) for task in mixed_world.tasks("mixed-seen", 12, seed)]
    drawn = [kinds.blind_configuration(HAND, "opening policy", number) for number in range(len(seen))]
    assert {(c.strategy, c.learning_rate, c.epochs) for c in drawn} == {(HAND.strategy, 0.01, 4)}
    counts = Counter(zip(seen, map(kinds.way, drawn), strict=True))
    table = [[counts[kind, way] for way in kinds.WAYS] for kind in mixed_world.RULE_KINDS]
    assert sum(table[0]) == sum(table[1]) == sum(table[2]) == 400
    assert scipy.stats.chi2_contingency(table).pvalue > 0.05  # kind and way are independent
    assert [sum(column) / 1200 for column in zip(*table, strict=True)] == pytest.approx([1 / 3] * 3, abs=0.04)
    assert len({c.switches for c in drawn}) == 16
    assert all(kinds.way(Config(switches, "", 0.1, 1)) == way for way, switches in kinds.WAYS.items())


BEST = {"all": "recoloured", "moves": "recoloured", "around_black": "turned", "key_colour": "plain"}


def attempt(task: str, way: str, right: bool | None = None) -> Attempt:
    right = BEST[mixed_world.kind_of(task)] == way if right is None else right
    config = Config(kinds.WAYS[way], "train_using_output_tokens", 0.01, 4)
    return Attempt(f"{task}/{way}", task, "ok", config=config, steps=1, attempts=((((1,),),),), pass_2=right, cells=1.0)


TASKS = [f"mixed-heldout-{kind}-{n}" for n in range(6) for kind in mixed_world.RULE_KINDS]


def loop_of(arms: dict, seed: int) -> Loop:
    edit = SelfEdit("x", "y", "", "z")
    return Loop(seed, (None,), {arm: [PuzzleTrial(edit, a) for a in attempts] for arm, attempts in arms.items()})


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    """A policy that writes all ways for all puzzles, one that writes the best way for all, and one that reads."""
    arms = {
        "own_untrained": [attempt(task, way) for task in TASKS for way in kinds.WAYS],
        "random_config_sft": [attempt(task, way) for task in TASKS for way in kinds.WAYS],
        "dealt_config_sft": [attempt(task, "recoloured") for task in TASKS for _ in range(3)],
        "seal_round_1": [attempt(task, BEST[mixed_world.kind_of(task)]) for task in TASKS for _ in range(3)],
    }
    tried = {way: [attempt(task, way) for task in TASKS] for way in kinds.WAYS}
    # on practice tasks one more way succeeds where it should not, so that "all" has no tie
    practice = {
        way: [attempt(t, way, way == "recoloured" and t.endswith("-0") or None) for t in TASKS] for way in tried
    }
    icl = [attempt(task, "plain", False) for task in TASKS]
    return pd.DataFrame(
        kinds.kind_rows(
            {"practice": practice, "held_out": tried},
            icl,
            [loop_of(arms, s) for s in (0, 1)],
            protocol="clean",
            model="m",
            grader="grid",
        )
    )


def value(table: pd.DataFrame, arm: str, metric: str, experiment: str = "arc/kinds") -> float:
    (found,) = table[(table.experiment == experiment) & (table.arm == arm) & (table.metric == metric)].value
    return found


def test_only_a_policy_that_reads_has_reading_above_zero(results) -> None:
    for arm, suits, read in (("own_untrained", 1 / 3, 0), ("dealt_config_sft", 1 / 3, 0), ("seal_round_1", 1, 2 / 3)):
        assert value(results, arm, "suits") == pytest.approx(suits)
        assert value(results, arm, "reading") == pytest.approx(read, abs=1e-9)
    assert value(results, "seal_round_1", "share:turned", "arc/kinds/around_black") == 1
    assert value(results, "seal_round_1", "share:turned", "arc/kinds/moves") == 0


def test_one_for_all_and_one_for_each_kind_are_chosen_on_practice_tasks(results) -> None:
    assert value(results, "one_for_all", "success_rate") == pytest.approx(1 / 3)
    assert value(results, "kind_known", "success_rate") == 1
    assert value(results, "seal_round_1 - one_for_all", "difference") == pytest.approx(2 / 3)
    assert value(results, "seal_round_1 - kind_known", "difference") == 0
    flat = {way: [attempt(task, way, way == "turned") for task in TASKS] for way in kinds.WAYS}
    assert kinds.best_ways(flat, "grid") == dict.fromkeys(("all", *mixed_world.RULE_KINDS), "turned")


def test_both_controls_are_compared_with_the_loop_and_with_where_it_began(results) -> None:
    told = {row.arm: row.value for row in results[results.metric == "difference"].itertuples()}
    assert set(told) == {" - ".join(pair) for pair in kinds.comparisons(1)}
    for control in ("random_config_sft", "dealt_config_sft"):
        assert told[f"seal_round_1 - {control}"] == pytest.approx(2 / 3)
        assert told[f"{control} - own_untrained"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("random_control", [True, False])
def test_a_loop_leaves_its_controls(monkeypatch, random_control: bool) -> None:
    """Each control is learned by the opening policy: blindly chosen self-edits, and the kept ones dealt anew."""
    edits = [SelfEdit(str(i), f"task {i % 7}", f"text {i}", "w") for i in range(20)]
    learned = []

    class Study:
        practice, held_out, domain, outer, edits = "practice", "held out", "domain", "outer", 5

        def loop(self, run, base, *, rounds, seed, control):
            arms = {"own_untrained": [], **({control: []} if control else {}), "seal_round_1": []}
            candidates = tuple(PuzzleTrial(edit, None) for edit in edits)
            return Loop(seed, (Round(1, candidates, (0.0,) * 20, tuple(str(i) for i in range(10))),), arms)

    def imitate(run, policy, kept, units, domain, outer, *, name, seed):
        learned.append((policy, name, [e.text for e in kept], [e.unit_id for e in kept], (units, domain, outer)))
        return Update(name, tuple(kept), 0.0)

    def evaluate(run, policy, units, domain, outer, *, arm, seed, group, samples):
        assert (units, domain, outer, group, samples) == ("held out", "domain", "outer", "seed_3/", 5)
        return [policy]

    monkeypatch.setattr(kinds, "imitate", imitate)
    monkeypatch.setattr(kinds, "evaluate", evaluate)
    done = kinds.loop(None, "opening", Study(), rounds=1, seed=3, random_control=random_control)
    assert ("random_config_sft" in done.evaluated) == random_control
    ((policy, name, texts, puzzles, rest),) = learned
    assert rest == ("practice", "domain", "outer")
    assert (policy, name, done.evaluated["dealt_config_sft"]) == ("opening", "seed_3/dealt_config_sft", [name])
    assert texts == [f"text {i}" for i in range(10)] and puzzles != [e.unit_id for e in edits[:10]]


def test_sentences_say_who_reads(results) -> None:
    told = reading.by_kind(results)
    assert "SEAL, round 1 reads the puzzle" in told and "untrained self-edits is not seen to read" in told


def test_dealt_self_edits_are_the_same_ones_and_the_same_puzzles() -> None:
    edits = [SelfEdit(str(i), f"task {i % 7}", f"text {i}", "w") for i in range(40)]
    dealt = kinds.dealt(edits, 0)
    assert [e.text for e in dealt] == [e.text for e in edits]
    assert sorted(e.unit_id for e in dealt) == sorted(e.unit_id for e in edits)
    assert sum(a.unit_id == b.unit_id for a, b in zip(dealt, edits, strict=True)) < 20


def test_figures_show_each_share_and_each_success(results) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4)
    kind_plots.ways_by_kind(results, axes[:3])
    kind_plots.success_by_kind(results, axes[3])
    whole = {p.get_gid(): p.get_width() for p in axes[1].patches}  # around black cells
    assert whole["seal_round_1:turned"] == pytest.approx(1) and whole["seal_round_1:plain"] == pytest.approx(0)
    heights = sorted(p.get_height() for p in axes[3].patches if p.get_gid() == "value:own_untrained")
    assert heights == pytest.approx([1 / 3] * 4)
    plt.close(figure)
