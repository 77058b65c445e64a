"""Texts by several writers about many passages, and the corpus that they form. A writer is a row of `WRITERS`."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from seal_lib.errors import DataError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.knowledge import notes, world
from seal_lib.knowledge.documents import read_edit
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops.outer import write_self_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop, Pretraining
from seal_lib.loops.wording import fill
from seal_lib.paths import write_text
from seal_lib.records import Passage
from seal_lib.runs import yaml_files
from seal_lib.runs.work import Recorder
from seal_lib.seeds import derive_seed, rng

ENTITIES = 20  # most entities of a passage that are used


@dataclass(frozen=True)
class Text:
    """A text about a passage. ``sample``: its index among those of its kind, from 0; ``about``: the entities it
    relates."""

    unit_id: str
    writer: str
    sample: int
    text: str
    about: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
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
    policy), ``external`` (a stronger writer) or ``relations`` (texts that each relate some entities of the passage, as
    many at a time as ``groups`` says).
    """

    source: str
    meaning: str
    groups: tuple[int, ...] = ()


WRITERS: dict[str, Writer] = {
    "frozen": Writer("none", "the model as it is"),
    "passage_only": Writer("passage", "trained on the passages alone"),
    "own_untrained": Writer("policy", "passages and the untrained policy's self-edits"),
    "external": Writer("external", "passages and the notes of a stronger writer (the paper's GPT-4.1)"),
    "entigraph_pairs": Writer("relations", "passages and texts that relate two of their entities", (2,)),
    "entigraph": Writer("relations", "the same, and as many texts that relate three", (2, 3)),
    "seal": Writer("policy", "passages and the self-edits of the policy after its rounds"),
}


def writer_of(arm: str) -> Writer:
    """Return the writer of an arm; ``seal_round_2`` is SEAL's.

    Raises:
        DataError: the arm is unknown.
    """
    name = re.sub(r"_round_\d+$", "", arm)
    if name not in WRITERS:
        raise DataError(f"arms: {arm!r} is not one of {', '.join(WRITERS)}.")
    return WRITERS[name]


def write(run: Recorder, policy: Policy, passages: Sequence[Passage], arm: str, domain: Knowledge, outer: OuterLoop, *,
          count: int, seed: int) -> list[Text]:  # fmt: skip
    """Return the texts of an arm, ``count`` per passage (or per size of group), recorded in phases
    ``seed_<seed>/evaluate/<arm>/…``."""
    writer, phase = writer_of(arm), f"seed_{seed}/evaluate/{arm}"
    if writer.source == "policy":
        edits = write_self_edits(run, policy, passages, domain, outer, phase=f"{phase}/write", seed=seed, samples=count)
        return [Text(e.unit_id, e.source, int(e.id.rpartition("/")[2]), e.text) for e in edits if e.text.strip()]
    if writer.source == "external":
        said = [(p, notes.several(p, "external", count, seed)) for p in passages]
        return [Text(p.id, "external", i, text) for p, several in said for i, text in enumerate(several)]
    if writer.source == "relations":
        named = _entities(run, policy, passages, outer, f"{phase}/entities", seed)
        return [
            text
            for size in writer.groups
            for text in _related(run, policy, passages, named, outer, f"{phase}/relate_{size}", size, count, seed)
        ]
    return []


def _entities(run: Recorder, policy: Policy, passages: Sequence[Passage], outer: OuterLoop, phase: str,
              seed: int) -> dict[str, list[str]]:  # fmt: skip
    """Return passage id → its entities: people and values of the made world, otherwise those that the policy lists."""
    named = {p.id: list(dict.fromkeys([f[0] for f in p.facts] + [f[2] for f in p.facts])) for p in passages if p.facts}
    told = [p for p in passages if not p.facts]
    if told:
        prompts = [_wording("entities", title=p.title, passage=p.text) for p in told]
        texts = _generated(run, policy, [p.id for p in told], prompts, outer, phase, seed)
        named |= {p.id: entities_of(text, p.text) for p, text in zip(told, texts, strict=True)}
    return named


def entities_of(listed: str, passage: str) -> list[str]:
    """Return the listed names that occur in the passage, in order, each once, at most `ENTITIES`."""
    found: dict[str, str] = {}
    for line in re.split(r"[\n;,]", listed):
        name = re.sub(r"^(?:[-*•–]|\d+[.)])?\s*", "", line.strip()).strip(" .\"'*")
        if name and name.casefold() in passage.casefold():
            found.setdefault(name.casefold(), name)
    return list(found.values())[:ENTITIES]


