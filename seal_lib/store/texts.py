"""Read files into documents: passages with titles and their places in the file. A kind of file is a row of `READERS`.

The module knows file formats and how to cut text, and nothing of models or of where documents are kept.
"""

import hashlib
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.knowledge import data
from seal_lib.models.checks import said
from seal_lib.records import Passage, Question
from seal_lib.store.retrieval import UNSPACED, rank

#: most words of a passage, about as many as SQuAD's have
PASSAGE_WORDS = 150


@dataclass(frozen=True)
class Part:
    """A passage with the name of its document and its place there."""

    passage: Passage
    document: str
    place: str

    @property
    def id(self) -> str:
        return self.passage.id


@dataclass(frozen=True)
class Document:
    """A file as passages. ``digest``: sha256 of its bytes; ``places``: where in the file each passage stands.

    A passage's id comes from its title and text, so it is the same in every version of a file that has it.
    """

    name: str
    source: str
    digest: str
    passages: tuple[Passage, ...]
    places: tuple[str, ...]

    @property
    def parts(self) -> list[Part]:
        return [Part(passage, self.name, at) for passage, at in zip(self.passages, self.places, strict=True)]


@dataclass(frozen=True)
class Block:
    """A paragraph or heading from ``first`` to ``last`` (lines, pages, entries …), with questions that come with it."""

    text: str
    first: int
    last: int
    heading: bool = False
    questions: tuple[Question, ...] = ()


def read(path: str | Path, words: int = PASSAGE_WORDS, tell: Callable[[str], object] = warnings.warn) -> list[Document]:
    """Return the documents of a file, or of all files in a folder and its sub-folders, sorted by name.

    Args:
        words: most words of a passage; a longer paragraph is cut between sentences.
        tell: called with a sentence for each thing left out of a folder; one bad file does not affect the others.

    Raises:
        DataError: there is nothing there, or nothing that can be read.
    """
    path = Path(path)
    if path.is_dir():
        inside = {p: p.relative_to(path) for p in sorted(path.rglob("*")) if p.is_file()}
        files = [p for p, at in inside.items() if not any(part.startswith(".") for part in at.parts)]
        if others := [p.suffix or p.name for p in files if p.suffix.lower() not in READERS]:
            tell(f"{path}: {len(others)} files of other kinds are left out ({', '.join(sorted(set(others)))}).")
        documents = {}
        for file in (p for p in files if p.suffix.lower() in READERS):
            try:
                document = _document(file, inside[file].as_posix(), words)
            except DataError as error:
                tell(f"left out: {error}")
            else:
                documents[document.digest] = document  # copies count once
        if not documents:
            raise DataError(f"{path} has no file that can be read ({', '.join(READERS)}); name a document.")
        return list(documents.values())
    if not path.is_file():
        raise DataError(
            f"There is no document {path} on this machine; give a file ({', '.join(READERS)}) or a folder of such."
        )
    return [_document(path, path.name, words)]


def _document(path: Path, name_of_file: str, words: int) -> Document:
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: the ending {path.suffix!r} is none of {', '.join(READERS)}; convert it.")
    one, several, reader = READERS[path.suffix.lower()]
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        blocks = reader(path)
        "".join(block.text for block in blocks).encode()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); mend its rights or copy it.") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{path} holds half a character ({error.reason}); save it as UTF-8.") from error
    found: dict[str, tuple[Passage, str]] = {}
    for title, block in _pieces(blocks, path.stem, words):
        passage = passage_of(title, block.text, block.questions)
        place = f"{one} {block.first}" if block.first == block.last else f"{several} {block.first}–{block.last}"
        found.setdefault(passage.id, (passage, place))  # a repeated one counts once
    if not found:
        raise DataError(f"{path} holds no text; give a document with some.")
    passages, places = zip(*found.values(), strict=True)
    return Document(name_of_file, str(path.resolve()), digest, passages, places)


def has_texts(row: object, *keys: str) -> bool:
    """Return True if a value is an object with a text under each of these keys."""
    return isinstance(row, Mapping) and all(isinstance(row.get(key), str) for key in keys)


