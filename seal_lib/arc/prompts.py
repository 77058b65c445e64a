"""Prompt sets of the ARC domain: the wording is data (``prompts.yaml``, or a user's file); this module fills the slots.

A question, or a request for a self-edit, has two parts, the context and the request itself. They are the system and the
user message of a chat set, and one text in any other set. Tokenizers and chat templates are handled in `render`.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from seal_lib.arc.examples import PuzzleExample
from seal_lib.arc.grids import Grid, question_text, to_text
from seal_lib.arc.tasks import Task
from seal_lib.errors import DataError, must_be_one_of
from seal_lib.loops.wording import check_slots, entries, fill


def _rows(grid: Grid) -> str:
    return "".join(" ".join(map(str, row)) + "\n" for row in grid)


#: ways to write a grid in a self-edit prompt; questions always use ``array``
GRIDS = {"array": to_text, "rows": _rows}


@dataclass(frozen=True)
class PuzzlePrompts:
    """One prompt set; the fields are described at the top of ``prompts.yaml``."""

    name: str
    chat: bool
    instruction: str
    persona: str | None
    self_edit: str
    demonstration: str
    grid: str
    stop: str

    def answer(self, grid: Grid) -> str:
        """Return the text of an answer, including its stop text."""
        return to_text(grid) + self.stop

    def question(self, example: PuzzleExample) -> tuple[str, str]:
        """Return (instruction and all demonstrations, the test input); the answer is not included."""
        shown = "".join(f"{question_text(p.input)}{self.answer(p.output)}\n" for p in example.demonstrations)
        return self.instruction + shown, question_text(example.target.input)

    def write(self, task: Task) -> tuple[str, str]:
        """Return (persona, all demonstrations and the request for a self-edit); never a test input.

        Raises:
            DataError: the task has no demonstration.
        """
        if not task.train:
            raise DataError(f"task {task.id} has no demonstration; a self-edit is written from at least one.")
        as_text = GRIDS[self.grid]
        shown = "".join(
            fill(self.demonstration, input=as_text(pair.input), output=as_text(pair.output)) for pair in task.train
        )
        return self.persona or "", fill(self.self_edit, demonstrations=shown)


def load(name: str, file: str | None = None) -> PuzzlePrompts:
    """Return the prompt set ``name`` from ``file`` if it is there, else from the shipped sets.

    Raises:
        DataError: there is no such set, a key is unknown or missing, a value has the wrong type, or a template lacks a
            slot.
    """
    sets = entries(Path(__file__).with_name("prompts.yaml"), file, "chat: …, self_edit: …")
    must_be_one_of("prompts", name, sorted(sets, key=str))
    chosen, origin = sets[name]
    where = f"{origin}, set {name!r}"
    keys = {item.name for item in fields(PuzzlePrompts)} - {"name"}
    if set(chosen) != keys:
        wrong, right = ", ".join(sorted(map(str, set(chosen) ^ keys))), ", ".join(sorted(keys))
        raise DataError(f"{where}: {wrong} missing or unknown; a set has {right}.")
    if not isinstance(chosen["chat"], bool):
        raise DataError(f"{where}, chat: {chosen['chat']!r} is not true or false.")
    for key in ("instruction", "self_edit", "demonstration", "stop"):
        if not isinstance(chosen[key], str):
            raise DataError(f"{where}, {key}: {chosen[key]!r} is not text; put it in quotes.")
    if not isinstance(chosen["persona"], str if chosen["chat"] else type(None)):
        raise DataError(f"{where}, persona: a chat set needs a text here and any other set null.")
    must_be_one_of(f"{where}, grid", chosen["grid"], GRIDS)
    if set(chosen["stop"]) <= set(to_text(((0,), (1,)))) | set("23456789"):
        raise DataError(f"{where}, stop: {chosen['stop']!r} can occur in a grid; use a sign that cannot, such as '#'.")
    check_slots(chosen, {"self_edit": ("demonstrations",), "demonstration": ("input", "output")}, where)
    return PuzzlePrompts(name=name, **chosen)
