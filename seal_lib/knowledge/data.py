"""Passages with questions, from three kinds of source, one call: :func:`load_passages`.

==========================  =====================================================================================
``world:heldout``           the shipped made world (populations ``heldout`` for evaluation, ``learning`` for ReST^EM)
``hub:rajpurkar/squad``     SQuAD v1.1 through ``datasets``; ``hub:rajpurkar/squad:train`` for the other split
a path                      JSON list of ``{title, context, questions: [{question, answer}]}``; optional
                            ``completions`` (self-edits) become references
==========================  =====================================================================================
"""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.records import Passage, Question

SQUAD_REVISION = "7b6d24c440a36b6815f21b70d25016731768db1f"


def load_passages(source: str, count: int | None, seed: int = 0, start: int = 0, facts: int = 6) -> list[Passage]:
    """``count`` passages of ``source`` (all if None), in an order fixed by ``seed``.

    Real text is shuffled as the authors do: ``random.seed(seed); shuffle; [start : start + count]`` (seed 42, start 0,
    200 passages is the paper's evaluation set, 974 questions). The made world draws its own passages from ``seed``.
    """
    kind, _, rest = source.partition(":")
    if kind == "world":
        from seal_lib.knowledge import world

        if rest not in world.populations():
            raise DataError(f"passages: {source!r} is unknown; the world has {', '.join(world.populations())}.")
        if count is None:
            raise DataError(f"passages: {source!r} needs a number of passages, not null.")
        return world.passages(rest, start + count, seed, facts)[start:]
    passages = from_hub(rest) if kind == "hub" else from_json(paths.given(source))
    random.Random(seed).shuffle(passages)
    chosen = passages[start:] if count is None else passages[start : start + count]
    if count is not None and len(chosen) < count:
        raise DataError(f"passages: {source} has {len(passages)} passages, fewer than the {start} + {count} asked for.")
    return chosen


def from_json(path: Path) -> list[Passage]:
    """Passages of a JSON file in file order; ids are ``<stem>-<index>``.

    Raises:
        DataError: names the file and entry that is missing, empty or malformed.
    """
    if not path.is_file():
        raise DataError(f"passages: no file {path}; give a JSON file, world:heldout or hub:rajpurkar/squad.")
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON text ({error}); expected a list of passages.") from error
    if not isinstance(entries, list):
        raise DataError(f"{path} holds a {type(entries).__name__}; expected a list of passages.")
    return [_passage(entry, f"{path.stem}-{i:05d}", f"{path}, entry {i}") for i, entry in enumerate(entries)]


def _passage(entry: object, name: str, where: str) -> Passage:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object with title, context and questions.")
    for key in ("title", "context", "questions"):
        if key not in entry:
            raise DataError(f"{where}: the key {key!r} is missing; a passage has title, context and questions.")
    title, context = _text(entry["title"], "title", where), _text(entry["context"], "context", where)
    if not context.strip():
        raise DataError(f"{where}: the passage (key 'context') is empty; remove the entry or give it a text.")
    questions = []
    for number, item in enumerate(_list(entry["questions"], "questions", where)):
        place = f"{where}, question {number}"
        if not isinstance(item, dict):
            raise DataError(f"{place}: expected an object with question and answer.")
        texts = {key: _text(item.get(key, ""), key, place).strip() for key in ("question", "answer")}
        for key, text in texts.items():
            if not text:
                raise DataError(f"{place}: the {key} is empty; remove the question or fill it in.")
        questions.append(Question(**texts))
    if not questions:
        raise DataError(f"{where}: no question; a passage without questions cannot be scored, so remove it.")
    completions = _list(entry.get("completions", []), "completions", where)
    references = {str(k): _text(text, f"completions[{k}]", where) for k, text in enumerate(completions)}
    return Passage(name, title, context, tuple(questions), references)


def _text(value: object, key: str, where: str) -> str:
    """``value`` if it is text that can be written down, else one sentence."""
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
    """SQuAD-shaped passages from the Hub at a pinned revision, questions grouped by passage, first gold answer."""
    from datasets import load_dataset

    repository, _, split = name.partition(":")
    if repository != "rajpurkar/squad":
        raise DataError(f"passages: hub:{repository} has no pinned revision; use hub:rajpurkar/squad or a JSON file.")
    rows = load_dataset(repository, split=split or "validation", revision=SQUAD_REVISION)
    return group_squad(rows)


def group_squad(rows: Iterable[Mapping[str, Any]]) -> list[Passage]:
    """SQuAD rows (title, context, question, answers) → one passage per context, in order of first appearance."""
    grouped: dict[str, tuple[str, list[Question]]] = {}
    for row in rows:
        title, questions = grouped.setdefault(row["context"], (row["title"], []))
        questions.append(Question(row["question"].strip(), row["answers"]["text"][0]))
    return [
        Passage(f"squad-{i:05d}", title.replace("_", " "), context, tuple(questions))
        for i, (context, (title, questions)) in enumerate(grouped.items())
    ]
