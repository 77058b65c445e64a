"""Split the text of a self-edit into training documents by the rules of a protocol.

``authors_v1`` (the code of the paper's first version), described in our own words:

1. A text that has ``Question N:`` and ``Answer:`` anywhere is cut before each line that begins with ``Question N:``,
   and nowhere else: ``---`` and blank lines stay inside. If it does not begin with ``Question``, the ``Question 1:``
   that ended the prompt is put in front of it.
2. Any other text is cut at every ``---``, then into lines. Blank lines are dropped, and so is the first line of the
   text if the second begins with ``1.``, since it is then a heading.
3. With line splitting off, the text is cut at ``---`` only. An empty text is then one empty document.

``authors_v2`` (August 2025): a heading line ``Implications:`` and everything before it are dropped first; of the first
30 documents those that are not blank are kept.

``clean``: the same rules part by part, so that ``---`` always separates and each part may have its own heading or
questions; it also reads what models write today. Thoughts, what follows the model's turn, and lines without content
are removed: rules, code fences, the line under a table's header, lone tags, list numbers without an item. A JSON list
is read as its items, and a line without the tags around it. Headings are dropped: lines marked by ``#``, and lines that
introduce a list (``Sure! Here is …:``). A question begins a document however it is marked (``Question 1:``,
``**Question 1:**``, ``Q1:``, ``### Question 1``, ``- Q:``, or by ``?`` before an answer), in a few languages, if the
part has answers, and its answer stays with it. The lines before the first question are documents of their own, or, if
they have an answer, the rest of the question that ended the prompt. What was dropped is counted (`read_edit`).

A prompt set may have further rules (`prompts.yaml`). With ``after``, only what follows that heading is trained on, and
reasoning before it is counted as left out; of a text without the heading, protocol ``clean`` keeps nothing and the
authors' keep everything. With ``pieces``, a document of ``clean`` may be a part instead of a line.

Every document is the title, a newline and the text; the passage itself is one further document, the last. Checked
against the released self-edits: 10 × documents has mean 85.7, median 70, maximum 570 over the 200 evaluation passages
(first completion, line splitting on).
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from seal_lib.errors import must_be_one_of
from seal_lib.generation.thoughts import without_thoughts
from seal_lib.knowledge.prompts import Prompts
from seal_lib.records import Passage

PROTOCOLS = ("clean", "authors_v1", "authors_v2")
#: protocol → most documents of one self-edit, beside the passage
CAPS = {"authors_v2": 30}

_QUESTION, _ANSWER = r"Question\s+\d+:", r"Answer\s*:"
_FIRST = "Question 1: "  # the end of the prompt for question self-edits
_HEADING = re.compile(r"\nImplications:\s*")

#: protocol clean: a line that is only a fence or tags; how lines and lists may begin; a colon, bold or not
_SENTENCE = ".!?,;'\"()…。！？，"  # a line with these is a sentence, if an empty one, and no rule
_FENCE, _TAGS = re.compile(r"\s*(?:`{3,}|~{3,})[\w+#.-]*\s*"), re.compile(r"\s*(?:</?[^<>\n]{1,40}>\s*)+")
_NUMBER, _TAGGED = re.compile(r"\s*\(?\d{1,3}[.)]\s*"), re.compile(r"\s*<(\w{1,20})>(.*)</\1>\s*")
#: invisible characters: control characters, terminal colours, zero-width spaces, byte order marks
_UNSEEN = re.compile(r"\x1b\[[\d;]*m|[\x00-\x08\x0e-\x1b\x7f\u200b\u2060\ufeff]")
#: an item of a list; a heading of Markdown that is neither a numbered item nor a sentence
_ITEM = re.compile(r"[*_]*(?:\(?(?:\d{1,3}|[a-z])[.)]|[-*+•·‣–]\s)")
_TITLE = re.compile(r"#{1,6}[ \t]+[^\d\s].*[^.!?。！？\s]")
_QUESTIONS = "(?:Question|Pregunta|Pergunta|Frage|Domanda|Вопрос|问题|問題|質問)"
_REPLIES = "(?:Answer|Respuesta|Resposta|Réponse|Antwort|Risposta|Ответ|答案|回答)"
_BEFORE, _COLON = r"[ \t>#*_•–-]*(?:\d+[.)][ \t*_]*)?", r"[ \t*_]*[:：]"


def _marked(word: str, letter: str) -> re.Pattern[str]:
    """Return a pattern for lines that begin as a question or answer: ``Question 1:``, ``Q:``, ``**Q1.**``, ``# Q``."""
    number = rf"(?:{word}|{letter})[ \t]*#?\d+[ \t*_]*(?:[:：.)]|$)"
    return re.compile(rf"{_BEFORE}(?:{number}|(?:{word}|{letter}){_COLON}|{word}[ \t*_]*$)", re.IGNORECASE)


