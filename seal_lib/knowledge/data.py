"""Load passages with questions from three kinds of source with one function, `load_passages`.

==========================  =====================================================================================
``world:heldout``           the shipped made world (populations ``heldout`` for evaluation, ``learning`` for ReST^EM)
``hub:rajpurkar/squad``     SQuAD v1.1 through ``datasets``; ``hub:rajpurkar/squad:train`` for the other split
a path                      JSON list of ``{title, context, questions: [{question, answer}]}``; optional
                            ``completions`` (self-edits) become the references ``external``, ``external_1``, …; or
                            SQuAD as its authors publish it (``{data: [{title, paragraphs: [{context, qas}]}]}``), or a
                            row per question (``{title, context, question, answers}``), which may also be stored by
                            columns or in the format of the Hub's viewer; JSON lines and gzip too
==========================  =====================================================================================

A gold answer is a text, a list (the first counts) or SQuAD's ``{text: [...]}``. A passage that occurs twice is an
error, since every interval counts passages. A question that its file marks as without an answer, as SQuAD v2 does, is
left out; one warning says how many were.
"""

import random
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.records import Passage, Question
from seal_lib.seeds import rng

#: SQuAD's answers as text, which they become when a table is saved as such
_WRITTEN = re.compile(r"[\[{]+\s*['\"](?:text|answer_start)['\"]\s*:")
SQUAD_REVISION = "7b6d24c440a36b6815f21b70d25016731768db1f"


def load_passages(
    source: str, count: int | None, seed: int = 0, start: int = 0, facts: int = 6, people: int = 3
) -> list[Passage]:
    """Return ``count`` passages of ``source`` (all if None), in an order fixed by ``seed``.

    Real text is shuffled as the authors do: ``random.seed(seed); shuffle; [start : start + count]`` (seed 42, start 0,
    200 passages is the paper's evaluation set, 974 questions). The made world draws its own passages from ``seed``.

    Raises:
        DataError: the source is unknown or has too few passages.
    """
    kind, _, rest = source.partition(":")
    if kind == "world":
        from seal_lib.knowledge import world

        if rest not in world.populations():
            raise DataError(f"passages: {source!r} is unknown; the world has {', '.join(world.populations())}.")
        if count is None:
            raise DataError(f"passages: {source!r} needs a number of passages, not null.")
        return world.passages(rest, start + count, seed, facts, people)[start:]
    passages = from_hub(rest) if kind == "hub" else from_json(paths.given(source))
    random.Random(seed).shuffle(passages)
    chosen = passages[start:] if count is None else passages[start : start + count]
    if count is not None and len(chosen) < count:
        raise DataError(f"passages: {source} has {len(passages)} passages, fewer than the {start} + {count} asked for.")
    return chosen


def prior_passages(source: str, count: int, seed: int, without: Sequence[Passage] = ()) -> list[Passage]:
    """Return ``count`` passages with one question each on what the model knew before it is trained on ``without``.

    Args:
        source: ``world:known`` for facts of the pretraining population, whose passages have no text; otherwise a source
            of passages, from which those of ``without`` are left out.

    Raises:
        DataError: the source has fewer.
    """
    if source == "world:known":
        from seal_lib.knowledge.world import known_facts, known_questions

        pool = [(t, "", q) for t, q in known_questions(min(count, len(known_facts())), seed)]
    else:
        taken, draw = {p.text for p in without}, rng("prior", seed)
        free = [p for p in load_passages(source, None, seed) if p.text not in taken]
        pool = [(p.title, p.text, draw.choice(p.questions)) for p in free[:count]]
    if len(pool) < count:
        raise DataError(f"n_prior: {source} has {len(pool)} passages for {count} questions; ask for fewer.")
    return [Passage(f"prior-{i:04d}", title, text, (question,)) for i, (title, text, question) in enumerate(pool)]


def some_questions(passages: Sequence[Passage], count: int | None, seed: int) -> list[Passage]:
    """Return the passages with ``count`` random questions of all of theirs (None: all), without those left with none.

    The authors of the paper's second version ask 500 (seed 42) after training on many passages.
    """
    if count is None:
        return list(passages)
    every = [(i, j) for i, p in enumerate(passages) for j in range(len(p.questions))]
    if count > len(every):
        raise DataError(f"n_questions: {count} of {len(every)} questions; ask for fewer, or write null for all.")
    drawn = set(random.Random(seed).sample(every, count))
    chosen = [
        replace(p, questions=tuple(q for j, q in enumerate(p.questions) if (i, j) in drawn))
        for i, p in enumerate(passages)
    ]
    return [p for p in chosen if p.questions]


