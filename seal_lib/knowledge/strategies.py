"""Train on several self-edits of several kinds, and compute the rows of ``knowledge/strategies``.

Strategies are data (``strategies.yaml``). An arm is a writer with an amount: ``own_untrained_x3`` is trained on three
self-edits, ``own_untrained_t400`` on as many of their documents as fit into 400 tokens with the passage. So writers are
compared at equal tokens by training on equal tokens; nothing is interpolated.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from seal_lib.errors import DataError, must_be_one_of
from seal_lib.grading.graders import normalise
from seal_lib.knowledge import relations, world
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.evaluate import ArmTrials, difference_rows, result_rows, token_row
from seal_lib.knowledge.prompts import PIECES, Prompts
from seal_lib.loops.domain import Candidate
from seal_lib.loops.inner import score_candidates
from seal_lib.loops.outer import write_self_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.loops.wording import entries
from seal_lib.records import Passage, PassageTrial, Round, SelfEdit, values_of
from seal_lib.report import stats
from seal_lib.report.arms import arm_label, with_amount
from seal_lib.report.words import Rows, bullets, differences, told
from seal_lib.runs.work import Recorder
from seal_lib.seeds import derive_seed, rng

EXPERIMENT = "knowledge/strategies"
#: the arm whose self-edits go through the strategies in turn
IN_TURN = "strategy_in_turn"
#: who may follow a strategy: the made world's writer, or the policy
STRATEGY_WRITERS = ("made", "policy")
#: passage's id → its self-edits, of which the first n are trained on
Written = Mapping[str, Sequence[SelfEdit]]


@dataclass(frozen=True)
class Strategy:
    """A way to study a passage; the fields are described at the top of ``strategies.yaml``."""

    name: str
    write: str
    made: str | None = None
    groups: tuple[int, ...] = ()
    listing: str = ""

    @property
    def arm(self) -> str:
        name = self.name.replace("-", "_")
        return name if self.groups else f"strategy_{name}"

    @property
    def relating(self) -> dict[str, Any]:
        """The arguments of `relations.write` for a strategy with groups."""
        return {"listing": self.listing, "relating": self.write, "sizes": self.groups}

    @property
    def ready(self) -> bool:
        """True if the made world has notes for this strategy."""
        return self.made is not None or bool(self.groups)

    def prompts(self, base: Prompts) -> Prompts:
        """Return the run's prompt set with this strategy's instruction, and without format rules of its own."""
        return replace(base, name=self.name, self_edit=self.write, pieces=PIECES[0], opening="", after="")

    def notes(self, passage: Passage, count: int, seed: int) -> list[SelfEdit]:
        """Return ``count`` notes by the made world's writer; each passage and each index has a random draw of its own.

        Raises:
            DataError: the strategy has no such notes, or the passage is not of the made world.
        """
        if not self.ready or not passage.facts:
            why = "no notes of the made world stand for it" if passage.facts else f"passage {passage.id} is real text"
            raise DataError(f"strategies: {self.name!r} has no ready notes ({why}); let the policy write them.")
        if self.groups:
            each = [relations.made(passage, size, count, seed) for size in self.groups]
            return self.edits(passage, [text.text for several in zip(*each, strict=False) for text in several], count)
        facts = [world.Fact(*fact) for fact in passage.facts]
        draws = [rng("strategy", self.made, seed, passage.id, k) for k in range(count)]
        if self.made == "external":
            return self.edits(passage, [world.external_notes(facts, draw) for draw in draws], count)
        return self.edits(passage, [world.notes(facts, draw, self.made, len(facts)) for draw in draws], count)

    def edits(self, passage: Passage, texts: Sequence[str], count: int) -> list[SelfEdit]:
        """Return the texts as ``count`` self-edits; if there are fewer texts, the last self-edits are empty."""
        first = [*texts[:count], *[""] * (count - len(texts))]
        return [SelfEdit(f"{passage.id}/{self.name}/{k}", passage.id, t, self.arm) for k, t in enumerate(first)]


def load(names: Sequence[str] | None = None, file: str | None = None) -> list[Strategy]:
    """Return the strategies of these names (None: all), from ``file`` where it has them, otherwise the shipped ones.

    Raises:
        DataError: a name is unknown, or an entry lacks its instruction or has an invalid value.
    """
    known = entries(Path(__file__).with_name("strategies.yaml"), file, "write: …, made: null")
    found = []
    for name in known if names is None else names:
        must_be_one_of("strategies", name, known)
        row = known[name][0]
        row = {**row, "groups": tuple(row.get("groups", ()))}
        slots = {"write": ["{passage}", *["{entities}"] * bool(row["groups"])], "listing": ["{passage}"]}
        lacking = [
            f"{key} needs the slot {slot}"
            for key, several in slots.items()
            for slot in several
            if (key == "write" or row["groups"]) and (not isinstance(row.get(key), str) or slot not in row[key])
        ]
        wrong = {*map(str, row)} - {"write", "made", "groups", "listing"}
        if wrong or lacking:
            what = f"the key {min(wrong)!r} is unknown" if wrong else lacking[0]
            raise DataError(f"strategy {name!r}: {what}; see the head of strategies.yaml.")
        if row.get("made") not in (None, "external", *world.NOTE_STYLES):
            raise DataError(f"strategy {name!r}, made: {row['made']!r} is no note style of the made world.")
        found.append(Strategy(name, **row))
    return found


def in_turn(written: Sequence[Written], count: int) -> dict[str, list[SelfEdit]]:
    """Return passage id → ``count`` self-edits by the writers in turn: the first of each, then the second of each, …"""
    return {
        passage: [written[k % len(written)][passage][k // len(written)] for k in range(count)] for passage in written[0]
    }


def write(
    run: Recorder,
    policy: Policy,
    passages: Sequence[Passage],
    domain: Knowledge,
    outer: OuterLoop,
    *,
    phase: str,
    count: int,
    seed: int,
    study: Strategy | None = None,
) -> dict[str, list[SelfEdit]]:
    """Let a policy write ``count`` self-edits per passage; return them by passage id, each whole, with its opening.

    Args:
        study: the strategy whose prompts ``domain`` has. If it has groups, the self-edits are texts about groups, one
            of each size in turn (`seal_lib.knowledge.relations.write`, which takes ready notes for the made world).
    """
    if study and study.groups:
        each = -(-count // len(study.groups))
        texts = relations.write(run, policy, passages, outer, **study.relating, phase=phase, count=each, seed=seed)
        by_turn = sorted(texts, key=lambda text: text.sample)  # the first text of every size, then the second, …
        return {p.id: study.edits(p, [t.text for t in by_turn if t.unit_id == p.id], count) for p in passages}
    edits = write_self_edits(run, policy, passages, domain, outer, phase=phase, seed=seed, samples=count)
    return values_of(edits, lambda edit: replace(edit, text=domain.prompts.opened(edit.text)))[0]


def train_on_amounts(
    run: Recorder,
    policy: Policy,
    passages: Sequence[Passage],
    written: Written,
    domain: Knowledge,
    *,
    arm: str,
    counts: Sequence[int],
    budgets: Sequence[int],
    seed: int,
    group: str = "",
) -> dict[str, list[PassageTrial]]:
    """Train on each amount of an arm's self-edits; return arm with amount → trials, one per passage.

    Each amount is recorded as phase ``<group>amount/<arm with amount>``.

    Args:
        counts: numbers of self-edits.
        budgets: numbers of tokens in one pass over the documents, including the passage. Documents come in the order of
            the self-edits; where all of them fit, fewer tokens are trained on than the budget.
    """
    found = {}
    limits = [("x", n, domain) for n in counts]
    limits += [("t", n, replace(domain, inner=replace(domain.inner, token_limit=n))) for n in budgets]
    for kind, n, limited in limits:
        name = with_amount(arm, kind, n)
        candidates = []
        for passage in passages:
            first, *more = written[passage.id][: n if kind == "x" else None]
            drawn = derive_seed(seed, passage.id, kind, n)  # the same for every writer
            candidates.append(Candidate(f"{passage.id}/{name}", passage, first, name, drawn, more=tuple(more)))
        found[name] = score_candidates(run, policy, candidates, limited, phase=f"{group}amount/{name}")
    return found


# ---------------------------------------------------------------------------------------------- the lines


def _comparisons(arms: Sequence[str], trained: str, counts: Sequence[int], budgets: Sequence[int]) -> list[tuple]:
    """Return the pairs of arms to compare, which are one family.

    At equal tokens, every writer is compared with the untrained policy and with the trained one; at equal counts, the
    trained with the untrained policy. The last pair asks whether count or choice matters more: the largest count of the
    untrained policy against the smallest of the trained one.
    """
    untrained = "own_untrained"
    pairs = []
    for n in budgets:
        pairs += [(with_amount(arm, "t", n), with_amount(untrained, "t", n)) for arm in arms if arm != untrained]
        others = [arm for arm in arms if arm not in (untrained, trained)]
        pairs += [(with_amount(arm, "t", n), with_amount(trained, "t", n)) for arm in others]
    pairs += [(with_amount(trained, "x", n), with_amount(untrained, "x", n)) for n in counts]
    return [*pairs, (with_amount(untrained, "x", max(counts)), with_amount(trained, "x", min(counts)))]


def amount_rows(
    trials: Mapping[str, Mapping[str, ArmTrials]],
    written: Mapping[str, Mapping[int, Written]],
    rounds: Mapping[int, Sequence[Round]],
    *,
    trained: str,
    counts: Sequence[int],
    budgets: Sequence[int],
    grader: str,
    **label: str,
) -> list[dict]:
    """Return rows for every writer at every amount (levels, tokens trained, differences), for how much a writer's
    self-edits differ, and for the tokens that the inner loops of the trained policy's rounds trained on.

    Args:
        trials: writer → arm with amount → trials.
        written: writer → loop → its self-edits.
        rounds: loop → rounds of the trained policy.
    """
    every = {arm: several for of_writer in trials.values() for arm, several in of_writer.items()}
    rows = []
    for arm, several in every.items():
        rows += result_rows(EXPERIMENT, arm, several, grader=grader, **label)
        rows.append(token_row(EXPERIMENT, arm, several, **label))
    most = max(counts)
    for arm, by_loop in written.items():
        texts = {loop: {p: [e.text for e in edits[:most]] for p, edits in of.items()} for loop, of in by_loop.items()}
        for metric, measure in DIFFER.items():
            values = {loop: {p: measure(several) for p, several in of.items()} for loop, of in texts.items()}
            found = stats.mean_over_loops(values, stats.SHARE)
            rows.append(found.row(EXPERIMENT, with_amount(arm, "x", most), metric, **label))
    spent = []
    for records in rounds.values():
        seeds = max((len(rewards) for record in records for rewards in record.by_seed), default=1)
        tokens = sum(getattr(trial, "tokens", 0) for record in records for trial in record.candidates)
        spent.append(float(tokens * max(1, seeds)))
    rows.append(stats.mean_over_units(spent, stats.ANY, "loop").row(EXPERIMENT, trained, "tokens_reward", **label))
    pairs = _comparisons([*trials], trained, counts, budgets)
    return rows + difference_rows(EXPERIMENT, every, pairs, grader=grader, **label)


PIECE = 3  # words in a piece of text


def _pieces(text: str) -> list[tuple[str, ...]]:
    """Return every run of `PIECE` words within a line; a shorter line is one piece."""
    lines = [normalise(line).split() for line in text.splitlines()]
    return [tuple(words[at : at + PIECE]) for words in lines if words for at in range(max(1, len(words) - PIECE + 1))]


def distinct(texts: Sequence[str]) -> float:
    """Return the number of distinct word trigrams over the number of all, in all texts together; NaN without any. It
    falls as texts are added, so compare it at equal counts only."""
    pieces = [piece for text in texts for piece in _pieces(text)]
    return len(set(pieces)) / len(pieces) if pieces else math.nan


def overlap(texts: Sequence[str]) -> float:
    """Return the mean Jaccard similarity (shared trigrams over all) of all pairs of texts; NaN for fewer than two
    texts. Two empty texts are alike."""
    sets = [set(_pieces(text)) for text in texts]
    shares = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in combinations(sets, 2)]
    return fmean(shares) if shares else math.nan


#: metric → its function of the texts of one passage's self-edits: how much they differ, in [0, 1], by their words alone
DIFFER: dict[str, Callable[[Sequence[str]], float]] = {"distinct": distinct, "overlap": overlap}


def in_words(rows: Rows, trained: str, counts: Sequence[int]) -> str:
    """Return Markdown on what the rounds cost, on count against choice, and on every separable difference."""
    value = {(row["arm"], row["metric"]): row["value"] for row in rows}
    apart = differences(rows, EXPERIMENT)
    many, one = with_amount("own_untrained", "x", max(counts)), with_amount(trained, "x", min(counts))
    said = []
    spent, more = value.get((trained, "tokens_reward"), 0.0), value[many, "tokens_per_edit"]
    saved = more - value[one, "tokens_per_edit"]
    if spent and saved > 0:
        said.append(
            f"The rounds were trained on {spent:.0f} tokens a loop: what **{arm_label(many)}** costs more than "
            f"**{arm_label(one)}** on {spent / saved:.0f} passages."
        )
    if (many, one) in apart:
        which = apart[many, one]
        wins = "count wins" if which.value > 0 else "choice wins"
        verdict = wins if stats.separable(which) else "no difference can be told"
        said.append(f"**{arm_label(many)}** against **{arm_label(one)}**: {verdict}.")
    return f"{bullets(said, '')}\n{told(apart)}"
