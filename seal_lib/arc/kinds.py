"""Tests whether a policy reads the puzzle before it writes a configuration: ReST^EM on three kinds of puzzle.

The kinds (`seal_lib.arc.mixed_world`) need different training data; the reference is one configuration for all of them.
A configuration follows one of three `WAYS`, by how its augmentations alter the copies; learning rate, epochs and loss
are the same for all. A policy that only knows which way succeeds most often cannot beat that way applied to every
puzzle; to do better it has to read. This module runs the arms and makes their rows of ``results.csv``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress, count, islice, product
from operator import methodcaller

from seal_lib.arc import mixed_world
from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.domain import Attempt
from seal_lib.arc.experiment import FewShot
from seal_lib.arc.self_edits import Config
from seal_lib.arc.tables import ByLoop, by_arm, rate
from seal_lib.loops.domain import Candidate
from seal_lib.loops.inner import score_candidates
from seal_lib.loops.outer import Loop, evaluate
from seal_lib.loops.policy import Policy
from seal_lib.loops.updates import imitate
from seal_lib.records import SelfEdit, values_of
from seal_lib.report import stats
from seal_lib.report.arms import difference_arm
from seal_lib.runs.work import Recorder
from seal_lib.seeds import rng

EXPERIMENT = "arc/kinds"
#: how a configuration alters its copies → the simplest switches that do so (at this size, the chain switch only
#: recolours, because its own copies are too long)
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "recoloured": ("use_chain_augmentations",),
    "turned": ("use_basic_augmentations",),
}


def way(config: Config) -> str:
    """Return which of `WAYS` a configuration follows: the basic switch turns and recolours, others only recolour."""
    if "use_basic_augmentations" in config.switches:
        return "turned"
    return "recoloured" if config.switches else "plain"


def blind_configuration(by_hand: Config, *seed: object) -> Config:
    """Return a configuration of a random way with random switches that give this way; the rest is as in ``by_hand``."""
    draws = rng(*seed)
    wanted = draws.choice(list(WAYS))
    every = [replace(by_hand, switches=tuple(compress(SWITCHES, on))) for on in product((0, 1), repeat=len(SWITCHES))]
    return draws.choice([config for config in every if way(config) == wanted])


def opening_policy(run: Recorder, base: Policy, study: FewShot, by_hand: Config, documents: int, lr: float) -> Policy:
    """Return the untrained policy: ``base`` finetuned once on puzzles of seen rules with blindly drawn configurations.

    All ways are equally frequent, so that none is too rare to be rewarded. The draw ignores the puzzle, so the data
    hold nothing about which configuration suits which kind.
    """
    seen = (task for seed in count() for task in mixed_world.tasks("mixed-seen", 12, seed))
    pairs = []
    for number, task in enumerate(islice(seen, documents)):
        text = blind_configuration(by_hand, "opening policy", number).text()
        pairs.append(study.domain.target(task, text, base))
    policy, _ = base.finetuned(run, pairs, replace(study.outer, sft_epochs=1, sft_lr=lr), name="opening", seed=0)
    return policy


def loop(run: Recorder, opening: Policy, study: FewShot, *, rounds: int, seed: int, random_control: bool) -> Loop:
    """Run one whole loop with its controls, and return it.

    The control ``dealt_config_sft``, which always runs, is trained on the kept self-edits of the last round dealt to
    other puzzles: it learns which configurations succeed, but not where. If ``random_control`` is set,
    ``random_config_sft`` is trained on as many blindly chosen self-edits of the first round.
    """
    done = study.loop(run, opening, rounds=rounds, seed=seed, control="random_config_sft" if random_control else "")
    last = done.rounds[-1]
    kept = dealt([trial.edit for trial in last.candidates if trial.id in set(last.kept)], seed)
    name, group = "dealt_config_sft", f"seed_{seed}/"
    domain, outer = study.domain, study.outer
    policy = imitate(run, opening, kept, study.practice, domain, outer, name=group + name, seed=seed).policy
    how = {"arm": name, "seed": seed, "group": group, "samples": study.edits}
    evaluated = evaluate(run, policy, study.held_out, domain, outer, **how)
    return replace(done, evaluated={**done.evaluated, name: evaluated})


def dealt(edits: Sequence[SelfEdit], seed: int) -> list[SelfEdit]:
    """Return the same self-edits, matched at random with the same puzzles, each as often as before."""
    puzzles = [edit.unit_id for edit in edits]
    rng("dealt", seed).shuffle(puzzles)
    return [replace(edit, unit_id=puzzle) for edit, puzzle in zip(edits, puzzles, strict=True)]


def try_ways(run: Recorder, policy: Policy, study: FewShot, by_hand: Config) -> dict[str, dict[str, list[Attempt]]]:
    """Try every way once on each task; return ``practice`` and ``held_out`` → way → attempts."""
    found = {}
    for name, tasks in (("practice", study.practice), ("held_out", study.held_out)):
        candidates = [
            Candidate(f"{task.id}/{way}", task, replace(by_hand, switches=switches), way, seed=0)
            for way, switches in WAYS.items()
            for task in tasks
        ]
        attempts = score_candidates(run, policy, candidates, study.domain, phase=f"ways/{name}")
        found[name] = {way: [a for a in attempts if a.id.endswith(f"/{way}")] for way in WAYS}
    return found


def best_ways(practice: Mapping[str, Sequence[Attempt]], grader: str) -> dict[str, str]:
    """Return kind → the way that succeeds most often on its *practice* tasks (of equals the first); ``all``: on all."""
    choice = {}
    for kind in ("all", *mixed_world.RULE_KINDS):
        found = {name: rate(of_kind({0: tried}, kind), lambda a: a.graded(grader)) for name, tried in practice.items()}
        choice[kind] = max(found, key=lambda name: found[name].value)
    return choice


def fixed_arms(ways: Mapping[str, Mapping[str, Sequence[Attempt]]], grader: str) -> dict[str, list[Attempt]]:
    """Return the attempts of two arms, chosen on practice tasks: one configuration for all, and one for each kind."""
    best = best_ways(ways["practice"], grader)
    tried = ways["held_out"]
    known = [a for kind in mixed_world.RULE_KINDS for a in tried[best[kind]] if mixed_world.kind_of(a.unit_id) == kind]
    return {"one_for_all": list(tried[best["all"]]), "kind_known": known}


def of_kind(attempts: ByLoop, kind: str) -> dict[object, list[Attempt]]:
    """Return loop → the attempts on tasks of one kind, or of every kind if ``kind`` is ``all``."""
    return {
        loop: [a for a in several if kind in ("all", mixed_world.kind_of(a.unit_id))]
        for loop, several in attempts.items()
    }


# ----------------------------------------------------------------------------------------------- results.csv


def kind_rows(
    ways: Mapping[str, Mapping[str, Sequence[Attempt]]],
    icl: Sequence[Attempt],
    loops: Sequence[Loop],
    *,
    grader: str,
    **label: str,
) -> list[dict]:
    """Return the rows of ``arc/kinds`` and ``arc/kinds/<kind>``: success, what is written, and how it suits the puzzle.

    ``label`` is protocol and model.
    """
    arms, written = by_arm({"icl": icl, **fixed_arms(ways, grader)}, loops), by_arm({}, loops)
    rows = []
    for kind in ("all", *mixed_world.RULE_KINDS):
        where = EXPERIMENT if kind == "all" else f"{EXPERIMENT}/{kind}"
        for arm, attempts in arms.items():
            found = rate(of_kind(attempts, kind), lambda a: a.graded(grader))
            rows.append(found.row(where, arm, "success_rate", grader=grader, **label))
        for arm, attempts in written.items():
            for name in (*WAYS, "rejected"):
                found = rate(of_kind(attempts, kind), lambda a, name=name: float(_written(a) == name))
                rows.append(found.row(where, arm, f"share:{name}", **label))
        for population, tried in ways.items():
            for name, attempts in tried.items():
                found = rate(of_kind({0: attempts}, kind), lambda a: a.graded(grader))
                rows.append(found.row(where, name, f"success_rate:{population}", grader=grader, **label))
    graded = {arm: values_of(attempts, methodcaller("graded", grader)) for arm, attempts in arms.items()}
    for (a, b), found in stats.compare(graded, comparisons(len(loops[0].rounds)), unit="task").items():
        rows.append(found.row(EXPERIMENT, difference_arm(a, b), "difference", grader=grader, **label))
    best = best_ways(ways["practice"], grader)
    for arm, attempts in written.items():
        fit, expected = _fit_shares(attempts, best)
        rows.append(rate(attempts, lambda a: _fit(a, best)).row(EXPERIMENT, arm, "suits", **label))
        (found,) = stats.compare({"fit": fit, "dealt": expected}, [("fit", "dealt")], unit="task").values()
        rows.append(found.row(EXPERIMENT, arm, "reading", **label))
    return rows


def comparisons(rounds: int) -> list[tuple[str, str]]:
    """Return the paired differences to report, as pairs of arms."""
    last = f"seal_round_{rounds}"
    pairs = [(last, "own_untrained"), (last, "one_for_all"), (last, "random_config_sft"), (last, "dealt_config_sft")]
    pairs += [(last, "kind_known"), ("random_config_sft", "own_untrained"), ("dealt_config_sft", "own_untrained")]
    return pairs + [("kind_known", "one_for_all")]


def _fit_shares(attempts: ByLoop, best: Mapping[str, str]) -> tuple[dict, dict]:
    """Return how often self-edits suit the kind of their puzzle, and how often they would if dealt at random.

    Both are loop → task → shares; a self-edit suits if it follows the way in ``best`` for the kind. The difference is
    what the policy gains by reading.
    """
    fit = values_of(attempts, lambda a: _fit(a, best))
    dealt_ = {}
    for loop, several in attempts.items():
        share = {name: sum(_written(a) == name for a in several) / len(several) for name in WAYS}
        dealt_[loop] = {task: [share[best[mixed_world.kind_of(task)]]] for task in fit[loop]}
    return fit, dealt_


def _fit(attempt: Attempt, best: Mapping[str, str]) -> float:
    return float(_written(attempt) == best[mixed_world.kind_of(attempt.unit_id)])


def _written(attempt: Attempt) -> str:
    return "rejected" if attempt.config is None else way(attempt.config)
