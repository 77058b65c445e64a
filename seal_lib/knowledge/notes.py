"""Notes by other writers about the passages of a run (the arm ``external``), from a file or from another model.

A file is JSON or JSON lines with one entry per passage, as SEAL's authors released theirs:
``{context, completions: [text, …]}``. Also accepted are ``completion: text`` and their result files,
``{articles: [{context, completions: [{text}]}]}``. Entries are matched by the passage's text. Of several completions
the first is used, as in the paper's evaluation, unless more are asked for: they are the references ``external``,
``external_1``, …, which `several` returns.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.generation.contract import Request
from seal_lib.generation.others import Other
from seal_lib.knowledge import world
from seal_lib.knowledge.prompts import Prompts
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Passage
from seal_lib.runs.work import Recorder
from seal_lib.seeds import derive_seed, rng

NOTE_FILES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def with_external(
    run: Recorder,
    passages: Sequence[Passage],
    prompts: Prompts,
    outer: OuterLoop,
    source: str,
    key_env: str,
    calls: int,
    seconds: float,
    device: str,
    dtype: str,
    *,
    seed: int = 0,
    group: str = "",
    count: int = 1,
) -> list[Passage]:
    """Return the passages with notes by ``source`` as their references ``external``.

    A model is asked ``count`` times per passage, with the policy's prompt and sampling. Its texts are recorded as phase
    ``<group>external/write``; a passage on which it failed has the reason in ``unwritten``.

    Args:
        source: a file of completions; MODEL@URL, or a model; "": the passages stay as they are.
        key_env, …: settings of a model, see `seal_lib.generation.others.Other`.

    Raises:
        DataError: the file has no notes about a passage, or the model cannot be asked at all.
    """
    if not source:
        return list(passages)
    if source.endswith(NOTE_FILES):
        return from_file(paths.given(source), passages, count)
    writer = Other(source, key_env, calls, seconds, device, dtype)
    writer.check()
    write = partial(_written, run=run, writer=writer, prompts=prompts, outer=outer, seed=seed, count=count)
    found = run.map(f"{group}external/write", passages, write)
    return [_noted(passage, row["texts"], row["reason"]) for passage, row in zip(passages, found, strict=True)]


def _written(
    part: Sequence[Passage], *, run: Recorder, writer: Other, prompts: Prompts, outer: OuterLoop, seed: int, count: int
) -> list[dict]:
    """Return one row per passage: the texts that succeeded, and the reason of the first that did not."""
    seeds = [[derive_seed(seed, p.id, "external", *([i] if i else [])) for i in range(count)] for p in part]
    asked = [Request(prompts.unopened.write(p), own) for p, several in zip(part, seeds, strict=True) for own in several]
    said, rows = iter(writer.texts(asked, outer.sampling(), run.count)), []
    for several in seeds:
        own = [next(said) for _ in several]
        reasons = [c.reason or c.finish if c.finish in ("failed", "too_long") else "" for c in own]
        texts = [c.text.strip() for c, reason in zip(own, reasons, strict=True) if not reason]
        rows.append({"texts": texts, "tokens": sum(c.tokens for c in own), "reason": next(filter(None, reasons), "")})
    return rows


def _noted(passage: Passage, texts: Sequence[str], reason: str = "") -> Passage:
    """Return the passage with these texts in place of any other external ones."""
    others = {key: text for key, text in passage.references.items() if not re.fullmatch(r"external(_\d+)?", key)}
    named = others | {_nth("external", i): text for i, text in enumerate(texts)}
    failed = {"external": reason} if reason else {}
    return replace(passage, references=named, unwritten={**passage.unwritten, **failed})


def _nth(writer: str, number: int) -> str:
    """Return the key of the reference that holds a writer's text of that number, from 0."""
    return f"{writer}_{number}" if number else writer


def several(passage: Passage, writer: str, count: int, seed: int) -> list[str]:
    """Return ``count`` texts of another writer about a passage from its references; fewer if that writer failed on it.

    The stronger writer of the made world writes as many as are asked for, drawn with ``seed``.

    Raises:
        DataError: the passage has fewer.
    """
    found = [passage.references[key] for i in range(count) if (key := _nth(writer, i)) in passage.references]
    if len(found) == count or writer in passage.unwritten:
        return found
    if writer == "external" and passage.facts:
        facts = [world.Fact(*fact) for fact in passage.facts]
        return [world.external_notes(facts, rng(seed, passage.id, writer, i)) for i in range(count)]
    raise DataError(
        f"completions: passage {passage.id} has {len(found)} texts by {writer!r}, not {count}; ask for fewer, drop the "
        "arm, or say who writes more: external=FILE of completions, or external=MODEL@URL."
    )


def from_file(path: Path, passages: Sequence[Passage], count: int = 1) -> list[Passage]:
    """Return the passages with the first ``count`` completions that a file has about each.

    Raises:
        DataError: the file does not hold completions, or has too few about some passage.
    """
    if not path.is_file():
        raise DataError(f"external: no file {path}; give a JSON file of completions, or MODEL@URL.")
    value = paths.read_data(path)
    entries = value.get("articles", [value]) if isinstance(value, dict) else value
    if not isinstance(entries, list):
        raise DataError(f"{path} holds a {type(value).__name__}; expected a list of passages with completions.")
    known: dict[str, list[str]] = {}
    for i, entry in enumerate(entries):
        found = _first(entry, count, f"{path}, entry {i}")
        known.setdefault(" ".join(entry["context"].split()), found)
    lacking = [passage for passage in passages if " ".join(passage.text.split()) not in known]
    if lacking:
        raise DataError(
            f"{path} has no completions about {len(lacking)} of {len(passages)} passages (the first: {lacking[0].id}, "
            f"{lacking[0].text[:60]!r}); give a file about these passages."
        )
    noted = []
    for passage in passages:
        own = known[" ".join(passage.text.split())]
        if len(own) < count:
            few = f"{path} has {len(own)} completions about passage {passage.id}, not {count}"
            raise DataError(f"{few}; ask for fewer (completions).")
        noted.append(_noted(passage, own))
    return noted


def _first(entry: object, count: int, where: str) -> list[str]:
    """Return the first ``count`` completions of an entry, or all if there are fewer."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("context"), str):
        raise DataError(f"{where}: the key 'context' is missing; an entry has a passage's context and completions.")
    completions = entry.get("completions", [entry["completion"]] if "completion" in entry else None)
    if not isinstance(completions, list) or not completions:
        raise DataError(f"{where}: no completions; write them as a list of texts, completions: [text, …].")
    texts: list[str] = []
    for number, completion in enumerate(completions[:count]):
        text = completion.get("text") if isinstance(completion, Mapping) else completion
        if not isinstance(text, str):
            what = f"completions[{number}] is {text!r}, not text"
            raise DataError(f"{where}: {what}; put it in quotes or remove the entry.")
        texts.append(text.strip())
    return texts
