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

from seal_lib.errors import ParameterError
from seal_lib.generation.contract import Sampling
from seal_lib.grading import graders
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.prompts import Prompts
from seal_lib.loops.domain import Candidate, Rejected
from seal_lib.loops.inner import ask_candidates, train, try_all
from seal_lib.loops.outer import write_self_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.rewards import FILTERS
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Answer, Passage, PassageTrial, Question, SelfEdit, to_dict
from seal_lib.runs.lifecycle import Scratch
from seal_lib.runs.work import Count, Recorder, uncounted
from seal_lib.seeds import derive_seed
from seal_lib.store.database import Store, base_of
from seal_lib.store.questions import write
from seal_lib.store.review import FINDING_KINDS, Finding, Lines, lines_of, of_edit, of_text, stopped
from seal_lib.store.schema import STAGES, Asked, Edit, candidate
from seal_lib.store.texts import Document, Part
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

    ``allow``: kinds of findings (`seal_lib.store.review.FINDING_KINDS`) that stop nothing.
    ``approve``: called with every self-edit and its findings before it is trained on; None: nobody is asked.
    ``held``: number of the update whose guard decides if an edit becomes active; 0: its questions alone decide.
    """

    allow: tuple[str, ...] = ()
    approve: Callable[[Passage, SelfEdit, Sequence[Finding]], bool] | None = None
    held: int = 0

    def __post_init__(self):
        unknown = next((kind for kind in self.allow if kind not in FINDING_KINDS), None)
        if unknown is not None:
            raise ParameterError(f"allow: {unknown!r} is not one of {', '.join(FINDING_KINDS)}.")


@dataclass(frozen=True)
class Learner:
    """A model that learns for a store, with the settings of both loops, its own questions, and what it may learn."""

    policy: Policy
    domain: Knowledge
    outer: OuterLoop
    own: OwnQuestions
    consent: Consent = Consent()
    seed: int = 0

    @property
    def together(self) -> int:
        """The number of passages to learn side by side, so that their self-edits fill the adapter bank."""
        return max(1, (self.domain.inner.slots or 32) // self.outer.samples)

    def learn(self, run: Recorder, store: Store, document: Document) -> list[Edit]:
        """Learn a document, as the function `learn` does."""
        assert self.policy.base  # before anything is written
        store.add(document)
        unit = partial(self.learn_parts, store, count=run.count)
        rows = run.map(f"learn/{document.digest[:12]}", document.parts, unit, chunk=self.together)
        return [store.edit(row["edit"]) for row in rows]

    def learn_parts(self, store: Store, part: Sequence[Part], count: Count = uncounted) -> list[dict]:
        """Return a row with the number of each passage's edit, existing or new; the store must have the passages."""
        blanks = [_blank(self.policy, p, self._recipe(p.passage)) for p in part]
        known = {
            edit.passage.id: edit.id
            for one in blanks
            for edit in store.edits("active", "merged", "quarantined", passage=one.passage.id, weights=one.weights)
            if edit.recipe == one.recipe
        }
        todo = [replace(one, findings=findings_in(one.passage)) for one in blanks if one.passage.id not in known]
        stops = {edit.passage.id: stopped(edit.findings, self.consent.allow) for edit in todo}
        clean = [edit for edit in todo if not stops[edit.passage.id]]
        begun, costs = time.perf_counter(), _Counting()
        drafts = dict(zip([edit.passage.id for edit in clean], self._drafts(clean, costs), strict=True))
        count(**costs.counts)
        shared: dict[str, float] = {key: round(n / len(clean)) for key, n in costs.counts.items()}
        shared["seconds"] = round((time.perf_counter() - begun) / max(1, len(clean)), 3)
        earlier = store.lines(todo[0].weights) if drafts else Lines()
        for edit in todo:
            passage, adapter = edit.passage, None
            if why := stops[passage.id]:
                training = {"tried": 0, "cost": {"seconds": 0.0}}
                edit = replace(edit, training=training, state="quarantined", reason=f"not learned: {why}")
            else:
                edit, adapter = drafts[passage.id]
                edit = _reviewed(replace(edit, training={**edit.training, "cost": shared}), earlier, self.consent)
            known[passage.id] = store.keep(edit, adapter).id
            if edit.state == "active" and passage.id in earlier.passages:
                earlier = store.lines(edit.weights)  # it replaced an edit of its passage
            elif edit.state == "active":
                earlier.add(lines_of(edit.self_edit), passage.id)
        return [{"edit": known[p.id]} for p in part]

    def known_before(self, passages: Sequence[Passage], count: Count = uncounted) -> list[float]:
        """Return the share of each passage's questions (given and the model's own) that are right without the passage,
        before learning; NaN without any. The questions are those that `learn` asks with the same seed."""
        asked = self._questions(passages, count)
        return [accuracy(asked[passage.id], "before", self.domain.grader) for passage in passages]

    def _recipe(self, passage: Passage) -> dict[str, Any]:
        """Return all that decides what is learned from a passage on a given base, as JSON holds it."""
        outer = ("samples", "temperature", "top_p", "edit_tokens", "filter")
        settings = {
            "inner": self.domain.inner,
            "prompts": self.domain.prompts,
            "grader": self.domain.grader,
            "seed": self.seed,
            "outer": {key: getattr(self.outer, key) for key in outer},
            "questions": passage.questions,
            "own": self.own,
            "allow": sorted(self.consent.allow),
        }
        return to_dict(settings)

    def _drafts(self, blanks: Sequence[Edit], run: "_Counting") -> list[tuple[Edit, Any]]:
        """Learn passages side by side; return the edit of each, with its adapter, before its self-edit is reviewed."""
        if not blanks:
            return []
        policy, domain, passages = self.policy, self.domain, [blank.passage for blank in blanks]
        asked = self._questions(passages, run.count)
        units = {passage.id: _answered(passage, asked[passage.id]) for passage in passages}
        edits = write_self_edits(run, policy, [*units.values()], domain, self.outer, phase="write", seed=self.seed)
        if approve := self.consent.approve:
            edits = [e for e in edits if approve(units[e.unit_id], e, _findings(e, units[e.unit_id]))]
        read = [domain.read(units[edit.unit_id], edit, "own_untrained", self.seed) for edit in edits]
        candidates = [c for c in read if isinstance(c, Candidate)]
        results = dict(zip([c.id for c in candidates], train(policy, candidates, domain, run.count), strict=True))
        trials = {t.id: t for t in ask_candidates(policy, candidates, results, run.count, domain=domain)}
        drafts = []
        for blank in blanks:
            name = blank.passage.id
            mine = [trials[c.id] for c in candidates if c.unit.id == name]
            drafts.append(_chosen(replace(blank, questions=asked[name]), mine, results, self.outer, self.seed))
        return drafts

    def _questions(self, passages: Sequence[Passage], count: Count) -> dict[str, tuple[Asked, ...]]:
        """Return passage id → its questions, each with a gold answer and the answers with the passage in view and
        before learning.

        The model's own questions are kept if it gave their answers again.
        """
        policy, outer, own, domain = self.policy, self.outer, self.own, self.domain
        written: dict[str, list[Question]] = {}
        if own.samples:
            sampling = Sampling(outer.edit_tokens, outer.temperature, outer.top_p, own.samples, skip_long=True)
            written = write(policy, passages, own.prompts, sampling, self.seed, count)
        shown = []
        for p in passages:
            known = {graders.normalise(q.question) for q in p.questions}
            new = [q for q in written.get(p.id, ()) if graders.normalise(q.question) not in known]
            shown.append(candidate(replace(p, questions=(*p.questions, *new)), "in_view"))
        found = []
        for passage, trial in zip(passages, try_all(policy, shown, count, domain=domain), strict=True):
            given, again = trial.answers[: len(passage.questions)], trial.answers[len(passage.questions) :]
            kept = [Asked(a.question, a.gold, "own", a, a) for a in again if a.grades[domain.grader] == 1.0]
            found.append((*map(_of_person, given), *kept))
        plain = [candidate(_answered(p, asked), "before") for p, asked in zip(passages, found, strict=True)]
        before = try_all(policy, plain, count, domain=domain)
        told = zip(passages, found, before, strict=True)
        return {passage.id: _with(asked, "before", trial.answers) for passage, asked, trial in told}


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
    return Learner(policy, domain, outer, own, consent or Consent(), seed).learn(run, store, document)


