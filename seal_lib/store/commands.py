"""The commands ``seal learn | ask | update | serve`` and others (`_COMMANDS`): this package's functions from a shell.

Settings are the parameters of the notebook ``03_your_document`` at a scale, so that both do the same.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from seal_lib import models, paths
from seal_lib.errors import DataError, ParameterError
from seal_lib.generation.others import Other
from seal_lib.grading.judge import Judge
from seal_lib.records import Passage, Question, SelfEdit, to_dict
from seal_lib.runs import params
from seal_lib.store import grounding, texts
from seal_lib.store.asking import ask
from seal_lib.store.guard import GUARDED, Limits
from seal_lib.store.harness import Tasks
from seal_lib.store.learning import Consent, accuracy, findings_in
from seal_lib.store.merging import Merged, base_of, check_count, merge_edits, prune, related, revert, to_merge, worths
from seal_lib.store.review import FINDING_KINDS, Finding, lines_of
from seal_lib.store.routing import ROUTES, Router
from seal_lib.store.schema import STAGES, Edit, Queued, Renewal
from seal_lib.store.search import Search
from seal_lib.store.sessions import NOTEBOOK, Bar, session, settings, store_of, tell
from seal_lib.store.sharing import corpus, export, take_in
from seal_lib.store.texts import PASSAGE_WORDS, with_questions
from seal_lib.store.updates import WORTH, Plan, percent_of, seconds, text_of, update, write_report

HEADS = {"before": "before", "in_view": "passage in view", "after": "after", "both": "after, passage in view"}
WIDTH = 60  # most characters in a column


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the commands to a parser; each sets ``act``, which runs it and returns (result, what to print)."""
    for name, (act, text, arguments) in _COMMANDS.items():
        command = commands.add_parser(name, help=text)
        for flag, about in arguments.items():
            command.add_argument(flag, **about)
        command.add_argument("--store", default="", help="folder that keeps all (default: data/store)")
        command.add_argument("--json", action="store_true", help="print JSON")
        if name in _WITH_MODEL:
            command.add_argument("--model", default="", help="shipped model, folder, or owner/name on the Hub")
            command.add_argument("--scale", default="", help=f"whose settings: params/{NOTEBOOK}/SCALE.yaml")
            command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting")
        command.set_defaults(act=act)


def run(given: argparse.Namespace) -> int:
    """Run a command, and print its result as text or JSON; return 1 if a merge was measured and refused, else 0."""
    found, text = given.act(given)
    print(json.dumps(to_dict(found), indent=2, ensure_ascii=False) if given.json else text)
    return int(isinstance(found, Merged) and found.merge is None)


# ---------------------------------------------------------------------------------------------- the commands


def _learn(given: argparse.Namespace) -> tuple[list[Edit], str]:
    values = settings(given)
    document = paths.expanded(given.document) if given.document else paths.given(values["document_path"])
    asked = [Question(text, "") for text in given.question or ([] if given.document else values["asked"])]
    documents = texts.read(document, values["passage_words"], tell)
    if len(documents) == 1:
        documents = [with_questions(documents[0], asked)]
    elif asked:
        raise ParameterError(f"--question goes with one document, and {document} has {len(documents)}; name one.")
    consent = Consent(tuple(given.allow), _approve if given.review else None)
    if given.review and not sys.stdin.isatty():
        raise ParameterError("--review asks a person about each self-edit; start it in a terminal.")
    ready = replace(session(values), consent=consent)
    with store_of(given.store, begin=True) as store:
        edits = [edit for one in documents for edit in ready.learn(Bar(), store, one)]
    if given.document and values["model"].startswith("seedling-"):
        tell(f"{values['model']} knows its made world only; for other text name a model: --model owner/name.")
    return edits, "\n\n".join(_shown(edit) for edit in edits)


