"""Self-edit text → training documents, by the rules of a protocol.

``authors_v1`` (the code of the paper's first version), our own words for it:

1. A text that has ``Question N:`` and ``Answer:`` anywhere is cut before each line that begins with ``Question N:``,
   and nowhere else: ``---`` and blank lines stay inside. If it does not begin with ``Question``, the number that stood
   in the prompt is given back.
2. Any other text is cut at every ``---``, then into lines; blank ones go, and so does the first line of all if the
   second begins with ``1.`` (a heading).
3. With line splitting off, the text is cut at ``---`` only. A text that is empty then is one empty document.

``authors_v2`` (August 2025): a heading line ``Implications:`` and all before it are dropped first; 30 documents are
kept, blank ones are not. ``clean``: the same thoughts part by part, so that ``---`` always separates and each part may
have its heading or its questions.

Every document is the title, a newline and the text; the passage itself is one more, last document. Checked against the
released self-edits: 10 × documents has mean 85.7, median 70, maximum 570 over the 200 evaluation passages (first
completion, line splitting on).
"""

import re
from dataclasses import dataclass

from seal_lib.errors import DataError
from seal_lib.knowledge.prompts import Prompts
from seal_lib.records import Passage

PROTOCOLS = ("clean", "authors_v1", "authors_v2")
#: protocol → most documents of one self-edit, beside the passage
CAPS = {"authors_v2": 30}

_QUESTION, _ANSWER = r"Question\s+\d+:", r"Answer\s*:"
_FIRST = "Question 1: "  # what the prompt of question self-edits ends in
_HEADING = re.compile(r"\nImplications:\s*")


@dataclass(frozen=True)
class TrainingDocument:
    """Text to train on; ``kind`` is ``edit`` or ``passage``."""

    text: str
    kind: str


def split_edit(text: str, split_newlines: bool = True, protocol: str = "authors_v1") -> list[str]:
    """The pieces of a self-edit, in order, without title.

    Raises:
        DataError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"protocol: {protocol!r} is not one of {', '.join(PROTOCOLS)}.")
    if protocol == "clean":
        parts = _parts(text)
        return [piece for part in parts for piece in _clean(part)] if split_newlines else parts
    if protocol == "authors_v1":
        return _authors(text, split_newlines)
    heading = _HEADING.search(text)
    pieces = _authors(text[heading.end() :] if heading else text, split_newlines)
    return [piece for piece in pieces[: CAPS[protocol]] if piece.strip()]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split("---") if part.strip()]


def _has_questions(text: str) -> bool:
    return bool(re.search(_QUESTION, text) and re.search(_ANSWER, text))


def _without_heading(lines: list[str]) -> list[str]:
    return lines[1:] if len(lines) > 1 and lines[1].startswith("1.") else lines


def _clean(part: str) -> list[str]:
    """Pieces of one part between ``---``."""
    if not _has_questions(part):
        return _without_heading([line.strip() for line in part.splitlines() if line.strip()])
    blocks = [block.strip() for block in re.split(f"(?={_QUESTION})", part) if block.strip()]
    return blocks if re.match(_QUESTION, blocks[0]) else [_FIRST + blocks[0], *blocks[1:]]


def _authors(text: str, split_newlines: bool) -> list[str]:
    parts = _parts(text) or [text.strip()]
    if not split_newlines:
        return parts
    if not _has_questions(text):
        return _without_heading([line.strip() for part in parts for line in part.splitlines() if line.strip()])
    blocks = re.split(rf"\n(?={_QUESTION})", text.strip())
    return blocks if blocks[0].startswith("Question") else [_FIRST + blocks[0].strip(), *blocks[1:]]


def training_documents(
    passage: Passage,
    edit: str | None,
    prompts: Prompts,
    split_newlines: bool = True,
    add_passage: bool = True,
    limit: int | None = None,
    protocol: str = "authors_v1",
) -> list[TrainingDocument]:
    """Documents to train on for one self-edit; ``edit=None`` is the passage-only arm.

    ``limit`` keeps the first ``limit`` pieces of the edit.
    """
    pieces = [] if edit is None else split_edit(edit, split_newlines, protocol)[:limit]
    documents = [TrainingDocument(prompts.training_text(passage.title, piece), "edit") for piece in pieces]
    if add_passage:
        documents.append(TrainingDocument(prompts.training_text(passage.title, passage.text.strip()), "passage"))
    return documents
