"""Answer questions about what was learned: by the base, with the passage in view, or by an adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from seal_lib.errors import DataError
from seal_lib.grading import graders
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops import inner
from seal_lib.loops.policy import Policy
from seal_lib.records import PassageTrial, Question, to_dict
from seal_lib.runs.work import Count, Recorder
from seal_lib.store.database import Store, base_of
from seal_lib.store.routing import Router
from seal_lib.store.schema import ARM_AT, STAGES, candidate
from seal_lib.store.search import Search
from seal_lib.training.jobs import Result


@dataclass(frozen=True)
class Reply:
    """An answered question.

    ``answers``: by stage (`seal_lib.store.schema.STAGES`, "both"), where there is one; ``used``: the stage whose answer
    counts, and ``why``; ``tokens``: of each prompt. ``passage``, ``document``, ``place``, ``title``: of the passage
    found, "" if none; ``edit``: number of the edit in use for that passage, 0 if none.
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
    tokens: dict[str, int] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        return self.answers[self.used]


def ask(
    run: Recorder,
    store: Store,
    policy: Policy,
    questions: Sequence[str],
    domain: Knowledge,
    *,
    route: str = "measured",
    search: Search | None = None,
    compare: bool = True,
    phase: str = "ask",
) -> list[Reply]:
    """Ask about what the store holds, all questions together; return one reply per distinct question.

    Args:
        route: decides whose answer counts, a key of `seal_lib.store.routing.ROUTES`.
        search: how the passage of a question is found; None: by its words.
        compare: also give the answers that do not count: of the base, with the passage in view, of the adapter.

    Raises:
        DataError: a passage's adapter is of another base, or is not what was kept; a question is too long.
    """
    router = Router(store, base_of(policy), route, search)
    unit = partial(_replies, store=store, router=router, policy=policy, domain=domain, compare=compare, count=run.count)
    return [Reply(**row) for row in run.map(phase, list(dict.fromkeys(questions)), unit, chunk=64)]


def _replies(
    part: Sequence[str], *, store: Store, router: Router, policy: Policy, domain: Knowledge, compare: bool, count: Count
) -> list[dict]:
    merged = {merge.weights: merge for merge in store.merges()}
    adapters = {}
    candidates, results, routed = [], {}, []
    for question, (evidence, used, why) in zip(part, router.routes(part), strict=True):
        unit = replace(evidence.part.passage, questions=(Question(question, ""),))
        there = ["before"] + ["in_view"] * bool(evidence.match) + ["after"] * bool(evidence.edit)
        wanted = {used, *(there if compare else ())}
        routed.append((evidence, used, why, unit))
        for stage in sorted(wanted):
            name = f"{question}/{stage}"
            about = unit if evidence.found or stage != "before" else replace(unit, title="", text="")
            candidates.append(candidate(about, stage, name))
            if candidates[-1].trains and (edit := evidence.edit):
                if edit.id not in adapters:
                    own = store.adapter(edit, policy.base)  # checks the base, also for a merged one
                    adapters[edit.id] = store.merged(merged[edit.weights]) if edit.state == "merged" else own
                results[name] = Result("", adapters[edit.id], [], 0, 0)
    trials = {trial.id: trial for trial in inner.ask_candidates(policy, candidates, results, count, domain=domain)}
    prompts = {c.id: domain.prompts.ask(c.unit, c.unit.questions[0], c.shown) for c in candidates}
    lengths = {name: len(policy.tokenizer(prompt)["input_ids"]) for name, prompt in prompts.items()}
    rows = []
    for question, (evidence, used, why, unit) in zip(part, routed, strict=True):
        tried = {stage: trials.get(f"{question}/{stage}") for stage in (*STAGES, "both")}
        answers = {stage: trial.answers[0].text for stage, trial in tried.items() if trial and trial.outcome == "ok"}
        used, why = _answered(answers, used, why, question)
        tokens = {stage: lengths[f"{question}/{stage}"] for stage in answers}
        number = evidence.edit.id if evidence.edit else 0
        found = evidence.part
        reply = Reply(question, answers, used, why, found.id, found.document, found.place, unit.title, number, tokens)
        rows.append(to_dict(reply))
    return rows


def _answered(answers: Mapping[str, str], used: str, why: str, question: str) -> tuple[str, str]:
    """Return the stage whose answer counts, and why: as routed, or a shorter prompt's if that one was too long."""
    if used in answers:
        return used, why
    shorter = next((stage for stage in ("after", "before") if stage in answers), "")
    if not shorter:
        raise DataError(f"question {question[:60]!r} is longer than the model takes; shorten it.")
    return shorter, "its passage is longer than the model takes"


def graded(replies: Sequence[Reply], questions: Sequence[Question], grader: str) -> dict[str, list[PassageTrial]]:
    """Return arm → trials, one per passage, of the answers at that stage to questions whose gold answers are known."""
    gold = {question.question: question for question in questions}
    found: dict[str, list[PassageTrial]] = {}
    for stage in STAGES:
        by_passage: dict[str, list[tuple[Question, str]]] = {}
        for reply in replies:  # where no adapter is in use, what the model knew before stays what it knows after
            text = reply.answers.get(stage, reply.answers.get("before", ""))
            by_passage.setdefault(reply.passage, []).append((gold[reply.question], text))
        found[ARM_AT[stage]] = [
            PassageTrial(passage, passage, ARM_AT[stage], None, 0, tuple(graders.grade(pairs, grader)), grader)
            for passage, pairs in by_passage.items()
        ]
    return found