_ASKS, _ANSWERS = _marked(_QUESTIONS, "Q"), _marked(_REPLIES, "A")
_WITHIN = re.compile(rf"(?<!\w)(?:{_REPLIES}|A)(?:[ \t]*#?\d+)?{_COLON}")  # an answer on the line of its question
_NEXT = re.compile(rf"(?<![*_\w])(?=[*_]*(?:Question[ \t]+|Q)\d+{_COLON})")  # a question on the line of an answer


@dataclass(frozen=True)
class TrainingDocument:
    """Text to train on; ``kind`` is ``edit`` or ``passage``."""

    text: str
    kind: str


def split_edit(
    text: str, split_newlines: bool = True, protocol: str = "authors_v1", prompts: Prompts | None = None
) -> list[str]:
    """Return the pieces of a self-edit in order, without title; ``prompts``: its format, if that has its own rules.

    Raises:
        DataError: the protocol is unknown.
    """
    return read_edit(text, split_newlines, protocol, prompts)[0]


@lru_cache(maxsize=512)  # a text is read twice: to train on it and to grade it
def read_edit(
    text: str, split_newlines: bool = True, protocol: str = "authors_v1", prompts: Prompts | None = None
) -> tuple[list[str], dict[str, int]]:
    """Return the pieces of `split_edit`, and counts of what was dropped by kind.

    ``reasoning`` is 1 for a text that has some. Protocol ``clean`` also counts ``thoughts`` (blocks, and what follows
    the model's turn), ``marks`` (lines of layout alone: rules, fences, table lines, tags, bare numbers) and
    ``headings``; ``---`` alone separates and is not counted.
    """
    must_be_one_of("protocol", protocol, PROTOCOLS)
    if prompts and prompts.after:
        return _after(text, split_newlines, protocol, prompts)
    if protocol == "clean":
        split_newlines = split_newlines and not (prompts and prompts.pieces == "parts")
        return _clean(text, split_newlines)
    if protocol == "authors_v1":
        return _authors(text, split_newlines), {}
    heading = _HEADING.search(text)
    pieces = _authors(text[heading.end() :] if heading else text, split_newlines)
    return [piece for piece in pieces[: CAPS[protocol]] if piece.strip()], {}


def _after(text: str, split_newlines: bool, protocol: str, prompts: Prompts) -> tuple[list[str], dict[str, int]]:
    """Read only what follows the first line that begins with the format's heading, however the heading is marked."""
    marked = re.compile(rf"^[ \t#*_]*{re.escape(prompts.after)}[ \t*_]*", re.MULTILINE | re.IGNORECASE)
    before, heading, rest = text, marked.search(text), ""
    if heading:
        before, rest = text[: heading.start()], text[heading.end() :]
    elif protocol != "clean":
        before, rest = "", text
    pieces, dropped = read_edit(rest, split_newlines, protocol, replace(prompts, after=""))
    return pieces, dropped | ({"reasoning": 1} if before.strip() else {})


def _without_heading(lines: list[str]) -> list[str]:
    return lines[1:] if len(lines) > 1 and lines[1].startswith("1.") else lines


def _without_titles(lines: list[str]) -> list[str]:
    """Return the lines without headings, and without the lines that introduce a list."""
    lines = [line for line in lines if not _TITLE.fullmatch(line)]
    first = next((i for i, line in enumerate(lines) if _ITEM.match(line)), 0)
    leads = 0 < first <= 2 and lines[first - 1].rstrip("*_ ").endswith((":", "："))
    return lines[first:] if leads else _without_heading(lines)


