"""Write texts about groups of entities of a passage (the idea: EntiGraph, arXiv 2409.07431).

The policy lists the entities that a passage names, groups of them are drawn, and one text is written per group. Knows
no registry: the caller gives the prompts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from seal_lib.generation.contract import Request
from seal_lib.knowledge import world
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.loops.wording import fill
from seal_lib.records import Passage
from seal_lib.runs.work import Recorder
from seal_lib.seeds import derive_seed, rng

ENTITIES = 20  # at most this many entities of a passage are used


@dataclass(frozen=True)
class Text:
    """A text about a passage. ``sample``: its index among those of its kind, from 0; ``about``: the entities it
    relates.
    """

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
    """Return ``count`` texts per passage and group size, fewer if a passage names too few entities for as many groups.

    The texts about passages of the made world are `made`; the policy writes the others, recorded in phases
    ``<phase>/…``. Blank texts are left out.

    Args:
        listing: prompt after which the policy lists the entities that a passage names; slots {title} {passage}.
        relating: prompt after which it writes about a group of them, the slot {entities}.
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
    """Return texts about ``count`` groups of ``size`` entities of a made-world passage, fewer if there are not so many.

    A text is the stronger writer's notes on every fact about an entity of its group.
    """
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
    """Return the listed names that occur in the passage, in order, each once, at most `ENTITIES`."""
    found: dict[str, str] = {}
    for line in re.split(r"[\n;,]", listed):
        name = re.sub(r"^(?:[-*•–]|\d+[.)])?\s*", "", line.strip()).strip(" .\"'*")
        if name and name.casefold() in passage.casefold():
            found.setdefault(name.casefold(), name)
    return list(found.values())[:ENTITIES]


def _generated(
    run: Recorder, policy: Policy, ids: Sequence[str], prompts: Sequence[str], outer: OuterLoop, phase: str, seed: int
) -> list[str]:
    """Return the text that the policy writes for each prompt, "" where the model cannot take the prompt; recorded."""
    if not ids:
        return []
    requests = {i: Request(prompt, derive_seed(seed, i, phase)) for i, prompt in zip(ids, prompts, strict=True)}

    def written(part: Sequence[str]) -> list[dict]:
        done = policy.generator().generate([requests[i] for i in part], outer.sampling())
        run.count(generated=sum(one.tokens for (one,) in done))
        return [{"text": one.text.strip()} for (one,) in done]

    return [row["text"] for row in run.map(phase, ids, written, chunk=256)]
