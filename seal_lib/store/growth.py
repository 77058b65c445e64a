"""A growing store, asked the same questions through its weights, by reading, by both, as measured, and merged.

Half of a passage's questions select among its self-edits; the other half, in other words, is asked here.
"""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any

from seal_lib.grading import graders
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.evaluate import difference_rows
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Passage, PassageTrial, Question
from seal_lib.report import stats
from seal_lib.runs.work import Recorder, once
from seal_lib.store import guard, merging
from seal_lib.store.asking import ask
from seal_lib.store.database import Store
from seal_lib.store.learning import OwnQuestions, learn
from seal_lib.store.routing import ROUTES
from seal_lib.store.search import Search
from seal_lib.store.texts import Document

EXPERIMENT = "own_documents/growing"
FROZEN = "frozen"  # the model as it is: nothing learned, nothing read
PRIOR = "prior"  # id of what is asked about prior knowledge, beside the passages
MERGED, BEST = "store_merged", "store_best"


def arm_of(way: str, retrieval: str = "words") -> str:
    """Return the arm of a route (`seal_lib.store.routing.ROUTES`) with passages found by ``retrieval``."""
    return f"store_{way}" if retrieval == "words" else f"store_{way}_{retrieval}"


def routes(search: Search | None = None) -> dict[str, tuple[str, Search]]:
    """Return arm → (route, how passages are found): every route by words; those that depend most on what is found also
    by ``search``."""
    found = {arm_of(way): (way, Search()) for way in ROUTES}
    if search:
        found |= {arm_of(way, search.retrieval): (way, search) for way in ("measured", "retrieval")}
    return found


@dataclass(frozen=True)
class Grown:
    """The answers of a store of ``size`` passages.

    ``trials``: arm → trials; ``prior``: arm → question → grade of the questions about prior knowledge; ``tokens``: arm
    → passage → mean tokens of a prompt; ``seconds``: arm → seconds per question; ``in_use``: number of active edits.
    """

    size: int
    trials: dict[str, list[PassageTrial]]
    prior: dict[str, dict[str, float]]
    tokens: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    in_use: int = 0


def halves(passages: Sequence[Passage]) -> tuple[list[Passage], list[Passage]]:
    """Return the passages with the questions that select and with those that are asked; each half words every fact."""
    first = [replace(p, questions=p.questions[0::2]) for p in passages]
    return first, [replace(p, questions=p.questions[1::2]) for p in passages]


def grow(
    run: Recorder,
    store: Store,
    policy: Policy,
    domain: Knowledge,
    outer: OuterLoop,
    passages: Sequence[Passage],
    sizes: Sequence[int],
    prior: Sequence[Question],
    *,
    merge_most: int,
    search: Search | None = None,
    seed: int = 0,
) -> list[Grown]:
    """Grow the store to each size, the smallest first: learn up to it, then ask.

    Args:
        prior: questions about what the model knew before, asked of the store like any other.
        search: also find passages this way, in addition to words.
        merge_most: also ask all adapters as one, while there are at most so many.
    """
    choosing, asking = halves(passages)
    asked = partial(_asked, run, store, policy, domain)
    before = Passage(PRIOR, "", "", tuple(prior))
    grown = [asked(0, [before], {FROZEN: ("retrieval", Search())}, 0)]
    learned = 0
    for size in sorted(sizes):
        part = choosing[learned:size]
        names = tuple(f"passage {number}" for number in range(learned + 1, size + 1))
        digest = hashlib.sha256(" ".join(p.id for p in part).encode()).hexdigest()
        document = Document(f"passages {learned + 1}–{size}", f"made:{learned}", digest, tuple(part), names)
        learn(run, store, policy, document, domain, outer, OwnQuestions(domain.prompts, 0), seed=seed)
        grown.append(asked(size, [*asking[:size], before], routes(search), merge_most))
        learned = size
    return grown


def _asked(
    run: Recorder,
    store: Store,
    policy: Policy,
    domain: Knowledge,
    size: int,
    units: Sequence[Passage],
    by_arm: Mapping[str, tuple[str, Search]],
    merge_most: int,
) -> Grown:
    """Ask the questions of the passages, and those about prior knowledge (the last unit), through each arm."""
    # recorded, because a continued run finds more in the store
    recorded = once(run, f"{size:04d}/in_use", lambda: {"in_use": len(store.edits("active"))})
    found = Grown(size, {}, {}, in_use=recorded["in_use"])
    texts = [q.question for unit in units for q in unit.questions]
    for arm, (route, search) in by_arm.items():
        begun = time.perf_counter()
        phase = f"{size:04d}/{arm}"
        replies = ask(run, store, policy, texts, domain, route=route, search=search, compare=False, phase=phase)
        took = time.perf_counter() - begun
        spent = once(run, f"{phase}/seconds", partial(dict, seconds=took))
        found.seconds[arm] = spent["seconds"] / max(1, len(texts))
        _graded(found, arm, units, {reply.question: reply.answer for reply in replies}, domain.grader)
        tokens = {reply.question: float(reply.tokens[reply.used]) for reply in replies}
        prompts = {u.id: [tokens[q.question] for q in u.questions if q.question in tokens] for u in units[:-1]}
        found.tokens[arm] = {name: fmean(known) for name, known in prompts.items() if known}
    if len(units) > 1 and 2 <= found.in_use <= merge_most:
        row = once(run, f"{size:04d}/merged", partial(_merged, store, policy, domain, units))
        _graded(found, MERGED, units, row["answers"], domain.grader)
    return found