def _clean(text: str, split_newlines: bool) -> tuple[list[str], dict[str, int]]:
    text, thoughts = without_thoughts(_UNSEEN.sub("", text))
    dropped, lines, pieces = Counter(thoughts=thoughts), [], []
    for line in _unpacked(text).splitlines(keepends=True):
        if tagged := _TAGGED.fullmatch(line):
            named = re.fullmatch(f"{_QUESTIONS}|{_REPLIES}", tagged[1], re.IGNORECASE)
            line = f"{tagged[1]}: {tagged[2]}\n" if named else f"{tagged[2]}\n"
        mark = line.strip()
        if not mark or not _says_nothing(line):
            lines.append(line)
            continue
        dropped["marks"] += mark != "---"
        if "---" in mark and not mark.strip("-"):
            lines.append("---\n")
    for number, part in enumerate(re.split("-{3,}", "".join(lines))):
        if split_newlines:
            found, headings = _lines_or_questions(part.splitlines(keepends=True), opens=number == 0)
            pieces += found
            dropped["headings"] += headings
        else:
            pieces.append(part.strip())
    return [piece for piece in pieces if piece], {kind: n for kind, n in dropped.items() if n}


def _says_nothing(line: str) -> bool:
    layout = not any(character.isalnum() or character in _SENTENCE for character in line)
    return layout or any(kind.fullmatch(line) for kind in (_FENCE, _TAGS, _NUMBER))


def _unpacked(text: str) -> str:
    """Return a JSON list, in a fence or under one key, as lines, objects as a line per key; other texts as they are."""
    inside = "\n".join(line for line in text.splitlines() if not _FENCE.fullmatch(line)).strip()
    try:
        found = json.loads(inside) if inside[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        return text
    if isinstance(found, dict) and len(found) == 1:
        found = next(iter(found.values()))
    items = [_item(item) for item in found] if isinstance(found, list) else []
    return "\n".join(items) if items and all(items) else text


def _item(value: object) -> str:
    """Return an item of a JSON list as text; "" if it is neither a text nor an object of texts."""
    if not isinstance(value, dict):
        return " ".join(value.split()) if isinstance(value, str) else ""
    texts = {key: _item(text) for key, text in value.items()}
    if not all(texts.values()):
        return ""
    return "\n".join(f"{key}: {text}" for key, text in texts.items()) if len(texts) > 1 else "".join(texts.values())


def _lines_or_questions(lines: list[str], opens: bool) -> tuple[list[str], int]:
    """Return the pieces of one part and the number of headings dropped.

    ``lines`` keep their line ends; ``opens``: this is the first part, whose question may have begun in the prompt.
    """
    lines = [piece for line in lines for piece in _NEXT.split(line)]
    asks = [bool(_ASKS.match(line.strip())) for line in lines]
    answers = [bool(_ANSWERS.match(line.strip()) or _WITHIN.search(line)) for line in lines]
    if not any(asks):  # a question may be unmarked: a line with ? before an answer
        said = [i for i, line in enumerate(lines) if line.strip()]
        for one, other in pairwise(said):
            asked = lines[one].rstrip(" \t\r\n*_").endswith(("?", "？"))
            asks[one] = asked and bool(_ANSWERS.match(lines[other].strip()))
    if not any(asks) or not any(answers):
        asks = [False] * len(lines)
    first = asks.index(True) if any(asks) else len(lines)
    if any(asks) and any(answers[:first]):
        blocks, lead = [[_FIRST, *lines[:first]] if opens else lines[:first]], []
    else:
        blocks, lead = [], [line.strip() for line in lines[:first] if line.strip()]
    closed = False  # True after an answer on the question's own line: what follows is not part of it
    for line, asked, answered in list(zip(lines, asks, answers, strict=True))[first:]:
        if asked or closed:
            blocks.append([line])
        else:
            blocks[-1].append(line)
        closed = closed and not asked or asked and answered
    kept = _without_titles(lead)
    texts = ["".join(block).strip() for block in blocks]
    if blocks and blocks[0][0] == _FIRST:
        texts[0] = _FIRST + texts[0].removeprefix(_FIRST.strip()).strip()
    return kept + [text for text in texts if text], len(lead) - len(kept)


def _authors(text: str, split_newlines: bool) -> list[str]:
    parts = [part.strip() for part in text.split("---") if part.strip()] or [text.strip()]
    if not split_newlines:
        return parts
    if not (re.search(_QUESTION, text) and re.search(_ANSWER, text)):
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
    """Return the documents to train on for ``limit`` pieces of a self-edit; ``edit=None`` is the passage-only arm."""
    pieces = [] if edit is None else split_edit(edit, split_newlines, protocol, prompts)[:limit]
    documents = [TrainingDocument(prompts.training_text(passage.title, piece), "edit") for piece in pieces]
    if add_passage:
        documents.append(TrainingDocument(prompts.training_text(passage.title, passage.text.strip()), "passage"))
    return documents
