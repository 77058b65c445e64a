"""ReST^EM, the outer loop: sample self-edits, score each by the inner loop, keep by reward, finetune the policy.

Rewards and filters are rows of two registries, so a control ("keep a random one") is another row, not another loop.
Everything a round does is recorded per trial in the run, and a killed round resumes at its next chunk.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from seal_lib.errors import DataError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.knowledge.inner import Candidate, InnerLoop, run_trials, untrained_trials
from seal_lib.knowledge.prompts import Prompts
from seal_lib.loops.policy import Policy
from seal_lib.models.tokens import read_ids, turn_end, written_ids
from seal_lib.records import Passage, Round, SelfEdit, Trial, to_dict
from seal_lib.runs.work import Work
from seal_lib.seeds import derive_seed, rng

#: reward name → (trial, accuracy of the frozen policy on that passage) → number, NaN if the trial has no answers.
#: Accuracy is by the loop's grader, which the trial carries.
REWARDS: dict[str, Callable[[Trial, float], float]] = {
    "accuracy": lambda trial, frozen: trial.accuracy,
    # paper Eq. 2: 1 if the self-edit improves on the frozen policy, else 0 (the released code uses best-of-k instead)
    "improvement": lambda trial, frozen: math.nan if math.isnan(trial.accuracy) else float(trial.accuracy > frozen),
}


def _best_of_k(rewards: list[float], seed: int, threshold: float) -> list[int]:
    """The authors' rule: the best of a passage's k, ties to the first, never none — unless all failed to train."""
    finite = [i for i, reward in enumerate(rewards) if not math.isnan(reward)]
    return [max(finite, key=lambda i: rewards[i])] if finite else []


def _random_one(rewards: list[float], seed: int, threshold: float) -> list[int]:
    """Control: one of the k, blind to the reward."""
    return [rng(seed, "random filter").randrange(len(rewards))]


def _random_as_many(rewards: list[float], seed: int, threshold: float) -> list[int]:
    """Control: blind to which ones, but as many as ``threshold`` keeps, so that only the choice differs."""
    return sorted(rng(seed, "random filter").sample(range(len(rewards)), len(_above(rewards, seed, threshold))))


def _above(rewards: list[float], seed: int, threshold: float) -> list[int]:
    """All whose reward exceeds the threshold (ReST^EM's own filter)."""
    return [i for i, reward in enumerate(rewards) if reward > threshold]


def _best_above(rewards: list[float], seed: int, threshold: float) -> list[int]:
    """The best of k, if it exceeds the threshold."""
    return [i for i in _best_of_k(rewards, seed, threshold) if rewards[i] > threshold]


#: filter name → indices kept among one passage's k self-edits
FILTERS: dict[str, Callable[[list[float], int, float], list[int]]] = {
    "best_of_k": _best_of_k,
    "random": _random_one,
    "random_as_many": _random_as_many,
    "threshold": _above,
    "best_above": _best_above,
}


@dataclass(frozen=True)
class OuterLoop:
    """Settings of a round. The ``sft_*`` values train the policy on the kept self-edits (paper Table 3, B.3)."""

    samples: int = 5  # self-edits per passage
    temperature: float = 1.0
    top_p: float = 0.95
    edit_tokens: int = 8192
    reward: str = "accuracy"
    reward_seeds: int = 1  # inner-loop runs averaged into one reward
    filter: str = "best_of_k"
    threshold: float = 0.0
    sft_rank: int = 64
    sft_alpha: float = 128.0
    sft_lr: float = 3e-4
    sft_epochs: int = 2
    sft_batch: int = 10  # pairs per optimiser step, however they are cut into passes
    sft_schedule: str = "linear"
    sft_warmup_ratio: float = 0.0  # of the steps
    sft_weight_decay: float = 0.0
    sft_clip: float = 1.0  # largest gradient norm; 0: no bound
    sft_targets: str = "all-linear"

    def __post_init__(self):
        for key, registry in (("reward", REWARDS), ("filter", FILTERS)):
            if getattr(self, key) not in registry:
                raise DataError(f"{key}: {getattr(self, key)!r} is not one of {', '.join(registry)}.")


@dataclass(frozen=True)
class Asked:
    """What the policy reads before it writes about the passage or puzzle of that id."""

    id: str
    prompt: str


def write_self_edits(run, policy: Policy, passages: Sequence[Passage], prompts: Prompts, outer: OuterLoop, *,
                     phase: str, seed: int, samples: int | None = None, chunk: int = 32,
                     schema: str | None = None) -> list[SelfEdit]:  # fmt: skip
    """E-step, first half: ``samples`` self-edits per passage (default ``outer.samples``), passage by passage.

    ``passages`` may be anything with an ``id`` (puzzles too) for which ``prompts.write`` gives what the policy reads.
    ``schema``: the JSON schema that a self-edit is held to, if any.
    """
    asked = [Asked(p.id, prompts.write(p)) for p in passages]
    sampling = Sampling(outer.edit_tokens, outer.temperature, outer.top_p, samples or outer.samples, schema=schema)
    work = Work(partial(_write, sampling=sampling, seed=seed), policy, run.count)
    rows = run.map(phase, asked, work, chunk=chunk)
    return [SelfEdit.from_dict(edit) for row in rows for edit in row["edits"]]


def _write(policy: Policy, part: Sequence[Asked], count, *, sampling: Sampling, seed: int) -> list[dict]:
    requests = [Request(asked.prompt, derive_seed(seed, asked.id, "self-edit")) for asked in part]
    texts = policy.generator().generate(requests, sampling)
    rows = []
    for asked, completions in zip(part, texts, strict=True):
        edits = [
            SelfEdit(f"{asked.id}/{k}", asked.id, done.text.strip(), policy.name, seed, done.tokens)
            for k, done in enumerate(completions)
        ]
        rows.append({"edits": [to_dict(edit) for edit in edits]})
    count(generated=sum(edit["tokens"] for row in rows for edit in row["edits"]))
    return rows


def score(run, policy: Policy, candidates: Sequence[Candidate], prompts: Prompts, inner: InnerLoop, *,
          phase: str, chunk: int | None = None) -> list[Trial]:  # fmt: skip
    """Inner-loop trials of all candidates, recorded under ``phase``."""
    work = Work(partial(_score, prompts=prompts, inner=inner), policy, run.count)
    return [Trial.from_dict(row) for row in run.map(phase, candidates, work, chunk=chunk or 2 * (inner.slots or 32))]


def _score(policy: Policy, part: Sequence[Candidate], count, *, prompts: Prompts, inner: InnerLoop) -> list[dict]:
    trials = run_trials(policy.model, policy.tokenizer, part, prompts, inner, policy.generator(), count=count)
    count(trained=sum(t.tokens for t in trials), scored=sum(len(t.answers) for t in trials))
    return [to_dict(t) for t in trials]


def ask(run, policy: Policy, passages: Sequence[Passage], arm: str, prompts: Prompts, inner: InnerLoop, *,
        phase: str, in_context: bool = False) -> list[Trial]:  # fmt: skip
    """Trials without training, one per passage, recorded under ``phase``."""
    unit = partial(_ask, arm=arm, prompts=prompts, inner=inner, in_context=in_context)
    return [Trial.from_dict(row) for row in run.map(phase, passages, Work(unit, policy, run.count), chunk=64)]


def _ask(policy: Policy, part: Sequence[Passage], count, *, arm: str, prompts: Prompts, inner: InnerLoop,
         in_context: bool) -> list[dict]:  # fmt: skip
    trials = untrained_trials(policy.generator(), part, arm, prompts, inner, in_context)
    count(scored=sum(len(t.answers) for t in trials))
    return [to_dict(t) for t in trials]


def candidates_of(edits: Sequence[SelfEdit], passages: Sequence[Passage], arm: str, seed: int) -> list[Candidate]:
    """One candidate per self-edit; the training seed comes from the run seed and the edit's id."""
    known = {passage.id: passage for passage in passages}
    return [Candidate(e.id, known[e.passage_id], e, arm, derive_seed(seed, e.id, "trial")) for e in edits]


def filter_round(trials: Sequence[Sequence[Trial]], edits: Sequence[SelfEdit], frozen: dict[str, float],
                 outer: OuterLoop, seed: int) -> tuple[list[float], list[SelfEdit]]:  # fmt: skip
    """Reward per self-edit (mean over its ``reward_seeds`` trials) and the kept self-edits, passage by passage.

    A self-edit one of whose trials failed has the reward NaN: it is never the best and never above a threshold.
    """
    reward = REWARDS[outer.reward]
    rewards = []
    for several in trials:
        values = [reward(trial, frozen.get(trial.passage_id, math.nan)) for trial in several]
        rewards.append(sum(values) / len(values))
    groups: dict[str, list[int]] = {}
    for i, edit in enumerate(edits):
        groups.setdefault(edit.passage_id, []).append(i)
    kept = []
    for passage, members in groups.items():
        picked = FILTERS[outer.filter]([rewards[i] for i in members], derive_seed(seed, passage), outer.threshold)
        kept += [edits[members[k]] for k in picked if edits[members[k]].text.strip()]
    return rewards, kept


def sft_pairs(policy: Policy, kept: Sequence[SelfEdit], passages: Sequence[Passage], prompts: Prompts) -> list[tuple]:
    """(prompt ids, completion ids) of each kept self-edit; the completion goes on from the prompt and ends the turn."""
    known, tokenizer = {passage.id: passage for passage in passages}, policy.tokenizer
    end = turn_end(policy.model, tokenizer)
    return [
        (read_ids(prompts.write(known[edit.passage_id]), tokenizer), written_ids(edit.text, end, tokenizer))
        for edit in kept
    ]


def finetune_policy(run, policy: Policy, pairs: Sequence[tuple], outer: OuterLoop, *, name: str,
                    seed: int) -> tuple[Policy, float]:  # fmt: skip
    """M-step: LoRA SFT on (prompt ids, completion ids), merged into a copy. The adapter is an artifact of the run."""
    import json

    from seal_lib.training.adapters import Adapter, merge
    from seal_lib.training.finetune import sft

    if not pairs:
        raise DataError(f"{name}: no self-edit passed the filter {outer.filter!r}; lower its threshold or sample more.")

    def build(folder: Path) -> None:
        batch, accumulate = pieces(policy.model, outer.sft_batch)
        adapter, report = sft(
            policy.model, pairs, rank=outer.sft_rank, alpha=outer.sft_alpha, lr=outer.sft_lr, epochs=outer.sft_epochs,
            batch=batch, accumulate=accumulate, targets=outer.sft_targets, schedule=outer.sft_schedule,
            warmup_ratio=outer.sft_warmup_ratio, weight_decay=outer.sft_weight_decay, clip=outer.sft_clip,
            seed=derive_seed(seed, name, "sft"),
        )  # fmt: skip
        adapter.save(folder / "adapter", policy.name)
        (folder / "report.json").write_text(json.dumps(report))

    folder = run.artifact(f"policies/{name}", build)
    merged = merge(policy.model, Adapter.load(folder / "adapter"), copy=True)
    loss = json.loads((folder / "report.json").read_text())["last_loss"]
    source = policy.source and policy.source.then(folder / "adapter")
    return replace(policy, name=name, model=merged, source=source), loss


def pieces(model, batch: int) -> tuple[int, int]:
    """(pairs a forward pass, passes an optimiser step) of the M-step: the same mean over all targets either way.

    On a GPU one pair fills a pass, and ten of 2 000 tokens at once would not fit beside a 7B model (`seal_lib.plan`).
    """
    return (batch, 1) if next(model.parameters()).device.type == "cpu" else (1, batch)


def restem_round(run, policy: Policy, passages: Sequence[Passage], prompts: Prompts, inner: InnerLoop,
                 outer: OuterLoop, *, index: int, name: str, seed: int) -> tuple[Policy, Round]:  # fmt: skip
    """One round on ``passages``: E-step, filter, M-step. Returns the next policy and the full record.

    With filter ``random`` nothing is scored: the reward plays no part, so it is not paid for.
    """
    phase = f"{name}/{{}}".format
    frozen: dict[str, float] = {}
    edits = write_self_edits(run, policy, passages, prompts, outer, phase=phase("sample"), seed=seed)
    if outer.filter == "random":
        scored: list[list[Trial]] = []
        rewards, kept = filter_random(edits, outer, seed)
    else:
        if _needs_frozen(outer):
            frozen = frozen_accuracy(run, policy, passages, prompts, inner, phase("frozen"))
        repeats = [
            score(run, policy, candidates_of(edits, passages, name, derive_seed(seed, "reward", s)), prompts, inner,
                  phase=phase("score" if s == 0 else f"score_{s}"))
            for s in range(outer.reward_seeds)
        ]  # fmt: skip
        scored = [list(several) for several in zip(*repeats, strict=True)]
        rewards, kept = filter_round(scored, edits, frozen, outer, seed)
    pairs = sft_pairs(policy, kept, passages, prompts)
    following, loss = finetune_policy(run, policy, pairs, outer, name=name, seed=seed)
    first = tuple(several[0] for several in scored)
    ids = tuple(edit.id for edit in kept)
    record = Round(index, first, tuple(rewards), ids, loss, outer.reward, frozen)
    warn_if_blind(record, outer, inner)
    return following, record


def warn_if_blind(record: Round, outer: OuterLoop, inner: InnerLoop) -> None:
    """Warn where the reward cannot tell the self-edits of more than half of the passages apart."""
    one_best = outer.filter.startswith("best")  # a filter that keeps all above a threshold is not blind at a tie
    share = record.undecided_share if one_best else record.zero_share
    if share > 0.5:
        warnings.warn(
            f"Round {record.index}: the best reward {'is shared by several self-edits or 0' if one_best else 'is 0'} "
            f"for {share:.0%} of the passages or tasks, so what filter {outer.filter!r} keeps there says little; ask "
            f"more questions, raise reward_seeds, or take another grader than {inner.grader!r}.",
            stacklevel=3,
        )


def filter_random(edits: Sequence[SelfEdit], outer: OuterLoop, seed: int) -> tuple[list[float], list[SelfEdit]]:
    """The control's filter: no rewards, one random self-edit per passage."""
    groups: dict[str, list[SelfEdit]] = {}
    for edit in edits:
        groups.setdefault(edit.passage_id, []).append(edit)
    picks = [g[k] for p, g in groups.items() for k in FILTERS["random"]([0.0] * len(g), derive_seed(seed, p), 0.0)]
    return [], [edit for edit in picks if edit.text.strip()]


def _needs_frozen(outer: OuterLoop) -> bool:
    return outer.reward == "improvement"


def frozen_accuracy(run, policy: Policy, passages, prompts, inner, phase: str) -> dict[str, float]:
    """Accuracy of the policy without any adapter, per passage id."""
    return {
        trial.passage_id: trial.accuracy for trial in ask(run, policy, passages, "frozen", prompts, inner, phase=phase)
    }
