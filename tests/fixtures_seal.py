"""Helpers of the knowledge tests: the shipped model, small passages, a run that lives in memory; no pytest fixtures."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import pytest

from seal_lib import paths
from seal_lib.grading.graders import ALWAYS
from seal_lib.knowledge import prompts, world
from seal_lib.knowledge.domain import InnerLoop, Knowledge
from seal_lib.loops.domain import Candidate
from seal_lib.records import Answer, Passage, PassageTrial, Question, SelfEdit
from seal_lib.runs.journal import json_form

WORDING = prompts.load("seedling")
INNER = InnerLoop(lr=2e-3, epochs=10, rank=8, alpha=16, targets="all-linear", answer_tokens=8, slots=8)
DOMAIN = Knowledge(INNER, WORDING)
#: marks of a test that runs vLLM
NEEDS_VLLM = (
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed here: make test-vllm"),
)


def vllm_settings(**changes):
    """Few slots for adapters, so that they are all used soon; one engine serves all tests that ask for these."""
    from seal_lib.generation.vllm_engine import Settings

    return Settings(**{"max_loras": 2, "cpu_loras": 3, "max_num_seqs": 64, **changes})


def bug(reason: str):
    """Mark a test of something known to be wrong; it fails as soon as it is mended, so that the mark goes."""
    return pytest.mark.xfail(strict=True, reason=f"BUG {reason}")


class MemoryRun:
    """What the loops need of a run: ``map`` with the JSON round trip, ``artifact``, ``count``."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.phases, self.counts = folder, {}, {}

    def map(self, phase: str, units: Sequence, fn: Callable[[list], list[dict]], chunk: int = 32) -> list[dict]:
        assert phase not in self.phases, f"phase {phase} is mapped twice"
        ids = [unit if isinstance(unit, str) else unit.id for unit in units]
        assert len(set(ids)) == len(ids), f"{phase}: ids are not unique"
        rows: list[dict] = []
        for first in range(0, len(units), chunk):
            part = list(units[first : first + chunk])
            got = fn(part)
            assert len(got) == len(part)
            rows += [json.loads(json.dumps(json_form(row), allow_nan=False)) for row in got]
        self.phases[phase] = dict(zip(ids, rows, strict=True))
        return rows

    def artifact(self, name: str, build: Callable[[Path], object]) -> Path:
        target = self.folder / name
        if not target.exists():
            target.mkdir(parents=True)
            build(target)
        return target

    def adapters(self, phase: str) -> None: ...

    def count(self, **counts: float) -> None:
        for name, value in counts.items():
            self.counts[name] = self.counts.get(name, 0) + value


@lru_cache
def seedling():
    """(model, tokenizer) of the shipped knowledge seedling, loaded once for all tests."""
    import torch

    from seal_lib import models

    torch.set_num_threads(1)
    return models.load("seedling-knowledge")


def random_adapter(model, targets: str, rank: int, seed: int, scale: float = 1.0):
    """An adapter with random A and B, times ``scale``, on the target layers of a model."""
    import torch

    from seal_lib.training.adapters import Adapter, target_linears, target_names

    draw = torch.Generator().manual_seed(seed)
    weights = {
        name: tuple(
            scale * torch.randn(*shape, generator=draw) for shape in ((rank, x.in_features), (x.out_features, rank))
        )
        for name, x in target_linears(model, targets).items()
    }
    return Adapter(rank, 2.0 * rank, target_names(model, targets), weights)


def digest(model) -> str:
    """sha256 over all weights of a model, bit for bit."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


@lru_cache
def made(count: int, facts: int = 6, seed: int = 3, population: str = "heldout") -> tuple[Passage, ...]:
    return tuple(world.passages(population, count, seed=seed, facts=facts))


def candidate(passage: Passage, text: str | None, arm: str = "arm", seed: int = 1) -> Candidate:
    edit = None if text is None else SelfEdit(f"{passage.id}/{arm}", passage.id, text, arm)
    return Candidate(f"{passage.id}/{arm}", passage, edit, arm, seed)


def untrained(passages: Sequence[Passage], arm: str = "frozen", shown: bool = False) -> list[Candidate]:
    """The model as it is, asked about every passage; ``shown``: with the passage in view."""
    return [Candidate(f"{arm}/{p.id}", p, None, arm, 0, trains=False, shown=shown) for p in passages]


def trials_of(candidates: Sequence[Candidate], settings: InnerLoop = INNER, wording=WORDING) -> list[PassageTrial]:
    """The inner loop on the shipped model."""
    from seal_lib.loops.inner import try_all
    from seal_lib.loops.policy import Policy

    return try_all(Policy("untrained", *seedling()), candidates, domain=Knowledge(settings, wording))


def wrong_value(passage: Passage, name: str, attribute: str, value: str) -> str:
    """A value of the attribute that nothing in the passage has."""
    taken = {fact[2] for fact in passage.facts}
    return next(other for other in world.VALUES[attribute] if other not in taken)


def wrong_notes(passage: Passage) -> str:
    """Notes of the best form that state a wrong value for every fact."""
    lines = [
        world.WORDINGS[attribute].forward[0].format(n=name, v=wrong_value(passage, name, attribute, value))
        for name, attribute, value in passage.facts
    ]
    return "\n".join("- " + line for line in lines)


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def trial(
    passage: str,
    right: list[float],
    arm: str = "arm",
    outcome: str = "ok",
    edit: SelfEdit | None = None,
    name: str = "",
    blanks: int = 0,
) -> PassageTrial:
    """A hand-made trial with the given exact-match grades."""
    answers = tuple(
        Answer(f"q{i}", "gold", "" if i < blanks else "text", dict.fromkeys(ALWAYS, exact), i < blanks)
        for i, exact in enumerate(right)
    )
    return PassageTrial(name or f"{passage}/{arm}", passage, arm, edit, 0, answers, "exact", outcome)


def plain_passage(text: str = "Some text.", title: str = "Title", name: str = "p") -> Passage:
    return Passage(name, title, text, (Question("Who?", "somebody"),))


def real_data() -> Path | None:
    """The folder that SEAL_DATA names, or None; tests on real data are then skipped."""
    value = os.environ.get("SEAL_DATA", "")
    return paths.expanded(value).resolve() if value else None


def real(*parts: str) -> Path:
    """A file of the real data; the test skips, saying so, where SEAL_DATA does not name it."""
    home = real_data()
    if home is None:
        pytest.skip("SEAL_DATA is not set: no real data to test on")
    file = home.joinpath(*parts)
    if not file.is_file():
        pytest.skip(f"SEAL_DATA has no {'/'.join(parts)}")
    return file
