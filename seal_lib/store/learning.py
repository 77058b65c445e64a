"""Learn a document passage by passage, and keep what was learned in a store.

For each passage: review its text; take its questions, or let the model write some; ask them before learning and with
the passage in view; let the policy write several self-edits; train an adapter on each through the inner loop; ask
again; review the best self-edit, and keep it. The loops do all training, asking and grading (`seal_lib.loops.inner`).
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from seal_lib import models
from seal_lib.errors import ParameterError
from seal_lib.generation.contract import Sampling
from seal_lib.grading import graders
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.prompts import Prompts
from seal_lib.loops.domain import Candidate, Rejected
from seal_lib.loops.inner import ask, train, try_all
from seal_lib.loops.outer import write_self_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.rewards import FILTERS
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Answer, Passage, PassageTrial, Question, SelfEdit, to_dict
from seal_lib.runs.lifecycle import Scratch
from seal_lib.runs.work import Count, Recorder, uncounted
from seal_lib.seeds import derive_seed
from seal_lib.store.database import Store
from seal_lib.store.questions import write
from seal_lib.store.review import KINDS, Finding, Lines, lines_of, of_edit, of_text, stopped
from seal_lib.store.schema import ARMS, STAGES, Asked, Edit
from seal_lib.store.texts import Document
from seal_lib.training.jobs import Result

if TYPE_CHECKING:
    from seal_lib.training.adapters import Adapter


@dataclass(frozen=True)
class OwnQuestions:
    """Settings of questions that the model writes itself: ``samples`` texts per passage by this prompt set; 0: none."""

    prompts: Prompts
    samples: int


@dataclass(frozen=True)
class Consent:
    """Rules for what may be learned.

    ``allow``: kinds of findings (`seal_lib.store.review.KINDS`) that stop nothing.
    ``approve``: called with every self-edit and its findings before it is trained on; None: nobody is asked.
    ``held``: number of the update whose guard decides if an edit becomes active; 0: its questions alone decide.
    """

    allow: tuple[str, ...] = ()
    approve: Callable[[Passage, SelfEdit, Sequence[Finding]], bool] | None = None
    held: int = 0

    def __post_init__(self):
        unknown = next((kind for kind in self.allow if kind not in KINDS), None)
        if unknown is not None:
            raise ParameterError(f"allow: {unknown!r} is not one of {', '.join(KINDS)}.")


@dataclass(frozen=True)
class Part:
    """A passage with the name of its document and its place there."""

    passage: Passage
    document: str
    place: str

    @property
    def id(self) -> str:
        return self.passage.id


def parts(document: Document) -> list[Part]:
    """Return the passages of a document with their places."""
    pairs = zip(document.passages, document.places, strict=True)
    return [Part(passage, document.name, place) for passage, place in pairs]


def learn(
    run: Recorder,
    store: Store,
    policy: Policy,
    document: Document,
    domain: Knowledge,
    outer: OuterLoop,
    own: OwnQuestions,
    *,
    consent: Consent | None = None,
    seed: int = 0,
) -> list[Edit]:
    """Learn a document: one edit per passage, in the document's order, each kept in the store as soon as it is made.

    A passage that was learned on the same base with the same settings and questions is not learned again, so a killed
    call resumes where it stopped. ``run`` records the numbers of the edits.

    Raises:
        DataError: the policy does not say where its weights come from; the store cannot be written.
    """
    assert policy.base  # before anything is written
    store.add(document)
    unit = partial(
        learn_parts,
        store=store,
        policy=policy,
        domain=domain,
        outer=outer,
        own=own,
        consent=consent or Consent(),
        seed=seed,
        count=run.count,
    )
    phase = f"learn/{document.digest[:12]}"
    rows = run.map(phase, parts(document), unit, chunk=together(domain, outer))
    return [store.edit(row["edit"]) for row in rows]


def together(domain: Knowledge, outer: OuterLoop) -> int:
    """Return the number of passages to learn side by side, so that their self-edits fill the adapter bank."""
    return max(1, (domain.inner.slots or 32) // outer.samples)


def learn_parts(
    part: Sequence[Part],
    *,
    store: Store,
    policy: Policy,
    domain: Knowledge,
    outer: OuterLoop,
    own: OwnQuestions,
    consent: Consent,
    seed: int,
    count: Count = uncounted,
) -> list[dict]:
    """Return a row with the number of each passage's edit, existing or new; the store must have the passages."""
    weights = models.weight_hash(policy.base.name, policy.base.revision)
    recipes = {p.passage.id: _recipe(p.passage, domain, outer, own, consent, seed) for p in part}
    known = {
        edit.passage.id: edit.id
        for p in part
        for edit in store.edits("active", "merged", "quarantined", passage=p.passage.id)
        if edit.weights == weights and edit.recipe == recipes[edit.passage.id]
    }
    todo = [p for p in part if p.passage.id not in known]
    found = {p.passage.id: reviewed(p.passage) for p in todo}
    clean = [p.passage for p in todo if not stopped(found[p.passage.id], consent.allow)]
    begun, costs = time.perf_counter(), _Counting()
    drafts = {}
    if clean:
        several = _try(policy, clean, domain, outer, own, consent, seed, costs)
        drafts = dict(zip([passage.id for passage in clean], several, strict=True))
        count(**costs.counts)
    shared: dict[str, float] = {key: round(n / len(clean)) for key, n in costs.counts.items()}
    shared["seconds"] = round((time.perf_counter() - begun) / max(1, len(clean)), 3)
    earlier = store.lines(weights) if drafts else Lines()
    for p in todo:
        passage, cost = p.passage, shared
        if passage.id in drafts:
            draft = _reviewed(drafts[passage.id], passage, earlier, consent)
        else:
            why = stopped(found[passage.id], consent.allow)
            draft, cost = _Draft(None, None, (), {"tried": 0}, "quarantined", f"not learned: {why}"), {"seconds": 0.0}
        edit = Edit(
            passage,
            p.document,
            p.place,
            draft.edit,
            policy.base.name,
            weights,
            policy.base.dtype,
            recipes[passage.id],
            {**draft.counts, "cost": cost},
            draft.questions,
            draft.state,
            draft.reason,
            findings=(*found[passage.id], *draft.findings),
        )
        known[passage.id] = store.keep(edit, draft.adapter).id
        if draft.state == "active" and passage.id in earlier.passages:
            earlier = store.lines(weights)  # it replaced an edit of its passage
        elif draft.state == "active":
            earlier.add(lines_of(draft.edit), passage.id)
    return [{"edit": known[p.passage.id]} for p in part]