def batches(source: str, count: int, seed: int) -> Callable[[int], list[Passage]]:
    """Return a function from a round ``i``, from 1, to the ``i``-th batch of ``count`` passages of ``source``."""
    return lambda index: load_passages(source, count, seed, start=(index - 1) * count)


def from_json(path: Path) -> list[Passage]:
    """Return the passages of a JSON file in file order; ids are ``<stem>-<index>``.

    Raises:
        DataError: the file is missing, or an entry is empty, malformed or there twice; the message names file and
            entry.
    """
    if not path.exists():
        raise DataError(f"passages: no file {path}; give a JSON file, world:heldout or hub:rajpurkar/squad.")
    passages = passages_of(paths.read_data(path), path.name.split(".json")[0], str(path))
    first: dict[tuple[str, str], str] = {}
    for passage in passages:
        other = first.setdefault((passage.title, passage.text), passage.id)
        if other != passage.id:
            raise DataError(f"{path}: passage {passage.id} is {other} again; put its questions there and remove it.")
    return passages


def passages_of(value: object, stem: str, where: str, unasked: bool = False) -> list[Passage]:
    """Return the passages of a value in any layout that a file may have; ids are ``<stem>-<index>``.

    Questions without an answer are left out; one warning gives their number.

    Args:
        where: the name of the source in messages.
        unasked: allow passages without questions, which are otherwise refused, since they cannot be scored.

    Raises:
        DataError: an entry is empty or malformed; the message names it.
    """
    passages, left_out, empty = [], 0, 0
    entries = _entries(value, where)
    for i, entry in enumerate(entries):
        passage, unanswered = _passage(entry, f"{stem}-{i:05d}", f"{where}, entry {i}", unasked)
        left_out += unanswered
        if passage.questions or unasked:
            passages.append(passage)
        else:
            empty += 1
    if entries and not passages:
        raise DataError(f"{where}: no question has an answer, so nothing can be scored; give a file with answers.")
    if left_out:
        warnings.warn(
            f"{where}: {left_out} questions without an answer are left out, and {empty} passages that have no other.",
            stacklevel=4,
        )
    return passages


def _entries(value: object, where: str) -> list:
    """Return the passages of a file in any layout as entries in our own layout."""
    entries = value
    if isinstance(value, dict):
        if isinstance(value.get("data"), list) and value["data"]:
            entries = value["data"]
        elif isinstance(value.get("rows"), list):  # the format of the Hub's viewer
            entries = [row.get("row", row) if isinstance(row, dict) else row for row in value["rows"]]
        elif {"context", "question"} <= set(value) and isinstance(value["context"], list | dict):
            entries = _of_columns(value, where)
        elif {"context", "paragraphs"} & set(value):  # one line of JSON lines
            entries = [value]
    if not isinstance(entries, list):
        raise DataError(
            f"{where} holds a {type(value).__name__}; expected a list of passages, or SQuAD's object with `data`."
        )
    if any(isinstance(entry, dict) and "paragraphs" in entry for entry in entries):
        return [found for i, article in enumerate(entries) for found in _article(article, f"{where}, article {i}")]
    if any(isinstance(entry, dict) and "question" in entry and "questions" not in entry for entry in entries):
        return _grouped(entries, where)
    return entries


def _of_columns(columns: Mapping[str, Any], where: str) -> list[dict]:
    """Return the rows of a table stored by columns: lists or, as pandas writes them, objects keyed by row number."""
    lists = {key: list(column.values()) if isinstance(column, dict) else column for key, column in columns.items()}
    if len({len(column) if isinstance(column, list) else None for column in lists.values()}) > 1:
        raise DataError(f"{where}: its columns differ in length; write a row per question.")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _article(article: object, where: str) -> list[dict]:
    """Return the entries of one article of raw SQuAD, one per paragraph."""
    if not isinstance(article, dict) or "paragraphs" not in article:
        raise DataError(f"{where}: the key 'paragraphs' is missing; an article of SQuAD has title and paragraphs.")
    found = []
    for i, paragraph in enumerate(_list(article["paragraphs"], "paragraphs", where)):
        if not isinstance(paragraph, dict) or "qas" not in paragraph:
            raise DataError(f"{where}, paragraph {i}: the key 'qas' is missing; a paragraph has context and qas.")
        title = {"title": _spaced(article["title"])} if "title" in article else {}
        context = {"context": paragraph["context"]} if "context" in paragraph else {}
        found.append(title | context | {"questions": paragraph["qas"]})
    return found