def passage_of(title: str, text: str, questions: tuple[Question, ...] = ()) -> Passage:
    """Return a passage whose id comes from its title and text."""
    return Passage(hashlib.sha256(f"{title}\x1f{text}".encode()).hexdigest()[:16], title, text, questions)


def with_questions(document: Document, questions: Sequence[Question]) -> Document:
    """Return the document with each question at the passage that it is about; an answer may be empty (not known yet).

    Raises:
        DataError: a question shares no word with any of several passages.
    """
    asked: dict[str, list[Question]] = {passage.id: list(passage.questions) for passage in document.passages}
    for question in questions:
        found = rank(question.question, document.passages) or document.passages[: len(document.passages) == 1]
        if not found:
            raise DataError(
                f"question {question.question!r} shares no word with {document.name}; say in it what it is about."
            )
        asked[found[0].id].append(question)
    passages = tuple(replace(passage, questions=tuple(asked[passage.id])) for passage in document.passages)
    return replace(document, passages=passages)


# ---------------------------------------------------------------------------------------------- cutting


def _pieces(blocks: Iterable[Block], title: str, words: int) -> Iterator[tuple[str, Block]]:
    """Yield (title, block of a passage): paragraphs under one heading, joined up to ``words`` words."""
    held: list[Block] = []
    for block in (part for whole in blocks for part in _parts(whole, words)):
        full = sum(len(_words(b.text)) for b in held) + len(_words(block.text)) > words
        apart = block.questions or any(b.questions for b in held)  # questions stay with their own text
        if held and (block.heading or full or apart):
            yield title, _joined(held)
            held = []
        if block.heading:
            title = block.text
        else:
            held.append(block)
    if held:
        yield title, _joined(held)


def _joined(blocks: Sequence[Block]) -> Block:
    questions = tuple(question for block in blocks for question in block.questions)
    return Block("\n".join(b.text for b in blocks), blocks[0].first, blocks[-1].last, questions=questions)


def _parts(block: Block, words: int) -> Iterator[Block]:
    """Yield a paragraph, cut between sentences if it is too long; one that comes with questions stays whole."""
    if block.heading or block.questions or len(_words(block.text)) <= words:
        yield block
        return
    held: list[str] = []
    for sentence in re.split(r"(?<=[.!?])(?=\s)|(?<=[。！？])|(?=\n)", block.text):
        found = _words(sentence)
        for part in (found[first : first + words] for first in range(0, len(found), words)):
            if held and len(held) + len(part) > words:
                yield replace(block, text="".join(held).strip())
                held = []
            held += part
    if held:
        yield replace(block, text="".join(held).strip())


def _words(text: str) -> list[str]:
    """Return the words of a text, each with the space before it; for a script without spaces, its characters."""
    return re.findall(rf"\s*(?:[{UNSPACED}]|[^\s{UNSPACED}]{{1,64}})", text)


# ---------------------------------------------------------------------------------------------- kinds of files


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    if "\0" in text:  # another kind of file, or UTF-16 without a byte order mark
        raise DataError(f"{path} is not text (character {text.index(chr(0))} is zero); save it as UTF-8 text.")
    return text


def _paragraphs(text: str) -> list[Block]:
    """Return paragraphs, which blank lines separate."""
    blocks = []
    for written, part in groupby(enumerate(text.splitlines(), 1), key=lambda line: bool(line[1].strip())):
        if written:
            numbers, lines = zip(*part, strict=True)
            blocks.append(Block(_unwrapped(lines, _TURN), numbers[0], numbers[-1]))
    return blocks