def reviewed(passage: Passage) -> list[Finding]:
    """Return the findings in a passage itself."""
    return of_text(f"{passage.title}\n\n{passage.text}")


def known_before(
    policy: Policy,
    passages: Sequence[Passage],
    domain: Knowledge,
    outer: OuterLoop,
    own: OwnQuestions,
    *,
    seed: int = 0,
    count: Count = uncounted,
) -> list[float]:
    """Return the share of each passage's questions (given and the model's own) that are right without the passage,
    before learning; NaN without any. The questions are those that `learn` asks with the same seed."""
    asked = _asked(policy, passages, domain, outer, own, seed, count)
    units = [_answered(passage, asked[passage.id]) for passage in passages]
    plain = [Candidate(f"{unit.id}/before", unit, None, ARMS["before"], 0, trains=False) for unit in units]
    trials = try_all(policy, plain, count, domain=domain)
    return [
        accuracy(_with(asked[unit.id], "before", trial.answers), "before", domain.grader)
        for unit, trial in zip(units, trials, strict=True)
    ]


def _recipe(
    passage: Passage, domain: Knowledge, outer: OuterLoop, own: OwnQuestions, consent: Consent, seed: int
) -> dict[str, Any]:
    """Return all that decides what is learned from a passage on a given base, as JSON holds it."""
    settings = {
        "inner": domain.inner,
        "prompts": domain.prompts,
        "grader": domain.grader,
        "seed": seed,
        "outer": {key: getattr(outer, key) for key in ("samples", "temperature", "top_p", "edit_tokens", "filter")},
        "questions": passage.questions,
        "own": own,
        "allow": sorted(consent.allow),
    }
    return to_dict(settings)


def _reviewed(draft: "_Draft", passage: Passage, earlier: Lines, consent: Consent) -> "_Draft":
    """Return the draft with its self-edit's findings; quarantined if they stop it or an update's guard must decide."""
    if draft.edit is None:
        return draft
    found = (*of_text(draft.edit.text), *of_edit(lines_of(draft.edit), passage, earlier))
    why = stopped(found, consent.allow)
    if why:
        return replace(draft, findings=found, state="quarantined", reason=f"its self-edit: {why}")
    if consent.held and draft.state == "active":
        return replace(draft, findings=found, state="quarantined", reason=waiting(consent.held))
    return replace(draft, findings=found)


def waiting(number: int) -> str:
    """Return the reason of an edit that an update's guard has not judged yet."""
    return f"waits for the guard of update {number}"


