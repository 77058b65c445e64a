"""A question → the passage that it is about; answers of the base, with the passage in view, and of its adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from seal_lib import models
from seal_lib.errors import DataError
from seal_lib.grading import graders
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops import inner
from seal_lib.loops.domain import Candidate, Count
from seal_lib.loops.policy import Policy
from seal_lib.records import Passage, PassageTrial, Question, to_dict
from seal_lib.runs.work import Recorder
from seal_lib.store.database import ARMS, STAGES, Edit, Store
from seal_lib.store.retrieval import rank
from seal_lib.training.jobs import Result


@dataclass(frozen=True)
class Reply:
    """An answered question.

    ``answers``: by stage (`seal_lib.store.database.STAGES`), as far as there is one; ``used``: the stage whose answer
    counts, and ``why``. ``passage``, ``document``, ``place``, ``title``: of the passage found, "" if none; ``edit``:
    the number of the edit whose adapter was asked, 0 if none.
    """

    question: str
    answers: dict[str, str]
    used: str
    why: str
    passage: str = ""
    document: str = ""
    place: str = ""
    title: str = ""
    edit: int = 0

    @property
    def answer(self) -> str:
        return self.answers[self.used]


def ask(run: Recorder, store: Store, policy: Policy, questions: Sequence[str], domain: Knowledge, *,
        phase: str = "ask") -> list[Reply]:  # fmt: skip
    """Ask about what the store holds, all questions together.

    A question's passage is the best match of its words (`seal_lib.store.retrieval`). Its adapter answers if one is in
    use, else the base with the passage in view; where no passage matches, the base as it is.

    Raises:
        DataError: a passage's adapter is of another base, or is not what was kept; a question is too long.
    """
    unit = partial(_replies, store=store, policy=policy, domain=domain, count=run.count)
    return [Reply(**row) for row in run.map(phase, list(dict.fromkeys(questions)), unit, chunk=64)]


def _replies(part: Sequence[str], *, store: Store, policy: Policy, domain: Knowledge, count: Count) -> list[dict]:
    kept = store.passages()
    places = {passage.id: (document, place) for passage, document, place in kept}
    candidates, results, chosen = [], {}, []
    for question in part:
        found = rank(question, [passage for passage, _, _ in kept])
        passage = replace(found[0] if found else Passage("", "", "", ()), questions=(Question(question, ""),))
        edit = _in_use(store, policy, passage) if found else None
        chosen.append((passage, edit))
        candidates.append(Candidate(f"{question}/before", passage, None, ARMS["before"], 0, trains=False))
        if found:
            shown = Candidate(f"{question}/in_view", passage, None, ARMS["in_view"], 0, trains=False, shown=True)
            candidates.append(shown)
        if edit:
            candidates.append(Candidate(f"{question}/after", passage, None, ARMS["after"], 0))
            results[f"{question}/after"] = Result("", store.adapter(edit, policy.base), [], 0, 0)
    trials = {trial.id: trial for trial in inner.ask(policy, candidates, results, count, domain=domain)}
    rows = []
    for question, (passage, edit) in zip(part, chosen, strict=True):
        tried = {stage: trials.get(f"{question}/{stage}") for stage in STAGES}
        answers = {stage: trial.answers[0].text for stage, trial in tried.items() if trial and trial.outcome == "ok"}
        used, why = _used(answers, question, edit)
        document, place = places.get(passage.id, ("", ""))
        number = edit.id if edit else 0
        rows.append(to_dict(Reply(question, answers, used, why, passage.id, document, place, passage.title, number)))
    return rows


def _in_use(store: Store, policy: Policy, passage: Passage) -> Edit | None:
    """The passage's edit in use: on this base if there is one, else on another, which the store will refuse."""
    edits = store.edits("active", passage=passage.id)
    weights = models.weight_hash(policy.base.name, policy.base.revision)
    return next((edit for edit in edits if edit.weights == weights), edits[0] if edits else None)


def _used(answers: Mapping[str, str], question: str, edit: Edit | None) -> tuple[str, str]:
    """(the stage whose answer counts, why)."""
    if "after" in answers and edit:
        return "after", f"edit {edit.id} is in use for this passage"
    if "in_view" in answers:
        return "in_view", "no edit of this passage is in use, so it is read"
    if "before" in answers:
        return "before", "no passage of the store fits it, so the model says what it knew before"
    raise DataError(f"question {question[:60]!r} is longer than the model takes; shorten it.")


def graded(replies: Sequence[Reply], questions: Sequence[Question], grader: str) -> dict[str, list[PassageTrial]]:
    """Arm → a trial per passage of the answers at that stage, to questions whose right answers are known."""
    gold = {question.question: question for question in questions}
    found: dict[str, list[PassageTrial]] = {}
    for stage in STAGES:
        by_passage: dict[str, list[tuple[Question, str]]] = {}
        for reply in replies:  # where no adapter is in use, what the model knew before stays what it knows after
            text = reply.answers.get(stage, reply.answers.get("before", ""))
            by_passage.setdefault(reply.passage, []).append((gold[reply.question], text))
        found[ARMS[stage]] = [
            PassageTrial(passage, passage, ARMS[stage], None, 0, tuple(graders.grade(pairs, grader)), grader)
            for passage, pairs in by_passage.items()
        ]
    return found