def _markdown(path: Path) -> list[Block]:
    """Read headings, paragraphs, lists, tables and code, each as it is written, and the title of a front matter."""
    from markdown_it import MarkdownIt

    lines, before = _text(path).splitlines(), 0
    blocks = []
    if lines[:1] == ["---"] and "---" in lines[1:]:
        before = lines.index("---", 1) + 1
        titles = [found[1] for line in lines[:before] if (found := re.match(r"title:\s*[\"']?(.+?)[\"']?\s*$", line))]
        blocks = [Block(title, 1, before, heading=True) for title in titles[:1]]
    # link definitions stay text, so that nothing can be hidden in them
    tokens = MarkdownIt().enable("table").disable("reference").parse("\n".join(lines[before:]))
    for number, token in enumerate(tokens):
        if token.level or not token.map or token.type == "hr":
            continue
        part = lines[before + token.map[0] : before + token.map[1]]
        while not part[-1].strip():
            part.pop()
        heading, code = token.type == "heading_open", token.type in ("fence", "code_block")
        text = tokens[number + 1].content if heading else token.content.rstrip() if code else _unwrapped(part)
        if text:
            first = before + token.map[0] + 1
            blocks.append(Block(text, first, first + len(part) - 1, heading))
    return blocks


_ITEM = r"\s*(?:[-*+]\s|\||\d+[.)]\s)"  # begins a line of a list or a table
_TURN = rf"{_ITEM}|[A-Z][\w .-]{{0,30}}:\s"  # … or of a talk


def _unwrapped(lines: Sequence[str], begins: str = _ITEM) -> str:
    """Return a paragraph without its line breaks, except before lines that match ``begins``."""
    text = ""
    for line in filter(str.strip, lines):
        apart = "\n" if re.match(begins, line) else " "
        text += (apart if text else "") + " ".join(line.split())
    return text


def _html(path: Path) -> list[Block]:
    """Read what a person sees of a page: no scripts, styles, comments, nor elements marked as hidden."""
    from bs4 import BeautifulSoup
    from bs4.element import NavigableString

    soup = BeautifulSoup(path.read_bytes(), "html.parser")
    hidden = ["script", "style", "template", "noscript", "head"]
    for element in soup.find_all(lambda tag: tag.name in hidden or _unseen(tag)):
        element.decompose()
    for element in soup.find_all("br"):
        element.replace_with("\n")
    for element in soup.find_all(["td", "th"]):
        if element.find_previous_sibling(["td", "th"]):
            element.insert_before(" | ")
    blocks: list[Block] = []
    strings = [s for s in soup.find_all(string=True) if type(s) is NavigableString]
    for _, part in groupby(strings, key=lambda string: id(string.find_parent(_BLOCKS) or soup)):
        held = list(part)
        name = getattr(held[0].find_parent(_BLOCKS), "name", "")
        text = "".join(held).strip("\n") if name == "pre" else " ".join("".join(held).split())
        if text.strip("| \n"):
            blocks.append(Block(text, len(blocks) + 1, len(blocks) + 1, bool(re.fullmatch("h[1-6]", name))))
    return blocks


_BLOCKS = (
    "address article aside blockquote body caption dd div dt figcaption footer h1 h2 h3 h4 h5 h6 header li main nav p "
    "pre section tr"
).split()


def _unseen(tag: Any) -> bool:
    style = "".join(str(tag.get("style", "")).lower().split())
    return tag.has_attr("hidden") or "display:none" in style or "visibility:hidden" in style


def _pdf(path: Path) -> list[Block]:
    """Read the text of each page, as pypdf extracts it."""
    try:
        from pypdf import PdfReader
    except ImportError:
        raise DataError(f'{path}: PDF needs the package pypdf; install it with `pip install -e ".[pdf]"`.') from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # hide its warnings about what it repairs
    try:
        pages = [page.extract_text() for page in PdfReader(path).pages]
    except Exception as error:  # pypdf raises errors of any kind on a damaged file
        raise DataError(f"{path} cannot be read as PDF ({said(error)[:120]}); save it anew.") from error
    blocks = [
        replace(paragraph, first=number, last=number)
        for number, text in enumerate(pages, 1)
        for paragraph in _paragraphs(text)
    ]
    if not blocks:
        raise DataError(f"{path} has pages without any text (a scan?); run text recognition on it first.")
    return blocks