def _approve(passage: Passage, edit: SelfEdit, findings: Sequence[Finding]) -> bool:
    """Show a self-edit before it is trained on, and return True if a person agrees."""
    print(f"\n{card(passage, edit, findings)}\n", file=sys.stderr)
    while True:
        print("train on it? [y/n] ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline().strip().lower()
        if answer in ("y", "yes", "n", "no", ""):
            return answer.startswith("y")


def card(passage: Passage, edit: SelfEdit, findings: Sequence[Finding]) -> str:
    """Return a self-edit with its passage and its findings as text, for a person to read."""
    found = _findings(findings) if findings else "  nothing was found in it"
    return f"{passage.title}\n\n{_texts(passage, edit, f' {edit.id}')}\n\nfindings\n{found}"


def _texts(passage: Passage, edit: SelfEdit | None, name: str = "") -> str:
    wrapped = textwrap.fill(passage.text, 100, initial_indent="  ", subsequent_indent="  ")
    written = textwrap.indent(edit.text if edit else "none", "  ")
    return f"passage\n{wrapped}\n\nself-edit{name}\n{written}"


#: heads of the columns of `_told`
_TOLD = ("kind", "what it does", "text", "why")


def _told(finding: Finding) -> tuple[str, ...]:
    return finding.kind, "stops" if finding.stops else "told", finding.excerpt, finding.detail


def _findings(findings: Sequence[Finding]) -> str:
    return _columns([_TOLD, *map(_told, findings)])


def _ask(given: argparse.Namespace) -> tuple[dict[str, Any], str]:
    values = settings(given)
    with store_of(given.store) as store:
        ready = session(values)
        begun = time.perf_counter()
        (reply,) = ask(
            Bar(), store, ready.policy, [given.question], ready.domain, route=given.route, search=ready.search
        )
    took = time.perf_counter() - begun
    used = reply.used != "before" and reply.document
    source = f"{reply.document}, {reply.place}, {reply.title!r}" if used else "no source"
    rows = [(HEADS[stage], answer or "-", str(reply.tokens[stage])) for stage, answer in reply.answers.items()]
    told = f"{reply.answer}\n\n{source}; {reply.why}\n{_columns([('', 'answer', 'tokens of its prompt'), *rows])}"
    found = {"answer": reply.answer, **to_dict(reply), "seconds": round(took, 3)}
    return found, f"{told}\n{took:.1f} s, all answers together"


def _list(given: argparse.Namespace) -> tuple[list[Edit], str]:
    with store_of(given.store) as store:
        edits = store.edits(*([] if given.all else ["active", "merged", "quarantined"]))
    rows = [("edit", "state", "document", "place", "title", "right before", "after", "model")]
    for edit in edits:
        was, now = (accuracy(edit.questions, stage, edit.recipe["grader"]) for stage in ("before", "after"))
        about = (edit.document, edit.place, edit.passage.title, percent_of(was), percent_of(now), edit.model)
        rows.append((str(edit.id), edit.state, *about))
    return edits, _columns(rows) if edits else f"{store.folder} keeps nothing yet; `seal learn DOCUMENT` begins."


def _show(given: argparse.Namespace) -> tuple[Edit, str]:
    with store_of(given.store) as store:
        edit = store.edit(given.edit)
    made = f"learned {edit.made} on {edit.model} ({edit.dtype}, {edit.weights[:12]}); changed {edit.changed}"
    files = f"adapter {edit.adapter or 'none'}, sha256 {edit.digest[:12] or '-'}"
    found = f"\n\nfindings\n{_findings(edit.findings)}" if edit.findings else ""
    return edit, f"{_shown(edit)}\n\n{_texts(edit.passage, edit.self_edit)}{found}\n\n{made}\n{files}"


def _route(given: argparse.Namespace) -> tuple[dict[str, Any], str]:
    search = params.pick(Search, settings(given))
    with store_of(given.store) as store:
        router = Router(store, "", given.route, search)
    evidence, stage, why = router.route(given.question)
    part = evidence.part
    found = {
        "question": given.question,
        "answered": stage,
        "why": why,
        "document": part.document,
        "place": part.place,
        "title": part.passage.title,
        "weight": evidence.match.weight if evidence.match else 0.0,
        "needed": evidence.needed,
        "edit": evidence.edit.id if evidence.edit else 0,
    }
    source = f"{part.document}, {part.place}, {part.passage.title!r}" if evidence.match else "no passage"
    return found, f"{HEADS[stage]}: {why}\n{source}; {evidence.told}"


def _audit(given: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Report the findings in a document not learned yet, in one edit, or in all edits kept; with a judge, also its
    verdict on each line of these edits."""
    judge = Judge(Other(given.judge, given.judge_env), grounding.RUBRIC) if given.judge else None
    if judge:
        judge.who.check()
    edits: list[Edit] = []
    if given.what and not re.fullmatch("[0-9]{1,9}", given.what):
        if judge:
            raise ParameterError(f"--judge reads self-edits, and {given.what} has none yet; learn it, or name an edit.")
        documents = texts.read(paths.expanded(given.what), PASSAGE_WORDS, tell)
        findings = [(part.document, part.place, findings_in(part.passage)) for one in documents for part in one.parts]
    else:
        with store_of(given.store) as store:
            edits = [store.edit(int(given.what))] if given.what else store.edits("active", "merged", "quarantined")
        findings = [(f"edit {e.id} · {e.document}", e.place, e.findings) for e in edits]
    all_found = [(where, place, finding) for where, place, several in findings for finding in several]
    keys = ("kind", "stops", "excerpt", "detail")
    rows = [{"where": w, "place": p, **{key: getattr(f, key) for key in keys}} for w, p, f in all_found]
    cells = [("where", "place", *_TOLD), *((where, place, *_told(finding)) for where, place, finding in all_found)]
    found: dict[str, Any] = {"findings": rows}
    text = _columns(cells) if rows else f"nothing found in {len(findings)} passages."
    if judge:
        judged, told = _judged(edits, judge)
        found, text = found | judged, f"{text}\n\n{told}"
    return found, text


def _judged(edits: Sequence[Edit], judge: Judge) -> tuple[dict[str, Any], str]:
    """Return what the rules and a judge say of each line and how often they agree, as values and as text."""
    written = [edit for edit in edits if lines_of(edit.self_edit)]
    trials = grounding.graded(Bar(), "self-edits", [(e.passage, e.self_edit) for e in written], judge)
    agreed = grounding.rows({"self-edits": trials}) if trials else []
    who = grounding.BY_RULES, grounding.JUDGE
    lines = [
        {"edit": edit.id, "line": answer.text}
        | {name: grounding.WORDS.get(answer.grades[name], "no verdict") for name in who}
        for edit, trial in zip(written, trials, strict=True)
        for answer in trial.answers
    ]
    columns = ("edit", "line", *who)
    cells = [tuple(str(row[name]) for name in columns) for row in lines]
    told = [_columns([columns, *cells])] if lines else ["no self-edit has a line to judge."]
    return {"lines": lines, "agreement": agreed}, "\n".join([*told, *grounding.in_words(agreed)])


def _limits(values: dict[str, Any]) -> Limits:
    most = {kind: values[f"most_lost_{kind}"] for kind in GUARDED}
    return Limits(values["guard_file"], **most, tasks=params.pick(Tasks, values))


def _merge(given: argparse.Namespace) -> tuple[Merged, str]:
    values = settings(given)
    weights = models.weight_hash(values["model"], values["revision"])
    with store_of(given.store) as store:
        wanted = [e.id for e in related(store, store.edit(given.related), given.most)] if given.related else given.edit
        edits = to_merge(store, weights, wanted)
        check_count(edits)  # before a model is loaded
        ready = session(values)
        done = merge_edits(store, ready.policy, ready.domain, edits, _limits(values))
    numbers = ", ".join(str(edit.id) for edit in edits)
    told = f"edits {numbers}: {done.report['merged']:.0%} of their questions right, {done.report['alone']:.0%} alone"
    state = f"merge {done.merge.id} is in use" if done.merge else f"refused, and nothing changed: {done.reason}"
    return done, f"{told}; {state}."


def _revert(given: argparse.Namespace) -> tuple[Edit, str]:
    with store_of(given.store) as store:
        edit = revert(store, given.edit)
    return edit, f"edit {edit.id} ({edit.document}, {edit.place}) is reverted: it is kept, and used no more."


def _prune(given: argparse.Namespace) -> tuple[list[Edit], str]:
    with store_of(given.store) as store:
        gone = prune(store, int(given.budget * 1e6))
        held = sum(worth.size for worth in worths(store))
    lines = [f"edit {e.id} ({e.document}, {e.place}): {e.reason}" for e in gone]
    return gone, "\n".join([*lines, f"{len(gone)} adapters removed; those in use take {held / 1e6:.1f} MB."])


def _queue(given: argparse.Namespace) -> tuple[list[Queued], str]:
    for path in given.document:
        if not paths.expanded(path).exists():
            raise DataError(f"There is no document {path}; give a file or a folder.")
    with store_of(given.store, begin=bool(given.document)) as store:
        for path in given.document:
            store.enqueue(paths.expanded(path))
        rows = store.queue()
    lines = [("document", "waits since"), *((one.source, one.added) for one in rows)]
    return rows, _columns(lines) if rows else "nothing waits; `seal queue DOCUMENT` adds one."


def _update(given: argparse.Namespace) -> tuple[Renewal | None, str]:
    values = settings(given)
    plan = Plan(seconds(given.budget), _limits(values), given.rule, values["passage_words"])
    consent = Consent(tuple(given.allow))
    with store_of(given.store) as store:
        if not store.queue() and all(one.state == "done" for one in store.renewals()):  # before a model is loaded
            return None, "nothing waits; `seal queue DOCUMENT` adds one."
        ready = replace(session(values), consent=consent)
        renewal = update(Bar(), store, ready, plan)
        file = write_report(store, renewal)
    return renewal, f"{text_of(renewal)}\n{file}, and as a page {file.with_suffix('.html').name}"


def _serve(given: argparse.Namespace) -> tuple[None, str]:
    from seal_lib.generation.engines import installed
    from seal_lib.store import serving

    serving.check_address(given.host)
    values = settings(given)
    on_card = installed() and values["device"] != "cpu" and values["engine"] != "hf"
    with store_of(given.store) as store:
        ready = session(values | ({"device": "cpu"} if on_card else {}))  # vLLM needs the card's memory for itself
        weights = base_of(ready.policy)
        if on_card:
            from seal_lib.generation.vllm_engine import RANKS

            command = serving.vllm_command(store, ready.policy, weights, given.host, given.port, RANKS)
            if token := os.environ.get(serving.TOKEN):
                os.environ["VLLM_API_KEY"] = token
            os.execv(command[0], command)
        desk = serving.Desk(store.folder, ready.policy, ready.domain, weights, ready.search)

        def started(port: int) -> None:
            text = f"http://{given.host}:{port}/v1 serves {', '.join(desk.models())}; Ctrl-C ends it."
            print(text, flush=True, file=sys.stderr if given.json else sys.stdout)

        with suppress(KeyboardInterrupt):
            asyncio.run(serving.serve(desk, given.host, given.port, started))
    return None, "ended."


def _export(given: argparse.Namespace) -> tuple[list[str], str]:
    with store_of(given.store) as store:
        folders = [str(path) for path in export(store, paths.expanded(given.folder), given.edit)]
    return folders, "\n".join(folders)


def _import(given: argparse.Namespace) -> tuple[list[Edit], str]:
    values, folder = settings(given), paths.expanded(given.folder)
    corpus(folder)  # before a model is loaded
    ready = session(values)
    with store_of(given.store, begin=True) as store:
        edits = take_in(store, ready.policy, folder, ready.domain)
    return edits, "\n\n".join(_shown(edit) for edit in edits)


def _between(kind: type, low: float, high: float) -> Callable[[str], Any]:
    """Return a function that reads a number of that kind, within bounds, from a command line."""

    def number(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low} to {high}")
        return value

    return number


_EDIT = _between(int, 1, 2**31 - 1)
_EDITS: dict[str, Any] = dict(type=_EDIT, nargs="*", help="default: all in use")
_SEVERAL: dict[str, Any] = dict(action="append", default=[])
_ALLOW = _SEVERAL | dict(metavar="KIND", help=f"learn what this kind of finding would stop: {', '.join(FINDING_KINDS)}")
_ROUTE = dict(default="measured", choices=tuple(ROUTES), help="what decides whose answer counts (default: measured)")
_WITH_MODEL = ("learn", "ask", "route", "import", "merge", "update", "serve")
#: command → its function, its description, its arguments
_COMMANDS: dict[str, tuple[Any, str, dict[str, dict[str, Any]]]] = {
    "learn": (
        _learn,
        "learn a document, and show answers before and after",
        {
            "document": dict(nargs="?", default="", help="a file or folder (default: the notebook's)"),
            "--question": _SEVERAL | dict(help="what to ask about it; may be given several times"),
            "--review": dict(action="store_true", help="show each self-edit before it is trained on, and ask"),
            "--allow": _ALLOW,
        },
    ),
    "ask": (_ask, "ask about what was learned", {"question": {}, "--route": _ROUTE}),
    "route": (_route, "say what would answer a question, and why", {"question": {}, "--route": _ROUTE}),
    "list": (_list, "what is kept", {"--all": dict(action="store_true", help="also what was taken back")}),
    "show": (_show, "one edit with its passage, self-edit and answers", {"edit": dict(type=_EDIT)}),
    "audit": (
        _audit,
        "what a document or the self-edits hold that should not be learned unseen",
        {
            "what": dict(nargs="?", default="", help="a document, or the number of an edit (default: all kept)"),
            "--judge": dict(default="", metavar="MODEL[@URL]", help="who also says of each line if it is grounded"),
            "--judge-env": dict(default="", metavar="NAME", help="environment variable that holds the judge's key"),
        },
    ),
    "merge": (
        _merge,
        "use several edits as one adapter, if little is lost",
        {
            "edit": _EDITS,
            "--related": dict(type=_EDIT, default=0, metavar="EDIT", help="this edit and those of like passages"),
            "--most": dict(type=_between(int, 2, 1000), default=4, help="with --related: edits at most (default: 4)"),
        },
    ),
    "revert": (_revert, "take an edit back, also out of a merge", {"edit": dict(type=_EDIT)}),
    "prune": (
        _prune,
        "remove the least useful adapters",
        {"--budget": dict(type=_between(float, 0, 1e9), required=True, metavar="MB", help="what the others may take")},
    ),
    "queue": (_queue, "let documents wait for the next update", {"document": dict(nargs="*", help="files, folders")}),
    "update": (
        _update,
        "learn what waits and is worth it, if its guard lets it in",
        {
            "--budget": dict(default="10min", help="90s, 10min, 2h (default: 10min)"),
            "--rule": dict(default="need", choices=tuple(WORTH), help="what is worth it (default: need)"),
            "--allow": _ALLOW,
        },
    ),
    "import": (_import, "take in what somebody exported, measured here", {"folder": dict(help="of an export")}),
    "export": (_export, "copy adapters to PEFT folders", {"folder": dict(help="a new folder"), "edit": _EDITS}),
    "serve": (
        _serve,
        "answer over HTTP as OpenAI's interface does",
        {
            "--host": dict(default="127.0.0.1", help="default: 127.0.0.1, this machine only"),
            "--port": dict(type=_between(int, 0, 65535), default=8000, help="default: 8000; 0: a free one"),
        },
    ),
}


# ---------------------------------------------------------------------------------------------- as text


def _shown(edit: Edit) -> str:
    """Return an edit as text, with its answers before, with the passage in view, and after, side by side."""
    grader, cost = edit.recipe["grader"], edit.training["cost"]
    was, now = (percent_of(accuracy(edit.questions, stage, grader)) for stage in ("before", "after"))
    head = f"edit {edit.id} · {edit.document}, {edit.place} · {edit.passage.title} · {edit.state}"
    told = [f"{was} right before, {now} after, by {len(edit.questions)} questions"] if edit.questions else []
    told += [edit.reason] if edit.reason else []
    told.append(
        f"{edit.training['tried']} self-edits tried, {cost.get('generated', 0)} tokens written, "
        f"{cost.get('trained', 0)} trained, {cost['seconds']:.1f} s"
    )
    rows = [("question", *(HEADS[stage] for stage in STAGES), "right answer")]
    for asked in edit.questions:
        answers = [answer.text or "-" if (answer := asked.at(stage)) else "not asked" for stage in STAGES]
        rows.append((asked.question, *answers, f"{asked.gold or '-'} ({ORIGINS[asked.origin]})"))
    return "\n".join([head, *(f"  {line}" for line in told), *([_columns(rows)] if edit.questions else [])])


#: origin of a gold answer → what is printed
ORIGINS = {"given": "given", "own": "the model's, twice", "in_view": "the model's, passage in view"}


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Return columns side by side as text; long cells are cut."""
    cells = [[_cut(" ".join(text.split())) for text in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(f"  {line}" for line in lines)


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
