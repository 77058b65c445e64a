"""Read files into documents: passages with titles and their places in the file. A kind of file is a row of `READERS`.

The module knows file formats and how to cut text, and nothing of models or of where documents are kept.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.knowledge import data
from seal_lib.models.checks import said
from seal_lib.records import Passage, Question
from seal_lib.store.retrieval import rank

#: most words of a passage, about as many as SQuAD's have
PASSAGE_WORDS = 150


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


@dataclass(frozen=True)
class Block:
    """A paragraph or heading from ``first`` to ``last`` (lines, pages, entries …), with questions that come with it."""

    text: str
    first: int
    last: int
    heading: bool = False
    questions: tuple[Question, ...] = ()


def read(path: str | Path, words: int = PASSAGE_WORDS) -> list[Document]:
    """The documents of a file, or of all files of known kinds in a folder and its sub-folders, in the order of names.

    Args:
        words: of a passage, at most; a longer paragraph is cut between sentences.

    Raises:
        DataError: there is nothing there, or nothing that can be read.
    """
    path = Path(path)
    if path.is_dir():
        inside = [p for p in sorted(path.rglob("*")) if p.is_file() and p.suffix.lower() in READERS]
        files = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        if not files:
            raise DataError(f"{path} has no file of a known kind ({', '.join(READERS)}); name a document.")
        documents = [_document(file, file.relative_to(path).as_posix(), words) for file in files]
        return list({document.digest: document for document in documents}.values())  # a copy teaches nothing more
    if not path.is_file():
        raise DataError(f"There is no document {path}; give a file ({', '.join(READERS)}) or a folder of such.")
    return [_document(path, path.name, words)]


def _document(path: Path, name_of_file: str, words: int) -> Document:
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: the ending {path.suffix!r} is none of {', '.join(READERS)}; convert it.")
    one, several, reader = READERS[path.suffix.lower()]
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        blocks = reader(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); mend its rights or copy it.") from error
    pieces = list(_pieces(blocks, path.stem, words))
    if not pieces:
        raise DataError(f"{path} holds no text; give a document with some.")
    found: dict[str, tuple[Passage, str]] = {}
    for title, block in pieces:
        passage = passage_of(title, block.text, block.questions)
        place = f"{one} {block.first}" if block.first == block.last else f"{several} {block.first}–{block.last}"
        found.setdefault(passage.id, (passage, place))  # a repeated one counts once
    passages, places = zip(*found.values(), strict=True)
    return Document(name_of_file, str(path.resolve()), digest, passages, places)


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
        full = sum(len(b.text.split()) for b in held) + len(block.text.split()) > words
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
    """A paragraph, cut between sentences where it is too long; one that comes with questions stays whole."""
    if block.heading or block.questions or len(block.text.split()) <= words:
        yield block
        return
    held: list[str] = []
    for sentence in re.split(r"(?<=[.!?。！？])\s+|\n", block.text):
        for part in _runs(sentence.split(), words):
            if held and len(held) + len(part) > words:
                yield replace(block, text=" ".join(held))
                held = []
            held += part
    if held:
        yield replace(block, text=" ".join(held))


def _runs(parts: list[str], size: int) -> list[list[str]]:
    return [parts[first : first + size] for first in range(0, len(parts), size)]


# ---------------------------------------------------------------------------------------------- kinds of files


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error


def _plain(path: Path) -> list[Block]:
    """Paragraphs between blank lines."""
    return _paragraphs(_text(path).splitlines(), markdown=False)


def _markdown(path: Path) -> list[Block]:
    """Paragraphs and headings (``# …``); what is fenced is text."""
    return _paragraphs(_text(path).splitlines(), markdown=True)


def _paragraphs(lines: Sequence[str], markdown: bool) -> list[Block]:
    blocks: list[Block] = []
    held: list[str] = []
    fenced = False
    for number, line in enumerate([*lines, ""], 1):
        fence = markdown and bool(re.match(r"\s*(```|~~~)", line))
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*\s*$", line) if markdown and not fenced else None
        if (heading or fence or not line.strip() and not fenced) and held:
            blocks.append(Block(_unwrapped(held), number - len(held), number - 1))
            held = []
        if heading and heading[1]:
            blocks.append(Block(heading[1], number, number, heading=True))
        elif not fence and (line.strip() or held) and not heading:
            held.append(line)
        fenced ^= fence
    if held and any(line.strip() for line in held):  # a fence that was never closed
        blocks.append(Block(_unwrapped(held), len(lines) + 2 - len(held), len(lines)))
    return blocks


def _unwrapped(lines: Sequence[str]) -> str:
    """A paragraph without its line breaks; lines of a list or a table stay lines."""
    text = ""
    for line in filter(str.strip, lines):
        apart = "\n" if re.match(r"\s*([-*+|]|\d+[.)])\s", line) else " "
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
    blocks: list[Block] = []
    held: list[str] = []
    last: Any = None
    for string in [s for s in soup.find_all(string=True) if type(s) is NavigableString] + [None]:
        block = string and (string.find_parent(_BLOCKS) or soup)
        if block is not last and (text := " ".join("".join(held).split())):
            heading = bool(re.fullmatch("h[1-6]", last.name or ""))
            blocks.append(Block(text, len(blocks) + 1, len(blocks) + 1, heading))
        if block is not last:
            held, last = [], block
        held.append(string or "")
    return blocks


_BLOCKS = (
    "address article aside blockquote body caption dd div dt figcaption footer h1 h2 h3 h4 h5 h6 header li main nav p "
    "pre section td th tr"
).split()


def _unseen(tag: Any) -> bool:
    style = "".join(str(tag.get("style", "")).lower().split())
    return tag.has_attr("hidden") or "display:none" in style or "visibility:hidden" in style


def _pdf(path: Path) -> list[Block]:
    """Read the text of each page, as pypdf extracts it."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise DataError(f'{path}: PDF needs the package pypdf; install it with `pip install -e ".[pdf]"`.') from None
    try:
        pages = [page.extract_text() for page in PdfReader(path).pages]
    except (PyPdfError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read as PDF ({said(error)[:120]}); save it anew.") from error
    blocks = []
    for number, text in enumerate(pages, 1):
        for paragraph in _paragraphs(text.splitlines(), markdown=False):
            blocks.append(replace(paragraph, first=number, last=number))
    if not blocks:
        raise DataError(f"{path} has pages without any text (a scan?); run text recognition on it first.")
    return blocks


def _json(path: Path) -> list[Block]:
    """Passages as `seal_lib.knowledge.data` takes them, with questions or none; ``{text}`` rows; messages of a talk."""
    value = paths.read_data(path)
    rows = value.get("messages", value) if isinstance(value, dict) else value
    if isinstance(rows, list) and rows and all(isinstance(row, dict) and "role" in row for row in rows):
        return [Block(f"{row['role']}: {_said(row, path)}", n, n) for n, row in enumerate(rows, 1)]
    if isinstance(rows, list):
        value = [_as_passage(row, path.stem) for row in rows]
    blocks = []
    for number, passage in enumerate(data.passages_of(value, path.stem, str(path), unasked=True), 1):
        blocks.append(Block(passage.title, number, number, heading=True))
        blocks.append(Block(passage.text, number, number, questions=passage.questions))
    return blocks


def _said(row: dict, path: Path) -> str:
    if not isinstance(row.get("content"), str):
        raise DataError(f"{path}: the content of a message is {row.get('content')!r}, not text; leave it out.")
    return row["content"]


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
    ".txt": ("line", "lines", _plain),
    ".html": ("paragraph", "paragraphs", _html),
    ".htm": ("paragraph", "paragraphs", _html),
    ".pdf": ("page", "pages", _pdf),
    ".json": ("entry", "entries", _json),
    ".jsonl": ("entry", "entries", _json),
}