def _json(path: Path) -> list[Block]:
    """Read passages in the layouts of `seal_lib.knowledge.data`, with questions or without; ``{text}`` rows; chats."""
    value = paths.read_data(path)
    rows = value if isinstance(value, list) else [value]
    talks = [_talk(row, path.stem) for row in rows]
    if None in talks:
        talks = [_talk({"messages": value}, path.stem)]
    if None not in talks:
        return [block for n, talk in enumerate(talks, 1) for block in _turns(talk or [], n if len(talks) > 1 else 0)]
    value = [_as_passage(row, path.stem) for row in rows] if isinstance(value, list) else _as_passage(value, path.stem)
    blocks = []
    for number, passage in enumerate(data.passages_of(value, path.stem, str(path), unasked=True), 1):
        blocks.append(Block(passage.title, number, number, heading=True))
        blocks.append(Block(passage.text, number, number, questions=passage.questions))
    return blocks


#: keys in exported chats: the list of turns, the speaker, the text
_TURNS, _WHO = ("messages", "conversations", "chat_messages"), ("role", "from", "sender", "author")
_SAID = ("content", "value", "text", "parts")


def _talk(value: object, title: str) -> list[str] | None:
    """Return the title of a chat and its turns, ``who: what``, as assistants export them; None if it is no chat."""
    if not isinstance(value, dict):
        return None
    nodes, turns = value.get("mapping"), next((value[key] for key in _TURNS if isinstance(value.get(key), list)), None)
    if isinstance(nodes, dict):
        turns = _branch(nodes, value.get("current_node"))
    if turns is None or not all(isinstance(turn, dict) and set(_WHO) & set(turn) for turn in turns):
        return None
    told = [(_under(turn, _WHO), _under(turn, _SAID)) for turn in turns]
    heads = (value.get(key) for key in ("title", "name"))
    return [next(filter(None, map(_said, heads)), title), *(f"{who}: {what}" for who, what in told if what.strip())]


def _branch(nodes: dict, last: object) -> list:
    """Return the turns that were shown last in a chat that is kept as a tree, as ChatGPT exports it."""
    found: list[Any] = []
    for _ in nodes:  # from the last turn to the first; a cycle cannot go on for ever
        node = nodes.get(str(last)) or {}
        found, last = [node.get("message"), *found], node.get("parent")
    return [turn for turn in found if turn]


def _under(value: dict, keys: Sequence[str]) -> str:
    return _said(next((value[key] for key in keys if key in value), ""))


def _said(value: object) -> str:
    """Return a text, however it is wrapped; "" for pictures, tool calls and other things."""
    if isinstance(value, dict):
        return _under(value, ("role", *_SAID))
    if isinstance(value, list):
        return "\n".join(filter(None, map(_said, value)))
    return value if isinstance(value, str) else ""


def _turns(talk: Sequence[str], number: int) -> list[Block]:
    """Return a chat as blocks, whose place is the number of the turn or, given one, that of the chat."""
    head, *turns = talk
    return [Block(head, 1, 1, heading=True), *(Block(t, number or n, number or n) for n, t in enumerate(turns, 1))]


def _as_passage(row: object, title: str) -> object:
    """Return a row ``{text}``, or a bare text, in the layout of a passage."""
    if isinstance(row, str):
        row = {"text": row}
    if isinstance(row, dict) and "text" in row and "context" not in row:
        row = {"title": row.get("title", title), "context": row["text"], "questions": row.get("questions", [])}
    return row


#: file extension → (name of a place in such a file, its plural, function that reads a file's blocks)
READERS: dict[str, tuple[str, str, Callable[[Path], list[Block]]]] = {
    ".md": ("line", "lines", _markdown),
    ".markdown": ("line", "lines", _markdown),
    ".txt": ("line", "lines", lambda path: _paragraphs(_text(path))),
    ".html": ("paragraph", "paragraphs", _html),
    ".htm": ("paragraph", "paragraphs", _html),
    ".pdf": ("page", "pages", _pdf),
    ".json": ("entry", "entries", _json),
    ".jsonl": ("entry", "entries", _json),
}
