"""Review texts by rules, before a model learns them. A kind of finding is a row of `FINDING_KINDS`.

The rules find orders to the model that reads a text, text that a person does not see, calls of tools, personal data,
one sentence over and over, lines that their passage does not support, and lines that contradict what was learned
before. They catch careless and simple attacks; an attacker who knows the rules can write around them
(docs/security.md). The module imports no torch, calls no model and changes no text.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from seal_lib.grading.graders import normalise
from seal_lib.records import Passage, SelfEdit
from seal_lib.runs import yaml_files

EXCERPT = 80  # characters of a text that a finding shows


@dataclass(frozen=True)
class Finding:
    """One finding: its kind (a key of `FINDING_KINDS`), the piece of text, and the detail."""

    kind: str
    excerpt: str
    detail: str

    @property
    def stops(self) -> bool:
        """True if it keeps a text from being learned unless a person allows its kind."""
        return FINDING_KINDS[self.kind][1]


def _excerpt(text: str) -> str:
    """Return a piece of text on one line, shortened, with invisible characters escaped."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in " ".join(text.split()))
    return shown if len(shown) <= EXCERPT else shown[: EXCERPT - 1] + "…"


# ---------------------------------------------------------------------------------------------- a text by itself


@lru_cache
def _patterns(kind: str) -> dict[str, re.Pattern[str]]:
    """Return the patterns of a kind of finding, by the detail that a match reports."""
    rows = yaml_files.read(Path(__file__).with_name("review.yaml"))
    words = {f"<{name}>": value for name, value in rows["words"].items()}
    found = {}
    for told, patterns in rows[kind].items():
        whole = "|".join(f"(?:{pattern})" for pattern in patterns)
        for name, value in words.items():
            whole = whole.replace(name, value)
        found[told] = re.compile(whole, re.IGNORECASE | re.MULTILINE | re.DOTALL)
    return found


def _matches(kind: str, text: str) -> Iterator[tuple[str, str]]:
    for told, pattern in _patterns(kind).items():
        for found in pattern.finditer(text):
            yield text[max(0, found.start() - 10) : found.end() + 30], told


def _orders(text: str) -> Iterator[tuple[str, str]]:
    """Yield orders to the model, also those with unseen characters between their letters."""
    seen = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return _matches("instruction", seen)


_JOINERS = "\u200c\u200d"  # part of how Persian, Indic scripts and emoji are written
_MARKS = "\u00ad\u200e\u200f\u061c\ufeff"  # soft hyphen, marks of direction, byte order mark at the start
_BLOB = re.compile(r"(?<![\w+/])[A-Za-z0-9+/_-]{60,}={0,2}(?![\w+/])")


def _hidden(text: str) -> Iterator[tuple[str, str]]:
    for number, char in enumerate(text):
        if _unseen(text, number):
            yield text[max(0, number - 20) : number + 20], f"character U+{ord(char):04X}, which nobody sees"
    for word in re.findall(r"\w+", text):
        scripts = {name for c in word if (name := _script(c))}
        if len(scripts) > 1:
            yield word, f"letters of {' and '.join(sorted(scripts))} in one word"
    for found in _BLOB.finditer(text):
        if all(re.search(kind, found.group()) for kind in ("[a-z]", "[A-Z]", "[0-9]")):
            yield found.group(), "a block of encoded text"
    yield from _matches("hidden", text)


def _unseen(text: str, number: int) -> bool:
    """Return True if the character hides something: it has no width, is a tag, or changes the direction of text."""
    char = text[number]
    if unicodedata.category(char) != "Cf" or char in _MARKS:
        return char == "\ufeff" and number > 0
    if char in _JOINERS:
        around = text[max(0, number - 2) : number] + text[number + 1 : number + 3]
        return not any(unicodedata.category(c) in ("So", "Sk", "Mn", "Mc", "Lo") or c == "\ufe0f" for c in around)
    if "\U000e0020" <= char <= "\U000e007f":  # regional flags are a black flag with such tags
        return "\U0001f3f4" not in text[max(0, number - 8) : number]
    if "\u2066" <= char <= "\u2069":  # isolates are how right-to-left text quotes other text
        return not any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
    return True


