"""Notes by other writers about the passages of a run: the arm ``external``, from a file or from another model.

A file is JSON or JSON lines, one entry a passage, as SEAL's authors released theirs: ``{context, completions: [text,
…]}``. ``completion: text`` will do, and so will their result files, ``{articles: [{context, completions: [{text}]}]}``.
Entries are found by the passage's text. Of several completions the first counts, as in the paper's evaluation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation.others import Other
from seal_lib.knowledge.prompts import Prompts
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Passage
from seal_lib.runs.work import Recorder
from seal_lib.seeds import derive_seed

FILES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def with_external(run: Recorder, passages: Sequence[Passage], prompts: Prompts, outer: OuterLoop, source: str,
                  key_env: str, calls: int, seconds: float, device: str, dtype: str, *, seed: int = 0, group: str = "",
                  ) -> list[Passage]:  # fmt: skip
    """The passages with notes by ``source`` as their references ``external``.

    A model is asked once a passage, with the policy's prompt and sampling; what it said is recorded as phase
    ``<group>external/write``, and a passage that it failed on says why in ``unwritten``.

    Args:
        source: a file of completions; MODEL@URL, or a model; "": the passages stay as they are.
        key_env, …: of a model, see `seal_lib.generation.others.Other`.

    Raises:
        DataError: the file has no notes about a passage, or the model cannot be asked at all.
    """
    if not source:
        return list(passages)
    if source.endswith(FILES):
        return from_file(paths.given(source), passages)
    writer = Other(source, key_env, calls, seconds, device, dtype)
    writer.check()
    sampling = Sampling(outer.edit_tokens, outer.temperature, outer.top_p, skip_long=True)
    write = partial(_written, run=run, writer=writer, prompts=prompts, sampling=sampling, seed=seed)
    found = run.map(f"{group}external/write", passages, write)
    return [_noted(passage, row["text"], row["reason"]) for passage, row in zip(passages, found, strict=True)]


def _written(part: Sequence[Passage], *, run: Recorder, writer: Other, prompts: Prompts, sampling: Sampling,
             seed: int) -> list[dict]:  # fmt: skip
    requests = [Request(prompts.unopened.write(p), derive_seed(seed, p.id, "external")) for p in part]
    said = writer.texts(requests, sampling, run.count)
    return [{"text": c.text.strip(), "tokens": c.tokens, "reason": _reason(c.finish, c.reason)} for c in said]


def _reason(finish: str, reason: str) -> str:
    return reason or finish if finish in ("failed", "too_long") else ""


def _noted(passage: Passage, text: str, reason: str = "") -> Passage:
    if reason:
        return replace(passage, unwritten={**passage.unwritten, "external": reason})
    return replace(passage, references={**passage.references, "external": text})


def from_file(path: Path, passages: Sequence[Passage]) -> list[Passage]:
    """The passages with the first completion that a file has about each.

    Raises:
        DataError: the file is none of completions, or has none about some passage.
    """
    if not path.is_file():
        raise DataError(f"external: no file {path}; give a JSON file of completions, or MODEL@URL.")
    value = paths.read_data(path)
    entries = value.get("articles", [value]) if isinstance(value, dict) else value
    if not isinstance(entries, list):
        raise DataError(f"{path} holds a {type(value).__name__}; expected a list of passages with completions.")
    known: dict[str, str] = {}
    for i, entry in enumerate(entries):
        text = _first(entry, f"{path}, entry {i}")
        known.setdefault(" ".join(entry["context"].split()), text)
    lacking = [passage for passage in passages if " ".join(passage.text.split()) not in known]
    if lacking:
        raise DataError(
            f"{path} has no completions about {len(lacking)} of {len(passages)} passages (the first: {lacking[0].id}, "
            f"{lacking[0].text[:60]!r}); give a file about these passages."
        )
    return [_noted(passage, known[" ".join(passage.text.split())]) for passage in passages]


def _first(entry: object, where: str) -> str:
    """The first completion of an entry."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("context"), str):
        raise DataError(f"{where}: the key 'context' is missing; an entry has a passage's context and completions.")
    completions = entry.get("completions", [entry["completion"]] if "completion" in entry else None)
    if not isinstance(completions, list) or not completions:
        raise DataError(f"{where}: no completions; write them as a list of texts, completions: [text, …].")
    text = completions[0].get("text") if isinstance(completions[0], Mapping) else completions[0]
    if not isinstance(text, str):
        raise DataError(f"{where}: completions[0] is {text!r}, not text; put it in quotes or remove the entry.")
    return text.strip()