def _grouped(rows: Iterable[Any], where: str) -> list[dict]:
    """Group rows with one question each into entries, one per title and context, in order of first appearance."""
    grouped: dict[tuple, dict] = {}
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping) or not {"title", "context", "question"} <= set(row):
            raise DataError(f"{where}, row {i}: a row has title, context, question and answers; one is missing.")
        title = _spaced(_text(row["title"], "title", f"{where}, row {i}"))
        key = title, _text(row["context"], "context", f"{where}, row {i}")
        grouped.setdefault(key, {"title": title, "context": key[1], "questions": []})
        grouped[key]["questions"].append(row)
    return list(grouped.values())


def _spaced(title: object) -> object:
    return title.replace("_", " ") if isinstance(title, str) else title


def _passage(entry: object, name: str, where: str, unasked: bool) -> tuple[Passage, int]:
    """Return the passage with those questions that have an answer, and the number of those that have none."""
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object with title, context and questions.")
    if unasked:
        entry = {"questions": [], **entry}
    for key in ("title", "context", "questions"):
        if key not in entry:
            raise DataError(f"{where}: the key {key!r} is missing; a passage has title, context and questions.")
    title, context = _text(entry["title"], "title", where), _text(entry["context"], "context", where)
    if not context.strip():
        raise DataError(f"{where}: the passage (key 'context') is empty; remove the entry or give it a text.")
    questions, unanswered = [], 0
    for number, item in enumerate(_list(entry["questions"], "questions", where)):
        place = f"{where}, question {number}"
        if not isinstance(item, Mapping):
            raise DataError(f"{place}: expected an object with question and answer.")
        question = _text(item.get("question", ""), "question", place).strip()
        gold = "" if item.get("is_impossible") is True else _gold(item.get("answer", item.get("answers", "")), place)
        if not question:
            raise DataError(f"{place}: the question is empty; remove it or fill it in.")
        if gold:
            questions.append(Question(question, gold))
        else:
            unanswered += 1
    if not questions and not unanswered and not unasked:
        raise DataError(f"{where}: no question; a passage without questions cannot be scored, so remove it.")
    completions = _list(entry.get("completions", []), "completions", where)
    names = ["external", *(f"external_{k}" for k in range(1, len(completions)))]
    references = {
        name: _text(text, f"completions[{k}]", where)
        for k, (name, text) in enumerate(zip(names, completions, strict=False))
    }
    return Passage(name, title, context, tuple(questions), references), unanswered


def _gold(value: object, place: str) -> str:
    """Return the gold answer: a text, the first of a list, or of SQuAD's ``{text: [...]}``; "" if the list is empty."""
    if isinstance(value, Mapping):
        value = value.get("text", value.get("value", ""))
    if isinstance(value, list | tuple):
        return _gold(value[0], place) if value else ""
    gold = _text(value, "answer", place).strip()
    if not gold:
        raise DataError(f"{place}: the answer is empty; remove the question or fill it in.")
    if _WRITTEN.match(gold):
        raise DataError(f"{place}: the answer {gold[:40]!r} is a list or an object written as text; write it as JSON.")
    return gold


def _text(value: object, key: str, where: str) -> str:
    """Return ``value`` if it is text that UTF-8 can encode; otherwise raise DataError."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} is {value!r}, not text; put it in quotes or remove the entry.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {key} holds half a character ({error.reason}); save the file as UTF-8.") from error
    return value


def _list(value: object, key: str, where: str) -> list:
    if not isinstance(value, list):
        raise DataError(f"{where}: {key} is a {type(value).__name__}; expected a list.")
    return value


def from_hub(name: str) -> list[Passage]:
    """Load SQuAD from the Hub at a pinned revision: questions grouped by passage, each with its first gold answer."""
    from datasets import load_dataset

    repository, _, split = name.partition(":")
    if repository != "rajpurkar/squad":
        raise DataError(f"passages: hub:{repository} has no pinned revision; use hub:rajpurkar/squad or a JSON file.")
    rows = load_dataset(repository, split=split or "validation", revision=SQUAD_REVISION)
    return passages_of(list(rows), "squad", "squad")