def _script(char: str) -> str:
    """Return Latin, Cyrillic or Greek for a letter of these scripts, which can pass for one another's; otherwise ""."""
    name = unicodedata.name(char, "").partition(" ")[0] if char.isalpha() else ""
    return name.title() if name in ("LATIN", "CYRILLIC", "GREEK") else ""


_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:\s?[A-Z0-9]{2,4}){3,8}\b")
_CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d.-])")


def _personal(text: str) -> Iterator[tuple[str, str]]:
    yield from _matches("personal", text)
    for found in _IBAN.finditer(text):
        if _iban(re.sub(r"\s", "", found.group())):
            yield found.group(), "a bank account"
    for found in _CARD.finditer(text):
        digits = re.sub(r"\D", "", found.group())
        if _luhn(digits) and digits[0] in "3456" and len(set(digits)) > 2:
            yield found.group(), "a card number"
    person = [pattern.search(text) for pattern in _patterns("person").values()]
    if all(person):
        yield " … ".join(found.group() for found in person if found), "birth and address of a person"


def _iban(text: str) -> bool:
    """Return True if the rearranged number is 1 modulo 97 (ISO 13616)."""
    return 15 <= len(text) <= 34 and int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def _luhn(digits: str) -> bool:
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")
REPEATS = 4  # a sentence that a text has so often is flagged
ALIKE = 0.75  # two sentences with this share of common words say the same
CLAIM = 3  # so many frequent long words in one sentence are a claim, however it is put
CLAIMED = 5  # a claim in so many sentences, and in four of ten, is flagged


def sentences(text: str) -> list[str]:
    """Return sentences and lines, in order, without list marks."""
    found = (re.sub(r"^[\s>*•#\d.)-]+", "", piece).strip() for piece in _SENTENCE.split(text))
    return [piece for piece in found if piece]


def _floods(text: str) -> Iterator[tuple[str, str]]:
    said = [(piece, Counter(normalise(piece).split())) for piece in sentences(text)]
    said = [(piece, words) for piece, words in said if sum(words.values()) >= 3]
    for first, (piece, words) in enumerate(said):
        alike = [i for i, (_, other) in enumerate(said) if _overlap(words, other) >= ALIKE]
        if alike[0] == first and len(alike) >= REPEATS and len(alike) >= 0.3 * len(said):
            yield piece, f"said {len(alike)} times in {len(said)} sentences"
            return
    held = Counter(word for _, words in said for word in words if len(word) > 3)
    often = {word for word, n in held.items() if n >= CLAIMED and n >= 0.4 * len(said)}
    claims = [piece for piece, words in said if len(often & words.keys()) >= CLAIM]
    if len(claims) >= CLAIMED and len(claims) >= 0.4 * len(said):
        yield claims[0], f"{', '.join(sorted(often))} together in {len(claims)} of {len(said)} sentences"


def _overlap(one: Counter, other: Counter) -> float:
    """Return the shared words of two sentences over all their words."""
    return sum((one & other).values()) / max(1, sum((one | other).values()))


#: kind → (function that finds it in a text, whether it stops a text, description)
FINDING_KINDS: dict[str, tuple[Callable[[str], Iterable[tuple[str, str]]] | None, bool, str]] = {
    "instruction": (_orders, True, "an order to the model that reads it"),
    "hidden": (_hidden, True, "text that a person does not see"),
    "tool": (partial(_matches, "tool"), True, "a call of a tool, or code that is run"),
    "personal": (_personal, True, "personal data or a secret"),
    "flood": (_floods, True, "one sentence over and over"),
    "contradiction": (None, True, "says otherwise than what was learned before"),
    "ungrounded": (None, False, "names or numbers that its passage does not have"),
    "duplicate": (None, False, "a line that stood there before"),
}


def of_text(text: str) -> list[Finding]:
    """Return the findings in a text by itself; of several with the same kind and detail, the first."""
    found: dict[tuple[str, str], Finding] = {}
    for kind, (finder, _, _) in FINDING_KINDS.items():
        for piece, detail in finder(text) if finder else ():
            found.setdefault((kind, detail), Finding(kind, _excerpt(piece), detail))
    return list(found.values())


# ---------------------------------------------------------------------------------------------- against other texts

_NAME = re.compile(r"\d[\d.,:/-]*\d|\d|[^\W\d_]\w*")