# ---------------------------------------------------------------------------------------------- one passage


class _Counting(Scratch):
    """A run that keeps no rows, and counts tokens generated and trained and questions asked."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, **more: float) -> None:
        self.counts.update(more)


@dataclass(frozen=True)
class _Draft:
    """The result for a passage before it is kept: the chosen self-edit and adapter, and how they did."""

    edit: SelfEdit | None
    adapter: Any
    questions: tuple[Asked, ...]
    counts: dict[str, Any]
    state: str
    reason: str
    findings: tuple[Finding, ...] = ()


def _try(
    policy: Policy,
    passages: Sequence[Passage],
    domain: Knowledge,
    outer: OuterLoop,
    own: OwnQuestions,
    consent: Consent,
    seed: int,
    run: "_Counting",
) -> list[_Draft]:
    """Learn passages side by side, and return a draft for each."""
    asked = _asked(policy, passages, domain, outer, own, seed, run.count)
    units = [_answered(passage, asked[passage.id]) for passage in passages]
    plain = [Candidate(f"{unit.id}/before", unit, None, ARMS["before"], 0, trains=False) for unit in units]
    before = try_all(policy, plain, run.count, domain=domain)
    edits = write_self_edits(run, policy, units, domain, outer, phase="write", seed=seed)
    known = {unit.id: unit for unit in units}
    if consent.approve is not None:
        edits = [e for e in edits if consent.approve(known[e.unit_id], e, _shown(known[e.unit_id], e))]
    read = [domain.read(known[edit.unit_id], edit, "own_untrained", seed) for edit in edits]
    candidates = [c for c in read if isinstance(c, Candidate)]
    results = dict(zip([c.id for c in candidates], train(policy, candidates, domain, run.count), strict=True))
    trials = {t.id: t for t in ask(policy, candidates, results, run.count, domain=domain)}
    drafts = []
    for unit, frozen in zip(units, before, strict=True):
        mine = [trials[c.id] for c in candidates if c.unit.id == unit.id]
        questions = _with(asked[unit.id], "before", frozen.answers)
        drafts.append(_chosen(questions, mine, results, outer, derive_seed(seed, unit.id)))
    return drafts


def _shown(passage: Passage, edit: SelfEdit) -> list[Finding]:
    """Return the findings in a self-edit before it is trained on."""
    return [*of_text(edit.text), *of_edit(lines_of(edit), passage)]


def _answered(passage: Passage, asked: Sequence[Asked]) -> Passage:
    """Return the passage with these questions and the gold answers that they have now."""
    given = {question.question: question for question in passage.questions}
    questions = [replace(given.get(q.question, Question(q.question, "")), answer=q.gold) for q in asked]
    return replace(passage, questions=tuple(questions))


def _asked(
    policy: Policy,
    passages: Sequence[Passage],
    domain: Knowledge,
    outer: OuterLoop,
    own: OwnQuestions,
    seed: int,
    count: Any,
) -> dict[str, list[Asked]]:
    """Return passage id → its questions, each with a gold answer and the answer with the passage in view.

    The model's own questions are kept if it gave their answers again.
    """
    written: dict[str, list[Question]] = {}
    if own.samples:
        sampling = Sampling(outer.edit_tokens, outer.temperature, outer.top_p, own.samples, skip_long=True)
        written = write(policy, passages, own.prompts, sampling, seed, count)
    units = []
    for p in passages:
        known = {graders.normalise(q.question) for q in p.questions}
        new = [q for q in written.get(p.id, ()) if graders.normalise(q.question) not in known]
        units.append(replace(p, questions=(*p.questions, *new)))
    shown = [Candidate(f"{u.id}/in_view", u, None, ARMS["in_view"], 0, trains=False, shown=True) for u in units]
    found = {}
    for passage, trial in zip(passages, try_all(policy, shown, count, domain=domain), strict=True):
        given, again = trial.answers[: len(passage.questions)], trial.answers[len(passage.questions) :]
        kept = [Asked(a.question, a.gold, "own", a, a) for a in again if a.grades[domain.grader] == 1.0]
        found[passage.id] = [*map(_of_person, given), *kept]
    return found


def _of_person(answer: Answer) -> Asked:
    """Return a given question; if it has no gold answer, the model's answer with the passage in view serves as one."""
    if answer.gold:
        return Asked(answer.question, answer.gold, "given", answer, answer)
    ungraded = replace(answer, gold=answer.text, grades=dict.fromkeys(answer.grades, math.nan))
    return Asked(answer.question, answer.text, "in_view", ungraded, ungraded)