def _merged(store: Store, policy: Policy, domain: Knowledge, units: Sequence[Passage]) -> dict[str, Any]:
    """Return the answers of all active adapters joined into one, each question under its passage's title."""
    asked = {unit.id for unit in units}
    adapter = merging.joined_adapter(store, [edit for edit in store.edits("active") if edit.passage.id in asked])
    answers = guard.answers_of(policy, domain, units, adapter)
    return {"answers": {answer.question: answer.text for several in answers for answer in several}}


def _graded(found: Grown, arm: str, units: Sequence[Passage], answers: Mapping[str, str], grader: str) -> None:
    """Add an arm's answers to ``found``, as trials of the passages that the questions are about."""
    for unit in units:
        pairs = [(q, answers[q.question]) for q in unit.questions if q.question in answers]
        graded = tuple(graders.grade(pairs, grader)) if pairs else ()
        if graded and unit.id == PRIOR:
            found.prior[arm] = {answer.question: answer.grades[grader] for answer in graded}
        elif graded:
            trial = PassageTrial(unit.id, unit.id, arm, None, 0, graded, grader)
            found.trials.setdefault(arm, []).append(trial)


def with_best(grown: Sequence[Grown]) -> list[Grown]:
    """Add the arm of a router that always chooses right: a question is right if any single route answers it."""
    done = []
    for one in grown:
        ways = [arm_of(way) for way in ("weights", "retrieval", "both") if arm_of(way) in one.trials]
        best = []
        for several in zip(*(one.trials[arm] for arm in ways), strict=True) if ways else ():
            grader, same = several[0].grader, zip(*(trial.answers for trial in several), strict=True)
            answers = tuple(max(answers, key=lambda answer: answer.grades[grader]) for answers in same)
            best.append(replace(several[0], arm=BEST, answers=answers))
        done.append(replace(one, trials=one.trials | ({BEST: best} if best else {})))
    return done


def rows(grown: Sequence[Grown], *, protocol: str, model: str, grader: str) -> list[dict]:
    """Return the rows of ``results.csv``: right answers, prior questions, prompt tokens by size; differences at the
    end."""
    label = {"protocol": protocol, "model": model}
    found = []
    for one in grown:
        right = {arm: {t.unit_id: t.accuracy for t in trials} for arm, trials in one.trials.items()}
        for metric, by_arm, bounds, unit in (
            ("right", right, stats.SHARE, "passage"),
            ("kept", one.prior, stats.SHARE, "question"),
            ("prompt_tokens", one.tokens, stats.ANY, "passage"),
        ):
            graded = {} if metric == "prompt_tokens" else {"grader": grader}
            for arm, values in by_arm.items():
                if values:
                    estimate = stats.mean_over_units(values, bounds, unit)
                    found.append(estimate.row(EXPERIMENT, arm, f"{metric}_{one.size}", **graded, **label))
    largest = grown[-1] if grown else None
    if largest and largest.trials:
        measured = arm_of("measured")
        pairs = [(measured, arm_of(way)) for way in ("weights", "retrieval")] + [(arm_of("both"), arm_of("retrieval"))]
        pairs += [(arm, arm_of(way)) for arm in largest.trials for way in ROUTES if arm.startswith(f"{arm_of(way)}_")]
        found += difference_rows(EXPERIMENT, largest.trials, pairs, grader=grader, **label)
    return found


def table(grown: Sequence[Grown]) -> list[dict[str, Any]]:
    """Return one row per size and arm for display: shares right, prompt tokens, and seconds per question."""
    lines = []
    for one in grown:
        for arm in one.trials or one.prior:
            right = guard.share([t.accuracy for t in one.trials.get(arm, [])])
            prior = guard.share(list(one.prior.get(arm, {}).values()))
            tokens = guard.share(list(one.tokens.get(arm, {}).values()))
            lines.append(
                {
                    "passages": one.size,
                    "arm": arm,
                    "right": right,
                    "prior right": prior,
                    "prompt tokens": tokens,
                    "seconds": one.seconds.get(arm, math.nan),
                    "in use": one.in_use,
                }
            )
    return lines
