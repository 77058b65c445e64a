"""``seal learn | ask | list | show | revert | export | import``: the functions of this package from a shell.

Settings come from the parameters of the notebook ``03_your_document`` at a scale, so that both do the same.
"""

import argparse
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import ParameterError
from seal_lib.knowledge import prompts
from seal_lib.knowledge.domain import InnerLoop, Knowledge
from seal_lib.loops.policy import Policy, Source
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Question, to_dict
from seal_lib.runs import params
from seal_lib.runs.lifecycle import Scratch
from seal_lib.runs.progress import Progress
from seal_lib.store.asking import Reply, ask
from seal_lib.store.database import STAGES, Edit, Store
from seal_lib.store.learning import OwnQuestions, accuracy, learn
from seal_lib.store.sharing import export, take_in
from seal_lib.store.texts import read, with_questions

NOTEBOOK = "03_your_document"
HEADS = {"before": "before", "in_view": "passage in view", "after": "after"}
WIDTH = 60  # of a column, in characters


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the commands to a parser; each sets ``act``, which does it and returns what to print."""
    for name, (act, text, arguments) in _COMMANDS.items():
        command = commands.add_parser(name, help=text)
        for flag, about in arguments.items():
            command.add_argument(flag, **about)
        command.add_argument("--store", default="", help="folder that keeps all (default: data/store)")
        command.add_argument("--json", action="store_true", help="print JSON")
        if name in ("learn", "ask", "import"):
            command.add_argument("--model", default="", help="shipped model, folder, or owner/name on the Hub")
            command.add_argument("--scale", default="", help=f"whose settings: params/{NOTEBOOK}/SCALE.yaml")
            command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting")
        command.set_defaults(act=act)


def run(given: argparse.Namespace) -> int:
    """Do a command and print what it found."""
    found, text = given.act(given)
    print(json.dumps(to_dict(found), indent=2, ensure_ascii=False) if given.json else text)
    return 0


# ---------------------------------------------------------------------------------------------- what is needed


class Bar(Scratch):
    """Keeps no rows, and shows how far a phase is where somebody looks at a terminal."""

    def map(self, phase: str, units: Sequence, fn: Callable[[list], list[dict]], chunk: int = 32) -> list[dict]:
        bar = Progress(phase, total=len(units))
        rows: list[dict] = []
        for first in range(0, len(units), chunk):
            part = list(units[first : first + chunk])
            rows += super().map(phase, part, fn, chunk)
            bar.update(len(part))
        bar.close()
        return rows


@dataclass(frozen=True)
class Session:
    """A model with its settings, as the parameters of the notebook say."""

    policy: Policy
    domain: Knowledge
    outer: OuterLoop
    own: OwnQuestions


def session(values: dict[str, Any]) -> Session:
    """Load the model and make the settings from parameters (those of `NOTEBOOK`)."""
    source = Source(values["model"], values["dtype"], values["revision"])
    policy = Policy("untrained", *source.load(values["device"]), values["engine"], source)
    wording = prompts.load(values["prompts"])
    domain = Knowledge(params.pick(InnerLoop, values), wording)
    outer = OuterLoop(**{key: values[key] for key in ("samples", "temperature", "top_p", "edit_tokens")})
    return Session(
        policy, domain, outer, OwnQuestions(prompts.load(values["question_prompts"]), values["question_samples"])
    )


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """The parameters that a command asks for."""
    pairs = [pair.partition("=") for pair in given.set]
    wrong = next((key for key, mark, _ in pairs if not mark), None)
    if wrong is not None:
        raise ParameterError(f"--set {wrong} has no value; write --set {wrong}=VALUE.")
    values: dict[str, object] = {key: value for key, _, value in pairs}
    if given.model:
        values["model"] = given.model
    shipped = str(values.get("model", "seedling-")).startswith("seedling-")
    return params.resolve(NOTEBOOK, given.scale or ("seedling" if shipped else "small"), values)


def store_of(folder: str) -> Store:
    """The store in a folder a person named, or the usual one."""
    return Store(Path(folder).expanduser() if folder else paths.data() / "store")


# ---------------------------------------------------------------------------------------------- the commands


def _learn(given: argparse.Namespace) -> tuple[list[Edit], str]:
    values = settings(given)
    document = Path(given.document).expanduser() if given.document else paths.given(values["document_path"])
    asked = [Question(text, "") for text in given.question or ([] if given.document else values["asked"])]
    documents = read(document, values["passage_words"])
    if len(documents) == 1:
        documents = [with_questions(documents[0], asked)]
    elif asked:
        raise ParameterError(f"--question goes with one document, and {document} has {len(documents)}; name one.")
    ready = session(values)
    with store_of(given.store) as store:
        edits = [
            edit
            for one in documents
            for edit in learn(
                Bar(), store, ready.policy, one, ready.domain, ready.outer, ready.own, seed=values["seed"]
            )
        ]
    return edits, "\n\n".join(shown(edit) for edit in edits)


def _ask(given: argparse.Namespace) -> tuple[Reply, str]:
    ready = session(settings(given))
    with store_of(given.store) as store:
        (reply,) = ask(Bar(), store, ready.policy, [given.question], ready.domain)
    source = f"{reply.document}, {reply.place}, {reply.title!r}" if reply.document else "no source"
    others = ", ".join(f"{HEADS[stage]}: {reply.answers[stage] or '-'}" for stage in STAGES if stage in reply.answers)
    return reply, f"{reply.answer}\n\n{source}; {reply.why}\n{others}"


def _list(given: argparse.Namespace) -> tuple[list[Edit], str]:
    with store_of(given.store) as store:
        edits = store.edits(*([] if given.all else ["active", "merged", "quarantined"]))
    rows = [("edit", "state", "document", "place", "title", "right before", "after", "model")]
    for edit in edits:
        was, now = (accuracy(edit.questions, stage, edit.recipe["grader"]) for stage in ("before", "after"))
        about = (edit.document, edit.place, edit.passage.title, _share(was), _share(now), edit.model)
        rows.append((str(edit.id), edit.state, *about))
    return edits, table(rows) if edits else f"{store.folder} keeps nothing yet; `seal learn DOCUMENT` begins."


def _show(given: argparse.Namespace) -> tuple[Edit, str]:
    with store_of(given.store) as store:
        edit = store.edit(given.edit)
    wrapped = textwrap.fill(edit.passage.text, 100, initial_indent="  ", subsequent_indent="  ")
    written = textwrap.indent(edit.self_edit.text if edit.self_edit else "none", "  ")
    made = f"learned {edit.made} on {edit.model} ({edit.dtype}, {edit.weights[:12]}); changed {edit.changed}"
    files = f"adapter {edit.adapter or 'none'}, sha256 {edit.digest[:12] or '-'}"
    return edit, f"{shown(edit)}\n\npassage\n{wrapped}\n\nself-edit\n{written}\n\n{made}\n{files}"


def _revert(given: argparse.Namespace) -> tuple[Edit, str]:
    with store_of(given.store) as store:
        edit = store.revert(given.edit)
    return edit, f"edit {edit.id} ({edit.document}, {edit.place}) is reverted: it is kept, and used no more."


def _export(given: argparse.Namespace) -> tuple[list[str], str]:
    with store_of(given.store) as store:
        folders = [str(path) for path in export(store, Path(given.folder).expanduser(), given.edit)]
    return folders, "\n".join(folders)


def _import(given: argparse.Namespace) -> tuple[list[Edit], str]:
    ready = session(settings(given))
    with store_of(given.store) as store:
        edits = take_in(store, ready.policy, Path(given.folder).expanduser(), ready.domain)
    return edits, "\n\n".join(shown(edit) for edit in edits)


_COMMANDS: dict[str, tuple[Any, str, dict[str, dict[str, Any]]]] = {
    "learn": (_learn, "learn a document, and show answers before and after", {
        "document": {"nargs": "?", "default": "", "help": "a file or folder (default: the notebook's)"},
        "--question": {"action": "append", "default": [], "help": "what to ask about it; may be given several times"},
    }),
    "ask": (_ask, "ask about what was learned", {"question": {}}),
    "list": (_list, "what is kept", {"--all": {"action": "store_true", "help": "also what was taken back"}}),
    "show": (_show, "one edit with its passage, self-edit and answers", {"edit": {"type": int}}),
    "revert": (_revert, "take an edit back", {"edit": {"type": int}}),
    "import": (_import, "take in what somebody exported, measured here", {"folder": {"help": "of an export"}}),
    "export": (_export, "copy adapters to PEFT folders", {
        "folder": {"help": "a new folder"}, "edit": {"type": int, "nargs": "*", "help": "default: all in use"},
    }),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- as text


def shown(edit: Edit) -> str:
    """An edit with its answers before, with the passage in view and after, side by side."""
    grader, cost = edit.recipe["grader"], edit.training["cost"]
    was, now = (_share(accuracy(edit.questions, stage, grader)) for stage in ("before", "after"))
    head = f"edit {edit.id} · {edit.document}, {edit.place} · {edit.passage.title} · {edit.state}"
    told = [f"{was} right before, {now} after, by {len(edit.questions)} questions"] if edit.questions else []
    told += [edit.reason] if edit.reason else []
    told.append(
        f"{edit.training['tried']} self-edits tried, {cost.get('generated', 0)} tokens written, "
        f"{cost.get('trained', 0)} trained, {cost['seconds']:.1f} s"
    )
    rows = [("question", *HEADS.values(), "right answer")]
    for asked in edit.questions:
        answers = [answer.text or "-" if (answer := asked.at(stage)) else "not asked" for stage in STAGES]
        rows.append((asked.question, *answers, f"{asked.gold or '-'} ({ORIGINS[asked.origin]})"))
    return "\n".join([head, *(f"  {line}" for line in told), *([table(rows)] if edit.questions else [])])


#: where a right answer comes from, in words
ORIGINS = {"given": "given", "own": "the model's, twice", "in_view": "the model's, passage in view"}


def _share(value: float) -> str:
    return "-" if value != value else f"{value:.0%}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, long cells cut."""
    cells = [[_cut(" ".join(text.split())) for text in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(f"  {line}" for line in lines)


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