def findings_in(passage: Passage) -> tuple[Finding, ...]:
    """Return the findings in a passage itself."""
    return tuple(of_text(f"{passage.title}\n\n{passage.text}"))


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


def _blank(policy: Policy, part: Part, recipe: dict[str, Any]) -> Edit:
    """Return the edit of a passage before anything is tried."""
    name, dtype, weights = policy.base.name, policy.base.dtype, base_of(policy)
    return Edit(part.passage, part.document, part.place, None, name, weights, dtype, recipe, {}, ())


def _findings(edit: SelfEdit, passage: Passage, earlier: Lines | None = None) -> tuple[Finding, ...]:
    """Return the findings in a self-edit, given its passage and ``earlier`` lines."""
    return *of_text(edit.text), *of_edit(lines_of(edit), passage, earlier)


def _reviewed(edit: Edit, earlier: Lines, consent: Consent) -> Edit:
    """Return the edit with its self-edit's findings; quarantined if they stop it or an update's guard must decide."""
    if edit.self_edit is None:
        return edit
    found = _findings(edit.self_edit, edit.passage, earlier)
    edit = replace(edit, findings=(*edit.findings, *found))
    if why := stopped(found, consent.allow):
        return replace(edit, state="quarantined", reason=f"its self-edit: {why}")
    if consent.held and edit.state == "active":
        return replace(edit, state="quarantined", reason=waiting(consent.held))
    return edit