def _related(run: Recorder, policy: Policy, passages: Sequence[Passage], named: Mapping[str, list[str]],
             outer: OuterLoop, phase: str, size: int, count: int, seed: int) -> list[Text]:  # fmt: skip
    """Return a text for each of ``count`` random groups of ``size`` entities; fewer if the passage names too few."""
    asked: list[tuple[Passage, int, tuple[str, ...]]] = []
    for passage in passages:
        groups = list(combinations(named[passage.id], size))
        drawn = rng(seed, passage.id, "groups", size).sample(groups, min(count, len(groups)))
        asked += [(passage, i, group) for i, group in enumerate(drawn)]
    told = [(p, i, group) for p, i, group in asked if not p.facts]
    prompts = [_wording("relate", title=p.title, passage=p.text, entities=", ".join(group)) for p, _, group in told]
    said = iter(_generated(run, policy, [f"{p.id}/{i}" for p, i, _ in told], prompts, outer, phase, seed))
    texts = []
    for passage, i, group in asked:
        text = _made(passage, group, derive_seed(seed, passage.id, size, i)) if passage.facts else next(said)
        if text.strip():
            texts.append(Text(passage.id, policy.name if not passage.facts else "world", i, text, group))
    return texts


def _made(passage: Passage, group: Sequence[str], seed: int) -> str:
    """Return notes by the made world's stronger writer on every fact that involves one of these entities."""
    facts = [world.Fact(*fact) for fact in passage.facts if fact[0] in group or fact[2] in group]
    return world.external_notes(facts, rng(seed, "relations"))


def _wording(name: str, **slots: str) -> str:
    return fill(yaml_files.read(Path(__file__).with_name("relations.yaml"))[name], **slots)


def _generated(run: Recorder, policy: Policy, ids: Sequence[str], prompts: Sequence[str], outer: OuterLoop, phase: str,
               seed: int) -> list[str]:  # fmt: skip
    """Return the text that the policy writes for each prompt, "" where the model cannot take the prompt; recorded."""
    if not ids:
        return []
    sampling = Sampling(outer.edit_tokens, outer.temperature, outer.top_p, skip_long=True)
    requests = {i: Request(prompt, derive_seed(seed, i, phase)) for i, prompt in zip(ids, prompts, strict=True)}

    def written(part: Sequence[str]) -> list[dict]:
        done = policy.generator().generate([requests[i] for i in part], sampling)
        run.count(generated=sum(one.tokens for (one,) in done))
        return [{"text": one.text.strip()} for (one,) in done]

    return [row["text"] for row in run.map(phase, ids, written, chunk=256)]


def documents(passages: Sequence[Passage], texts: Sequence[Text], domain: Knowledge, settings: Pretraining, *,
              count: int) -> list[Document]:  # fmt: skip
    """Return the corpus: each passage's first ``count`` texts of each kind, cut into documents, then the passage."""
    own: dict[str, list[Text]] = {}
    for text in texts:
        if text.sample < count:
            own.setdefault(text.unit_id, []).append(text)
    found = []
    for passage in passages:
        for text in own.get(passage.id, ()):
            for piece in read_edit(text.text, settings.cpt_lines, domain.inner.protocol)[0]:
                whole = domain.prompts.training_text(passage.title, piece)
                found.append(Document(whole, "edit", passage.id, passage.title, text.writer, text.sample, text.about))
        copies = max(1, len(own.get(passage.id, ()))) if settings.cpt_passages == "each" else 1
        whole = domain.prompts.training_text(passage.title, passage.text.strip())
        found += [Document(whole, "passage", passage.id, passage.title)] * copies
    return found


def _jsonl(corpus: Sequence[Document], file: Path) -> None:
    write_text(file, "".join(json.dumps(asdict(document), ensure_ascii=False) + "\n" for document in corpus))


def _parquet(corpus: Sequence[Document], file: Path) -> None:
    import pandas as pd

    pd.DataFrame([asdict(document) for document in corpus]).to_parquet(file, index=False)


#: file extension → function that writes a corpus for other trainers
FORMATS: dict[str, Callable[[Sequence[Document], Path], None]] = {"jsonl": _jsonl, "parquet": _parquet}


def export(run: Recorder, corpora: Mapping[str, Sequence[Document]]) -> Path:
    """Write every corpus in every format to a folder of the run (``<name>.jsonl``, …); ``text`` is trained on."""

    def build(folder: Path) -> None:
        for name, corpus in corpora.items():
            for end, save in FORMATS.items():
                save(corpus, folder / f"{name}.{end}")

    return run.artifact("corpora", build)
