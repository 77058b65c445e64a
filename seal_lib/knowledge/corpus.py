"""Texts by several writers about many passages, and the corpus that they form.

A writer is a row of `WRITERS`; every shipped strategy is one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from seal_lib.errors import must_be_one_of
from seal_lib.knowledge import notes, relations, strategies
from seal_lib.knowledge.documents import read_edit
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.relations import Text
from seal_lib.loops.outer import write_self_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop, Pretraining
from seal_lib.paths import write_text
from seal_lib.records import Passage, values_of
from seal_lib.runs.work import Recorder


@dataclass(frozen=True)
class CorpusDocument:
    """A document of a corpus with its provenance. ``kind``: ``edit`` or ``passage``; ``sample``: -1 for a passage."""

    text: str
    kind: str
    passage: str
    title: str
    writer: str = ""
    sample: int = -1
    about: tuple[str, ...] = ()


@dataclass(frozen=True)
class Writer:
    """The writer of an arm's texts.

    ``source``: ``none`` (no training), ``passage`` (no texts, the passages alone), ``policy`` (self-edits of the arm's
    policy), ``external`` (a stronger writer) or ``strategy`` (a way to study, ``study``: the made world has ready notes
    for it; about other passages the policy follows it).
    """

    source: str
    meaning: str
    study: strategies.Strategy | None = None


WRITERS: dict[str, Writer] = {
    "frozen": Writer("none", "the model as it is"),
    "passage_only": Writer("passage", "trained on the passages alone"),
    "own_untrained": Writer("policy", "passages and the untrained policy's self-edits"),
    "external": Writer("external", "passages and the notes of a stronger writer (the paper's GPT-4.1)"),
    "seal": Writer("policy", "passages and the self-edits of the policy after its rounds"),
} | {
    study.arm: Writer("strategy", f"passages and texts of the strategy {study.name}", study)
    for study in strategies.load()
}


def writer_of(arm: str) -> Writer:
    """Return the writer of an arm; ``seal_round_2`` is SEAL's.

    Raises:
        DataError: the arm is unknown.
    """
    name = re.sub(r"_round_\d+$", "", arm)
    must_be_one_of("arms", name, WRITERS)
    return WRITERS[name]


def write(
    run: Recorder,
    policy: Policy,
    passages: Sequence[Passage],
    arm: str,
    domain: Knowledge,
    outer: OuterLoop,
    *,
    count: int,
    seed: int,
) -> list[Text]:
    """Return the texts of an arm, ``count`` per passage (or per size of group), recorded in phases
    ``seed_<seed>/evaluate/<arm>/…``."""
    writer, phase = writer_of(arm), f"seed_{seed}/evaluate/{arm}"
    if writer.source == "policy":
        edits = write_self_edits(run, policy, passages, domain, outer, phase=f"{phase}/write", seed=seed, samples=count)
        return [Text(e.unit_id, e.source, int(e.id.rpartition("/")[2]), e.text) for e in edits if e.text.strip()]
    if writer.source == "external":
        said = [(p, notes.several(p, "external", count, seed)) for p in passages]
        return [Text(p.id, "external", i, text) for p, several in said for i, text in enumerate(several)]
    study = writer.study
    if study is None:
        return []
    if study.groups:
        return relations.write(run, policy, passages, outer, **study.relating, phase=phase, count=count, seed=seed)
    made = [study.notes(p, count, seed) for p in passages if p.facts]
    told = [p for p in passages if not p.facts]
    if told:
        following = replace(domain, prompts=study.prompts(domain.prompts))
        place = f"{phase}/write"
        made += strategies.write(run, policy, told, following, outer, phase=place, count=count, seed=seed).values()
    return [Text(e.unit_id, e.source, i, e.text) for edits in made for i, e in enumerate(edits) if e.text.strip()]


def documents(
    passages: Sequence[Passage], texts: Sequence[Text], domain: Knowledge, settings: Pretraining, *, count: int
) -> list[CorpusDocument]:
    """Return the corpus: each passage's first ``count`` texts of each kind, cut into documents, then the passage."""
    own = values_of([text for text in texts if text.sample < count], lambda text: text)[0]
    found = []
    for passage in passages:
        for text in own.get(passage.id, ()):
            for piece in read_edit(text.text, settings.cpt_lines, domain.inner.protocol)[0]:
                full = domain.prompts.training_text(passage.title, piece)
                found += [CorpusDocument(full, "edit", passage.id, passage.title, text.writer, text.sample, text.about)]
        copies = max(1, len(own.get(passage.id, ()))) if settings.cpt_passages == "each" else 1
        full = domain.prompts.training_text(passage.title, passage.text.strip())
        found += [CorpusDocument(full, "passage", passage.id, passage.title)] * copies
    return found


def export(run: Recorder, corpora: Mapping[str, Sequence[CorpusDocument]]) -> Path:
    """Write every corpus to a folder of the run as ``<name>.jsonl`` and ``<name>.parquet``; ``text`` is trained on."""
    import pandas as pd

    def build(folder: Path) -> None:
        for name, corpus in corpora.items():
            rows = [asdict(document) for document in corpus]
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(folder / f"{name}.jsonl", "".join(lines))
            pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet", index=False)

    return run.artifact("corpora", build)