def _names(line: str) -> list[str]:
    """Return a line's numbers and capitalised words; its first word only if another capitalised one follows."""
    words = _NAME.findall(line)
    return [
        word
        for i, word in enumerate(words)
        if word[0].isdigit() or (word[0].isupper() and (i or (len(words) > 1 and words[1][0].isupper())))
    ]


def lacking(line: str, passage: Passage) -> list[str]:
    """Return the names and numbers of a line that are not in the passage; what the line says of them is not checked."""
    there = {normalise(word) for word in _NAME.findall(f"{passage.title}\n{passage.text}")}
    return [word for word in _names(line) if normalise(word) not in there]


_WORD = re.compile(r"\w[\w’'-]*")


def otherwise(line: str, earlier: str) -> bool:
    """Return True if two lines differ in a single word or number, neither one of the first two nor part of a name.

    So "Kale worked for Mera." and "Kale worked for Tadar." contradict each other; "Kale Bo" and "Zo Bo" are two people.
    Two prizes that one person won are also reported, although both may be true: a finding asks a person to look.
    Contradictions in other words are not found.
    """
    one, other = (list(_WORD.finditer(text)) for text in (line, earlier))
    if len(one) != len(other) or len(one) < 4:
        return False
    differ = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a[0].lower() != b[0].lower()]
    return len(differ) == 1 and differ[0] >= 2 and not _in_name(line, one, differ[0])


def _in_name(line: str, words: Sequence[re.Match[str]], at: int) -> bool:
    """Return True if a word and one next to it are one name: both capitalised, with only a space between them."""
    pairs = [(i, i + 1) for i in (at - 1, at) if 0 <= i and i + 1 < len(words)]
    return any(
        words[a][0][0].isupper() and words[b][0][0].isupper() and line[words[a].end() : words[b].start()].isspace()
        for a, b in pairs
    )


def lines_of(edit: SelfEdit | None) -> list[str]:
    """Return the lines of a self-edit that are not blank."""
    return [line for line in edit.text.splitlines() if line.strip()] if edit else []


class Lines:
    """Lines that were learned, each from a passage, indexed by all their words but one, so that few are compared.

    ``passages``: ids of the passages that have lines.
    """

    def __init__(self) -> None:
        self.passages: set[str] = set()
        self._by_words: dict[tuple, list[tuple[str, str]]] = {}

    def add(self, lines: Iterable[str], passage: str = "") -> None:
        self.passages.add(passage)
        for line in lines:
            for key in _all_but_one(line):
                self._by_words.setdefault(key, []).append((line, passage))

    def against(self, line: str, passage: str = "") -> str:
        """Return a line of another passage that contradicts this one (`otherwise`); "" if there is none."""
        alike = (old for key in _all_but_one(line) for old in self._by_words.get(key, ()))
        return next((old for old, of in alike if (not passage or of != passage) and otherwise(line, old)), "")


def _all_but_one(line: str) -> list[tuple]:
    words = tuple(found[0].lower() for found in _WORD.finditer(line))
    return [(words[:i], words[i + 1 :]) for i in range(2, len(words))]


def of_edit(lines: Sequence[str], passage: Passage, earlier: Lines | None = None) -> list[Finding]:
    """Return the findings in a self-edit's lines, given its passage and ``earlier`` lines of other passages."""
    found, seen = [], set()
    for line in lines:
        key = normalise(line)
        if key in seen:
            found.append(Finding("duplicate", _excerpt(line), "stands there before"))
        seen.add(key)
        if absent := lacking(line, passage):
            found.append(Finding("ungrounded", _excerpt(line), f"not in the passage: {', '.join(absent)[:60]}"))
        if earlier and (against := earlier.against(line, passage.id)):
            found.append(Finding("contradiction", _excerpt(line), f"earlier: {_excerpt(against)}"))
    return found


def stopped(findings: Sequence[Finding], allow: Sequence[str] = ()) -> str:
    """Return in one line why a text is kept from being learned; "" if nothing in it stops it."""
    stopping = [finding for finding in findings if finding.stops and finding.kind not in allow]
    if not stopping:
        return ""
    first = stopping[0]
    more = f", and {len(stopping) - 1} more" if len(stopping) > 1 else ""
    return f"{FINDING_KINDS[first.kind][2]} ({first.detail}: {first.excerpt!r}){more}; `--allow {first.kind}` learns it"