def _with(questions: Sequence[Asked], stage: str, answers: Sequence[Answer]) -> list[Asked]:
    """Return the questions with their answers at a stage, None if there are none; without gold there is no grade."""
    told: list[Answer | None] = [*answers] if answers else [None] * len(questions)
    for i, (question, answer) in enumerate(zip(questions, told, strict=True)):
        if answer is not None and graders.is_blank(question.gold):
            told[i] = replace(answer, grades=dict.fromkeys(answer.grades, math.nan))
    changes: list[dict[str, Any]] = [{stage: answer} for answer in told]
    return [replace(question, **change) for question, change in zip(questions, changes, strict=True)]


def accuracy(questions: Sequence[Asked], stage: str, grader: str) -> float:
    """Return the mean grade at a stage over the questions that have one; NaN without any."""
    grades = grades_of(questions, stage, grader)
    return fmean(grades) if grades else math.nan


def grades_of(questions: Sequence[Asked], stage: str, grader: str) -> list[float]:
    """Return the grades at a stage, without the questions that have none."""
    answers = [answer for question in questions if (answer := question.at(stage)) is not None]
    return [grade for answer in answers if not math.isnan(grade := answer.grades[grader])]


def _verdict(questions: Sequence[Asked], grader: str) -> tuple[str, str]:
    """Return (state of an edit, why) by its questions: it is active only if more are right after than before."""
    was, now = (accuracy(questions, stage, grader) for stage in ("before", "after"))
    if math.isnan(now) or math.isnan(was):
        return "quarantined", "there is no question to measure it by; give one with --question"
    if now > was:
        return "active", ""
    return "quarantined", f"{now:.0%} of its questions right after it, {was:.0%} before it"


def measure(
    policy: Policy,
    passage: Passage,
    adapter: "Adapter",
    texts: Sequence[str],
    domain: Knowledge,
    document: str,
    place: str,
    weights: str,
) -> Edit:
    """Return the edit of an adapter that was trained elsewhere on ``texts``, judged by the passage's questions."""
    run, begun = _Counting(), time.perf_counter()
    stages = [
        Candidate("before", passage, None, ARMS["before"], 0, trains=False),
        Candidate("in_view", passage, None, ARMS["in_view"], 0, trains=False, shown=True),
        Candidate("after", passage, None, ARMS["after"], 0),
    ]
    trials = ask(policy, stages, {"after": Result("after", adapter, [], 0, 0)}, run.count, domain=domain)
    by_stage = {stage.id: trial.answers for stage, trial in zip(stages, trials, strict=True)}
    asked = [
        Asked(before.question, before.gold, "given", before, in_view, after)
        for before, in_view, after in zip(*(by_stage[stage] for stage in STAGES), strict=True)
    ]
    written = SelfEdit(f"{passage.id}/imported", passage.id, "\n".join(texts), "imported") if texts else None
    counts: dict[str, Any] = {"tried": 1, "steps": 0, "tokens": 0, "first_loss": None, "last_loss": None}
    counts["cost"] = {**run.counts, "seconds": round(time.perf_counter() - begun, 3)}
    recipe = {"imported": True, "grader": domain.grader}
    return Edit(
        passage,
        document,
        place,
        written,
        policy.base.name,
        weights,
        policy.base.dtype,
        recipe,
        counts,
        tuple(asked),
        *_verdict(asked, domain.grader),
    )


def _chosen(
    questions: Sequence[Asked],
    trials: Sequence[PassageTrial],
    results: dict[str, Result | Rejected],
    outer: OuterLoop,
    seed: int,
) -> _Draft:
    """Return the draft of the self-edit after which most questions are right; active only if more than before."""
    counts: dict[str, Any] = {"tried": len(trials), "outcomes": dict(Counter(trial.outcome for trial in trials))}
    trained = [
        (trial, result)
        for trial in trials
        if isinstance(result := results[trial.id], Result) and result.adapter is not None
    ]
    if not trained:
        return _Draft(None, None, tuple(questions), counts, "quarantined", "no self-edit could be trained on")
    answered = [_with(questions, "after", trial.answers) for trial, _ in trained]
    grader = trained[0][0].grader
    rewards = [accuracy(several, "after", grader) for several in answered]
    best = (FILTERS[outer.filter](rewards, seed, outer.threshold) or [0])[0]
    (trial, result), after = trained[best], answered[best]
    counts |= {"rewards": rewards, **result.summary()}
    return _Draft(trial.edit, result.adapter, tuple(after), counts, *_verdict(after, grader))
