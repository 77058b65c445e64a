"""Prompt sets. Wordings are data (``prompts.yaml``, or a user's file); this module only fills slots."""

from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

from seal_lib.errors import DataError, must_be_one_of
from seal_lib.loops.wording import check_slots, entries, fill
from seal_lib.records import Passage, Question

_SLOTS = {
    "self_edit": ("passage", "title"),
    "answer": ("question", "title"),
    "answer_in_context": ("passage", "question", "title"),
    "document": ("text", "title"),
}
#: parts of a self-edit that may be one document
PIECES = ("lines", "parts")
#: mark between reasoning and answer
ANSWER = "Answer:"


@dataclass(frozen=True)
class Prompts:
    """One prompt set; fields are described at the top of ``prompts.yaml``."""

    name: str
    self_edit: str
    answer: str
    answer_in_context: str
    document: str
    stop: str | None
    opening: str = ""
    pieces: str = "lines"
    after: str = ""
    reasons: int = 0

    def write(self, passage: Passage) -> str:
        """Return the prompt after which the policy writes a self-edit about ``passage``.

        A space at the end of the opening is left out: it belongs to the next word, so the policy writes it.
        """
        return fill(self.self_edit, title=passage.title, passage=passage.text) + self.opening.rstrip()

    @property
    def unopened(self) -> "Prompts":
        """The set without opening, for a writer that begins the text: another model, or a policy learning it whole."""
        return replace(self, opening="")

    def opened(self, written: str) -> str:
        """Return the whole self-edit of which the policy wrote ``written`` after the opening; empty stays empty."""
        return self.opening + written if written.strip() else written

    def ask(self, passage: Passage, question: Question, in_context: bool = False) -> str:
        template = self.answer_in_context if in_context else self.answer
        return fill(template, title=passage.title, passage=passage.text, question=question.question)

    def asking(self, other: "Prompts") -> "Prompts":
        """Return this set with the question prompts of another set."""
        return replace(
            self, answer=other.answer, answer_in_context=other.answer_in_context, stop=other.stop, reasons=other.reasons
        )

    def answered(self, written: str) -> str:
        """Return the answer in a text: all of it or, in a set with ``reasons``, the line after `ANSWER`, "" if none."""
        if self.reasons:
            written = (written.partition(ANSWER)[2].strip().splitlines() or [""])[0]
        return written.strip()

    def training_text(self, title: str, text: str) -> str:
        return fill(self.document, title=title, text=text)


def load(name: str, file: str | None = None) -> Prompts:
    """Return the prompt set ``name`` from ``file`` if it is there, otherwise from the shipped sets.

    Raises:
        DataError: there is no such set, a key is unknown, missing or invalid, or a template lacks a slot.
    """
    sets = entries(Path(__file__).with_name("prompts.yaml"), file, "self_edit: …, answer: …")
    must_be_one_of("prompts", name, sorted(sets, key=str))
    chosen, origin = sets[name]
    where = f"{origin}, set {name!r}"
    keys = {item.name: item.default is MISSING for item in fields(Prompts) if item.name != "name"}
    wrong = {key for key, needed in keys.items() if needed} - set(chosen) | set(chosen) - set(keys)
    if wrong:
        raise DataError(
            f"{where}: {', '.join(sorted(map(str, wrong)))} missing or unknown; a set has "
            f"{', '.join(sorted(key for key, needed in keys.items() if needed))}, and may have "
            f"{', '.join(sorted(key for key, needed in keys.items() if not needed))}."
        )
    for key, value in chosen.items():
        if key == "reasons":
            continue  # a number, checked elsewhere
        if not isinstance(value, str) and not (key == "stop" and value is None) or key == "stop" and value == "":
            null = " or null" if key == "stop" else ""
            raise DataError(f"{where}, {key}: {value!r} is not a text{null}; put it in quotes.")
    must_be_one_of(f"{where}, pieces", chosen.get("pieces", PIECES[0]), PIECES)
    reasons = chosen.get("reasons", 0)
    if not isinstance(reasons, int) or isinstance(reasons, bool) or reasons < 0:
        raise DataError(f"{where}, reasons: {reasons!r} is no number of tokens; give 0 or more.")
    check_slots(chosen, _SLOTS, where)
    return Prompts(name=name, **chosen)
