"""Export adapters from a store and import them into another, as PEFT folders with a record of what each was taught.

The record, ``corpus.jsonl``, has one JSON object per line: the passage (title, context, questions) and the self-edit
(completions), as `seal_lib.knowledge.data` reads passages; the adapter's folder; the base, by name and weight hash.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from seal_lib import models, paths
from seal_lib.errors import DataError
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops.policy import Policy
from seal_lib.records import Question
from seal_lib.store.database import Store, base_of
from seal_lib.store.learning import imported_edit
from seal_lib.store.schema import Edit
from seal_lib.store.texts import Document, has_texts, passage_of

CORPUS = "corpus.jsonl"
_TEXTS = ("adapter", "document", "place", "title", "context", "model", "weights")


def export(store: Store, folder: str | Path, numbers: Sequence[int] = ()) -> list[Path]:
    """Copy adapters to PEFT folders beside a corpus, and return the folders.

    Args:
        folder: must not exist yet; it appears when everything is in it.
        numbers: of edits. Default: all active ones.

    Raises:
        DataError: there is nothing to export, a file is not what was kept, or the folder exists.
    """
    from seal_lib.training.adapters import Adapter

    folder = Path(folder)
    chosen = [store.edit(number) for number in numbers] or store.edits("active", "merged")
    if not chosen:
        raise DataError(f"{store.folder} has no edit in use, so there is nothing to export; see `seal list`.")
    if folder.exists():
        raise DataError(f"{folder} is there already; name a folder that is not.")
    fresh = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    names = [name_of(edit) for edit in chosen]
    with store.told():
        try:
            fresh.mkdir(parents=True)
            lines = []
            for name, edit in zip(names, chosen, strict=True):
                Adapter.load(store.folder_of(edit)).save(fresh / name, *_base(edit))
                lines.append(json.dumps({"adapter": name, **_line(edit)}, ensure_ascii=False))
            (fresh / CORPUS).write_text("\n".join(lines) + "\n", encoding="utf-8")
            os.replace(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return [folder / name for name in names]


def _base(edit: Edit) -> tuple[str, str | None]:
    """Return the name or folder of an edit's base, and the commit of a base on the Hub, under which PEFT finds it."""
    if edit.weights.startswith("hub:"):
        name, _, commit = edit.weights.removeprefix("hub:").rpartition("@")
        return name, commit
    with suppress(DataError):  # a model that is gone is known by its name only
        return models.resolve(edit.model)[0], None
    return edit.model, None


def name_of(edit: Edit) -> str:
    """Return the name of an edit outside the store: DOCUMENT-NUMBER, in letters and digits."""
    return f"{re.sub('[^A-Za-z0-9]+', '-', Path(edit.document).stem).strip('-') or 'document'}-{edit.id}"


def _line(edit: Edit) -> dict[str, Any]:
    return {
        "document": edit.document,
        "place": edit.place,
        "title": edit.passage.title,
        "context": edit.passage.text,
        "questions": [{"question": q.question, "answer": q.gold} for q in edit.questions if q.gold.strip()],
        "completions": [edit.self_edit.text] if edit.self_edit else [],
        "model": edit.model,
        "weights": edit.weights,
    }


def corpus(folder: Path) -> list[Any]:
    """Return the lines of an export's corpus, not checked yet.

    Raises:
        DataError: there is none, or it is not JSON.
    """
    if not (folder / CORPUS).is_file():
        raise DataError(f"{folder} has no {CORPUS}, so nobody knows what its adapters were taught; give an export.")
    value = paths.read_data(folder / CORPUS)
    return value if isinstance(value, list) else [value]


def take_in(store: Store, policy: Policy, folder: str | Path, domain: Knowledge) -> list[Edit]:
    """Import edits that somebody exported.

    The questions of each are asked here, before and after; as with a learned edit, it is used only if more are right
    after.

    Raises:
        DataError: there is no corpus, a line of it is incomplete, or an adapter is of another base or no plain LoRA
            (`seal_lib.training.peft_folder`). Nothing is kept then.
    """
    from seal_lib.training.adapters import Adapter, check_fits

    folder = Path(folder)
    weights = base_of(policy)
    ready = []
    for number, line in enumerate(corpus(folder), 1):
        where = f"{folder / CORPUS}, line {number}"
        _check(line, where, weights, policy.base.name)
        adapter = Adapter.load(folder / line["adapter"])
        check_fits(policy.model, adapter)
        questions = tuple(Question(row["question"], row["answer"]) for row in line["questions"])
        ready.append((line, passage_of(line["title"], line["context"], questions), adapter))
    kept = []
    for line, passage, adapter in ready:
        origin = f"{folder.resolve()}#{passage.id}"
        document = Document(line["document"], origin, passage.id, (passage,), (line["place"],))
        store.add(document)
        edit = imported_edit(policy, domain, document.parts[0], adapter, line["completions"])
        kept.append(store.keep(edit, adapter))
    return kept


def _check(line: Any, where: str, weights: str, model: str) -> None:
    if not has_texts(line, *_TEXTS):
        raise DataError(f"{where} is not whole: it has the texts {', '.join(_TEXTS)}; export it again.")
    rows, written = line.get("questions"), line.get("completions")
    whole = isinstance(rows, list) and all(has_texts(row, "question", "answer") for row in rows)
    if not whole or not isinstance(written, list) or not all(isinstance(text, str) for text in written):
        raise DataError(
            f"{where} is not whole: questions are [{{question, answer}}], completions texts; export it again."
        )
    if not re.fullmatch(r"\w[\w.-]*", line["adapter"]):
        raise DataError(f"{where}: adapter {line['adapter'][:60]!r} is no name of a folder beside it; export it again.")
    if line["weights"] != weights:
        raise DataError(
            f"{where} was learned on {line['model']} ({line['weights'][:12]}), and this is {model} ({weights[:12]}); "
            f"an adapter fits its own base only: use model {line['model']}."
        )