def _answered(passage: Passage, asked: Sequence[Asked]) -> Passage:
    """Return the passage with these questions and the gold answers that they have now."""
    given = {question.question: question for question in passage.questions}
    questions = [replace(given.get(q.question, Question(q.question, "")), answer=q.gold) for q in asked]
    return replace(passage, questions=tuple(questions))


def _of_person(answer: Answer) -> Asked:
    """Return a given question; if it has no gold answer, the model's answer with the passage in view serves as one."""
    if answer.gold:
        return Asked(answer.question, answer.gold, "given", answer, answer)
    ungraded = replace(answer, gold=answer.text, grades=dict.fromkeys(answer.grades, math.nan))
    return Asked(answer.question, answer.text, "in_view", ungraded, ungraded)


def _with(questions: Sequence[Asked], stage: str, answers: Sequence[Answer]) -> tuple[Asked, ...]:
    """Return the questions with their answers at a stage, None if there are none; without gold there is no grade."""
    told: list[Answer | None] = [*answers] if answers else [None] * len(questions)
    for i, (question, answer) in enumerate(zip(questions, told, strict=True)):
        if answer is not None and graders.is_blank(question.gold):
            told[i] = replace(answer, grades=dict.fromkeys(answer.grades, math.nan))
    changes: list[dict[str, Any]] = [{stage: answer} for answer in told]
    return tuple(replace(question, **change) for question, change in zip(questions, changes, strict=True))


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


def imported_edit(policy: Policy, domain: Knowledge, part: Part, adapter: "Adapter", texts: Sequence[str]) -> Edit:
    """Return the edit of an adapter that was trained elsewhere on ``texts``, judged by the passage's questions."""
    run, begun, passage = _Counting(), time.perf_counter(), part.passage
    stages = [candidate(passage, stage) for stage in STAGES]
    results = {stages[-1].id: Result("after", adapter, [], 0, 0)}
    answers = [trial.answers for trial in ask_candidates(policy, stages, results, run.count, domain=domain)]
    asked = tuple(Asked(one[0].question, one[0].gold, "given", *one) for one in zip(*answers, strict=True))
    state, reason = _verdict(asked, domain.grader)
    training: dict[str, Any] = {"tried": 1, "steps": 0, "tokens": 0, "first_loss": None, "last_loss": None}
    training["cost"] = {**run.counts, "seconds": round(time.perf_counter() - begun, 3)}
    written = SelfEdit(f"{passage.id}/imported", passage.id, "\n".join(texts), "imported") if texts else None
    blank = _blank(policy, part, {"imported": True, "grader": domain.grader})
    return replace(blank, self_edit=written, training=training, questions=asked, state=state, reason=reason)


def _chosen(
    edit: Edit, trials: Sequence[PassageTrial], results: dict[str, Result | Rejected], outer: OuterLoop, seed: int
) -> tuple[Edit, Any]:
    """Return the edit with the self-edit after which most questions are right, and its adapter; active only if more
    are right than before."""
    counts: dict[str, Any] = {"tried": len(trials), "outcomes": dict(Counter(trial.outcome for trial in trials))}
    trained = [
        (trial, result)
        for trial in trials
        if isinstance(result := results[trial.id], Result) and result.adapter is not None
    ]
    if not trained:
        return replace(edit, training=counts, state="quarantined", reason="no self-edit could be trained on"), None
    answered = [_with(edit.questions, "after", trial.answers) for trial, _ in trained]
    grader = trained[0][0].grader
    rewards = [accuracy(several, "after", grader) for several in answered]
    best = (FILTERS[outer.filter](rewards, derive_seed(seed, edit.passage.id), outer.threshold) or [0])[0]
    (trial, result), after = trained[best], answered[best]
    counts |= {"rewards": rewards, **result.summary()}
    state, reason = _verdict(after, grader)
    edit = replace(edit, self_edit=trial.edit, training=counts, questions=after, state=state, reason=reason)
    return edit, result.adapter
