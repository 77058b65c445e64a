"""Texts about groups of things that a passage names (the idea: EntiGraph, arXiv 2409.07431): the things are listed,
groups of them drawn, and a text is written for each group. Knows no registry: the wordings are given."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from seal_lib.generation.contract import Request, Sampling
from seal_lib.knowledge import world
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.loops.wording import fill
from seal_lib.records import Passage
from seal_lib.runs.work import Recorder
from seal_lib.seeds import derive_seed, rng

ENTITIES = 20  # at most so many of a passage are looked at


@dataclass(frozen=True)
class Text:
    """One text about a passage. ``sample``: its number among those of its kind, from 0; ``about``: the things that it
    relates."""

    unit_id: str
    writer: str
    sample: int
    text: str
    about: tuple[str, ...] = ()


def write(
    run: Recorder,
    policy: Policy,
    passages: Sequence[Passage],
    outer: OuterLoop,
    *,
    listing: str,
    relating: str,
    sizes: Sequence[int],
    phase: str,
    count: int,
    seed: int,
) -> list[Text]:
    """``count`` texts a passage for each size of group, fewer where it names too few things for so many; recorded in
    phases ``<phase>/…``. About the made world they are `made`, else the policy writes them.

    Args:
        listing, relating: what the policy reads before it lists what a passage names, and before it relates
            {entities}.
    """
    told = [p for p in passages if not p.facts]
    prompts = [fill(listing, title=p.title, passage=p.text) for p in told]
    lists = _generated(run, policy, [p.id for p in told], prompts, outer, f"{phase}/entities", seed)
    named = {p.id: entities_of(text, p.text) for p, text in zip(told, lists, strict=True)}
    texts = []
    for size in sizes:
        asked = [(p, i, group) for p in told for i, group in enumerate(_drawn(p, named[p.id], size, count, seed))]
        prompts = [fill(relating, title=p.title, passage=p.text, entities=", ".join(group)) for p, _, group in asked]
        ids, place = [f"{p.id}/{i}" for p, i, _ in asked], f"{phase}/relate_{size}"
        said = _generated(run, policy, ids, prompts, outer, place, seed)
        found: dict[str, list[Text]] = {p.id: made(p, size, count, seed) for p in passages if p.facts}
        for (p, i, group), text in zip(asked, said, strict=True):
            found.setdefault(p.id, []).append(Text(p.id, policy.name, i, text, group))
        texts += [text for p in passages for text in found.get(p.id, ()) if text.text.strip()]
    return texts


def made(passage: Passage, size: int, count: int, seed: int) -> list[Text]:
    """Texts about groups of a passage of the made world: the stronger writer's notes on every fact that one of the
    group is in."""
    names = list(dict.fromkeys([f[0] for f in passage.facts] + [f[2] for f in passage.facts]))
    texts = []
    for i, group in enumerate(_drawn(passage, names, size, count, seed)):
        facts = [world.Fact(*fact) for fact in passage.facts if fact[0] in group or fact[2] in group]
        notes = world.external_notes(facts, rng(derive_seed(seed, passage.id, size, i), "relations"))
        texts.append(Text(passage.id, "world", i, notes, group))
    return texts


def _drawn(passage: Passage, names: Sequence[str], size: int, count: int, seed: int) -> list[tuple[str, ...]]:
    groups = list(combinations(names, size))
    return rng(seed, passage.id, "groups", size).sample(groups, min(count, len(groups)))


def entities_of(listed: str, passage: str) -> list[str]:
    """The names of a list that stand in the passage, in order, each once, `ENTITIES` at most."""
    found: dict[str, str] = {}
    for line in re.split(r"[\n;,]", listed):
        name = re.sub(r"^(?:[-*•–]|\d+[.)])?\s*", "", line.strip()).strip(" .\"'*")
        if name and name.casefold() in passage.casefold():
            found.setdefault(name.casefold(), name)
    return list(found.values())[:ENTITIES]


def _generated(
    run: Recorder, policy: Policy, ids: Sequence[str], prompts: Sequence[str], outer: OuterLoop, phase: str, seed: int
) -> list[str]:
    """Texts that the policy writes after prompts, "" where one is longer than the model takes; recorded."""
    if not ids:
        return []
    sampling = Sampling(outer.edit_tokens, outer.temperature, outer.top_p, skip_long=True)
    requests = {i: Request(prompt, derive_seed(seed, i, phase)) for i, prompt in zip(ids, prompts, strict=True)}

    def written(part: Sequence[str]) -> list[dict]:
        done = policy.generator().generate([requests[i] for i in part], sampling)
        run.count(generated=sum(one.tokens for (one,) in done))
        return [{"text": one.text.strip()} for (one,) in done]

    return [row["text"] for row in run.map(phase, ids, written, chunk=256)]
