"""Dry-run versions of what notebooks about passages load and write: passages, prompts, corpora, strategies, a store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from seal_lib.knowledge import corpus, prompts, strategies
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.evaluate import BASELINES
from seal_lib.knowledge.prompts import Prompts
from seal_lib.knowledge.strategies import Strategy
from seal_lib.loops.domain import Candidate
from seal_lib.loops.inner import ask_candidates
from seal_lib.loops.outer import write_self_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.plan import lengths
from seal_lib.plan.dry import Meter, Prompt, Several, words
from seal_lib.records import Passage, Question, SelfEdit
from seal_lib.runs.work import Count, Recorder
from seal_lib.store import texts
from seal_lib.store.growth import routes
from seal_lib.store.learning import OwnQuestions, learn
from seal_lib.store.review import Lines
from seal_lib.store.schema import Edit
from seal_lib.store.search import Search
from seal_lib.store.texts import Document


@dataclass(frozen=True, kw_only=True)
class DryPrompts(Prompts):
    """A prompt set whose prompts have recorded lengths.

    The id of a passage begins with its source, and the text of a question is its source.
    """

    meter: Meter

    def write(self, passage: Passage) -> Prompt:
        return self.meter.recorded(passage.id.rpartition("-")[0]).write()

    def ask(self, passage: Passage, question: Question, in_context: bool = False) -> Prompt:
        return self.meter.recorded(question.question).ask(question.times, question.answer, in_context)

    def training_text(self, title: str, text: str) -> str:
        return f"{title}\n{text}"


def wording(meter: Meter, name: str, file: str | None = None) -> DryPrompts:
    """Return the prompt set of that name, with recorded lengths."""
    return DryPrompts(**vars(prompts.load(name, file)), meter=meter)


def load_passages(
    meter: Meter, source: str, count: int, seed: int = 0, start: int = 0, people: int = 0
) -> list[Passage]:
    """Return passages of recorded length; the one question of each stands for all of them."""
    of, found = meter.recorded(source), []
    writers = {row.text.partition(":")[2] for row in BASELINES.values() if row.text.startswith("reference:")}
    for number in range(start, start + count):
        notes = {writer: of.notes_by(writer, number) for writer in writers}
        asked = Several(source, "right", of.text.questions)
        found.append(Passage(f"{source}-{number}", words(of.title), of.body(number), (asked,), notes))
    return found


def prior_passages(source: str, count: int, *_: object, **__: object) -> list[Passage]:
    """Return questions on prior knowledge; a source that is a made world counts like its held-out passages."""
    asked = Several("world:heldout" if source.startswith("world:") else source, "right", 1)
    return [Passage(f"{source}-prior-{number}", "w", "w", (asked,)) for number in range(count)]


def some_questions(passages: Sequence[Passage], count: int | None, seed: int) -> list[Passage]:
    """Return the passages with ``count`` questions in all, spread evenly over them."""
    times = 1.0 if count is None else count / sum(p.questions[0].times for p in passages)
    return [replace(p, questions=(replace(p.questions[0], times=times * p.questions[0].times),)) for p in passages]


def write_texts(
    run: Recorder,
    policy: Policy,
    passages: Sequence[Passage],
    arm: str,
    domain: Knowledge,
    outer: OuterLoop,
    *,
    count: int,
    seed: int,
) -> list[corpus.Text]:
    """Return the texts of an arm.

    A text that relates entities costs as much and is as long as a self-edit; the list of entities is not counted.
    """
    writer = corpus.writer_of(arm)
    if writer.source == "external":
        return [corpus.Text(p.id, arm, i, p.references["external"]) for p in passages for i in range(count)]
    if writer.study is None:
        return corpus.write(run, policy, passages, arm, domain, outer, count=count, seed=seed)
    samples = count * max(1, len(writer.study.groups))
    edits = write_self_edits(run, policy, passages, domain, outer, phase=f"{arm}/relate", seed=seed, samples=samples)
    return [corpus.Text(e.unit_id, e.source, i % count, e.text) for i, e in enumerate(edits)]


class DryStrategy(Strategy):
    """A strategy whose notes are those recorded for the writer that stands for it."""

    def notes(self, passage: Passage, count: int, seed: int) -> list[SelfEdit]:
        text = passage.references.get(self.made or "", passage.references["gold"])
        return [SelfEdit(f"{passage.id}/{self.name}/{k}", passage.id, text, self.arm) for k in range(count)]


def load_strategies(names: Sequence[str], file: str | None = None) -> list[DryStrategy]:
    return [DryStrategy(**vars(strategy)) for strategy in strategies.load(names, file)]


class DryRubric:
    """A rubric that rates the first text best; a judge that it would ask is not counted."""

    def rate(self, pairs: Sequence[tuple[Passage, str]], count: Count) -> list[float]:
        return [1 / (1 + number) for number in range(len(pairs))]


def batches(meter: Meter, source: str, count: int, seed: int) -> Callable[[int], list[Passage]]:
    return lambda index: load_passages(meter, source, count, start=(index - 1) * count)


def read_document(meter: Meter, path: Path, words: int) -> list[Document]:
    """Return a document with as many passages as the real one; they have the recorded lengths of its kind."""
    found = texts.read(path, words)[0]
    return [replace(found, passages=tuple(load_passages(meter, lengths.kind_of(path), len(found.passages))))]


def grow(
    run: Recorder,
    store: "DryStore",
    policy: Policy,
    domain: Knowledge,
    outer: OuterLoop,
    passages: Sequence[Passage],
    sizes: Sequence[int],
    *_: object,
    search: Search | None = None,
    seed: int = 0,
    **__: object,
) -> list:
    """Learn all passages, and at each size ask about the passages so far by every route; return no answers."""
    document = Document("passages", "", "", tuple(passages), ("",) * len(passages))
    learn(run, store, policy, document, domain, outer, OwnQuestions(domain.prompts, 0), seed=seed)
    for size in sizes:
        for way, _ in routes(search).values():
            shown = way in ("retrieval", "both")
            asked = [Candidate(p.id, p, None, "frozen", 0, trains=False, shown=shown) for p in passages[:size]]
            ask_candidates(policy, asked, {}, run.count, domain=domain)
    return []


class DryStore:
    """A store that keeps what is learned in memory, without adapters."""

    def __init__(self) -> None:
        self.kept: list[Edit] = []

    def add(self, document: Document) -> None: ...

    def lines(self, weights: str) -> Lines:
        return Lines()

    def edits(self, *states: str, **_: object) -> list[Edit]:
        return []

    def edit(self, number: int) -> Edit:
        return self.kept[number - 1]

    def keep(self, edit: Edit, adapter: object) -> Edit:
        self.kept.append(replace(edit, id=len(self.kept) + 1))
        return self.kept[-1]
