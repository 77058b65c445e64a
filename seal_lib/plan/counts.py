"""What a notebook will do, counted from its parameters: self-edits to write, adapters to train, questions to answer.

One function per notebook in :data:`COUNTS`, each the shadow of the loop it counts (``evaluate``, ``restem``,
``experiments``, ``arc.experiment``; the continual ones in :mod:`seal_lib.continual.counts`). Units follow from the
parameters alone and are exact; tokens come from recorded lengths (``lengths``) and are as good as those.
Knows no model, no device and no price (:mod:`seal_lib.plan.costs`); loads neither data nor torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from seal_lib.errors import ParameterError
from seal_lib.knowledge.documents import CAPS
from seal_lib.plan import lengths

#: rows and tokens that the Hugging Face engine decodes at once (:class:`seal_lib.generate.HFGenerator`)
ROWS, CACHE_TOKENS = 256, 100_000


@dataclass(frozen=True)
class Work:
    """One phase.

    Attributes:
        kind: ``write`` (sampled texts), ``answer`` (greedy texts), ``train`` (adapters), ``sft`` (an M-step), ``read``
            (log-probabilities of whole texts) or ``factor`` (eigenvectors of inputs' covariances).
        units: texts, adapters, kept self-edits or matrices. tokens: of all units: written, trained, read.
        prompt: tokens each text is generated from. longest: tokens written until the last text of a batch is done.
        steps: adapter-steps of all units (train), optimiser steps (sft). slots: adapters side by side.
        adapters: distinct adapters in one batch of generation.
    """

    kind: str
    phase: str
    units: float
    tokens: float = 0.0
    prompt: float = 0.0
    longest: float = 0.0
    steps: float = 0.0
    slots: int = 1
    batch: int = 1
    rows: int = ROWS
    adapters: int = 0
    targets: str = "all-linear"
    rank: int = 0

    def times(self, count: float) -> "Work":
        """The same ``count`` times."""
        return replace(
            self, units=self.units * count, tokens=self.tokens * count, steps=self.steps * count
        )  # fmt: skip


def pad_tokens(pad_loss: str, length: float, limit: int = 2048) -> float:
    """Tokens a document of ``length`` tokens becomes under a pad rule (:func:`seal_lib.finetune.pad_examples`)."""
    if pad_loss == "full":
        return float(limit)
    kind, _, number = pad_loss.partition(":")
    return length + (1 + int(number) if kind == "probe" else float(pad_loss == "eos"))


# ---------------------------------------------------------------------------------------------- pieces


def writing(phase: str, p: Mapping, passages: float, samples: int, text: lengths.Text) -> Work:
    """Self-edits of ``passages`` passages."""
    limit = p["edit_tokens"]
    rows = max(1, min(ROWS, int(CACHE_TOKENS // (text.write + limit)), round(min(32, passages) * samples)))
    units = passages * samples
    return Work("write", phase, units, units * text.edit(limit), text.write, text.longest(rows, limit), rows=rows)


def asking(
    phase: str, p: Mapping, questions: float, text: lengths.Text, shown: bool = False, adapters: int = 0,
    at_once: float = ROWS,
) -> Work:  # fmt: skip
    """Greedy answers; ``adapters`` distinct ones in a batch."""
    prompt, limit = text.shown if shown else text.ask, p["answer_tokens"]
    rows = max(1, min(ROWS, int(CACHE_TOKENS // (prompt + limit)), round(at_once)))
    long = min(text.answer_longest, limit)
    return Work(
        "answer", phase, questions, questions * min(text.answer, limit), prompt, long, rows=rows, adapters=adapters,
        targets=p.get("targets", "qv"), rank=p.get("rank", 8),
    )  # fmt: skip


def trials(phase: str, p: Mapping, count: float, text: lengths.Text, kind: str = "policy") -> list[Work]:
    """``count`` adapters on texts of a kind, and the questions of their passages (:func:`inner_loop.run_trials`)."""
    documents, tokens = text.training(kind, p.get("document_limit") or CAPS.get(p.get("protocol", "")))
    if "edit_tokens" in p and kind == "policy":  # a limit that cuts self-edits cuts documents in proportion
        share = text.edit(p["edit_tokens"]) / text.edit(1 << 30)
        documents, tokens = 1 + (documents - 1) * share, text.passage + (tokens - text.passage) * share
    rule, batch, slots = p.get("pad_loss", "eos"), p.get("batch", 1), p.get("slots", 32)
    padded = documents * pad_tokens(rule, tokens / documents)
    steps = p["epochs"] * max(1.0, documents / batch)
    train = Work(
        "train", phase, count, count * p["epochs"] * padded, steps=count * steps,
        slots=max(1, min(slots, round(count))), batch=batch, targets=p["targets"], rank=p["rank"],
    )  # fmt: skip
    together = min(2 * slots, count) * text.questions
    rows_adapters = max(1, round(min(ROWS, together) / text.questions))
    return [train, asking(phase, p, count * text.questions, text, adapters=rows_adapters, at_once=together)]


def finetuning(phase: str, p: Mapping, kept: float, pair: float) -> Work:
    """The M-step on ``kept`` pairs of ``pair`` tokens."""
    steps = p["sft_epochs"] * -(-kept // p["sft_batch"])
    return Work(
        "sft", phase, kept, p["sft_epochs"] * kept * pair, steps=steps, batch=p["sft_batch"],
        targets=p.get("sft_targets", "all-linear"), rank=p["sft_rank"],
    )  # fmt: skip


def arm(phase: str, p: Mapping, passages: float, name: str, text: lengths.Text) -> list[Work]:
    """One row of the table (:func:`seal_lib.evaluate.evaluate_arm`)."""
    from seal_lib.evaluate import ARMS

    if name not in ARMS:
        raise ParameterError(f"arms: {name!r} is not one of {', '.join(ARMS)}.")
    kind = ARMS[name].text
    if kind == "none":
        return [asking(phase, p, passages * text.questions, text, ARMS[name].in_context, at_once=64 * text.questions)]
    if kind == "policy":
        return [writing(f"{phase}/write", p, passages, 1, text), *trials(phase, p, passages, text)]
    return trials(phase, p, passages, text, kind.removeprefix("reference:"))


def round_(phase: str, p: Mapping, text: lengths.Text, blind: bool = False) -> list[Work]:
    """One round of ReST^EM on ``n_practice`` passages (:func:`seal_lib.restem.restem_round`)."""
    n, samples = p["n_practice"], p["samples"]
    work = [writing(f"{phase}/sample", p, n, samples, text)]
    rule = p.get("filter", "best_of_k")
    if not blind and rule != "random":
        if p.get("reward") == "improvement":
            work.append(asking(f"{phase}/frozen", p, n * text.questions, text))
        for _ in range(p.get("reward_seeds", 1)):
            work += trials(f"{phase}/score", p, n * samples, text)
    kept = n * (samples / 2 if rule == "threshold" else 1)
    return [*work, finetuning(phase, p, kept, text.write + text.edit(p["edit_tokens"]))]


# ---------------------------------------------------------------------------------------------- notebooks


def tour(p: Mapping) -> list[Work]:
    text = lengths.profile(p["passages"])
    n, samples = p["n_passages"], p["samples"]
    work = [w for name in ("frozen", "passage_in_context", "passage_only") for w in arm(name, p, n, name, text)]
    work += [writing("edits", p, n, samples, text), *trials("scores", p, n * samples, text)]
    work += round_("round_1", p, text)
    return [*work, writing("edits_after", p, n, samples, text), *trials("after", p, n * samples, text)]


def one_edit(p: Mapping) -> list[Work]:
    text = lengths.profile(p["passages"])
    twice = [w for _ in range(2) for w in trials("trial", p, 1, text)][:3]  # trained twice, asked once
    return [writing("write", p, 1, 1, text), *twice, asking("before", p, text.questions, text, at_once=text.questions)]


def self_edits(p: Mapping) -> list[Work]:
    return [writing("sample", p, p["n_passages"], p["samples"], lengths.profile(p["passages"]))]


def single_passage(p: Mapping) -> list[Work]:
    text = lengths.profile(p["passages"])
    found = [(name, arm(f"evaluate/{name}", p, p["n_passages"], name, text)) for name in p["arms"]]
    loops = {name: len(p["seeds"]) if name == "own_untrained" else 1 for name in p["arms"]}  # sampled once per seed
    return [w.times(loops[name]) for name, several in found for w in several]


def restem(p: Mapping) -> list[Work]:
    text, practice = lengths.profile(p["passages"]), lengths.profile(p["practice"])
    n, rounds = p["n_passages"], p["rounds"]
    loop = arm("evaluate/own_untrained", p, n, "own_untrained", text)
    for index in range(1, rounds + 1):
        loop += round_(f"seal_round_{index}", p, practice)
        loop += trials(f"seal_round_{index}/fresh_seed", p, p["n_practice"], practice)
        loop += arm(f"evaluate/seal_round_{index}", p, n, "own_untrained", text)
    if p["random_control"]:
        for index in range(1, rounds + 1):
            loop += round_(f"random_round_{index}", p, practice, blind=True)
        loop += arm("evaluate/random_edit_sft", p, n, "own_untrained", text)
    controls = [w for name in p["controls"] for w in arm(f"evaluate/{name}", p, n, name, text)]
    return controls + [w.times(len(p["seeds"])) for w in loop]


def other_models(p: Mapping) -> list[Work]:
    return restem({**p, "controls": [], "seeds": [0], "random_control": True}) * (1 + len(p["other_models"]))


def arc_self_edits(p: Mapping) -> list[Work]:
    from seal_lib.arc.training import CAP

    puzzle = lengths.profile(p["tasks"])
    held, practice = number(p["tasks"], p.get("ids")), number(p["practice"], p.get("practice_ids"))
    examples = puzzle.of(min(p["cap"], CAP))
    steps = min(p["max_steps"], puzzle.epochs * examples / p["batch"])
    together = (p.get("tokens_per_step") or 1 << 30) / (p["batch"] * puzzle.example)  # slots that one step serves
    views = {"full": 1.0, "leave_one_out": puzzle.subsets, "all": puzzle.views}[p["views"]]

    def answers(phase: str, tasks: float, adapters: bool) -> Work:
        rows = max(1, min(ROWS, int(CACHE_TOKENS // (puzzle.ask_longest + p["answer_tokens"])), round(tasks * views)))
        long = p["answer_tokens"] if not adapters else min(puzzle.answer_longest, p["answer_tokens"])
        own = {"adapters": max(1, round(rows / views)), "targets": p["targets"], "rank": p["rank"]} if adapters else {}
        units, each = tasks * views, min(puzzle.answer, p["answer_tokens"])
        return Work("answer", phase, units, units * each, puzzle.ask, long, rows=rows, **own)

    def attempts(phase: str, count: float) -> list[Work]:
        train = Work(
            "train", phase, count, count * steps * p["batch"] * puzzle.example, steps=count * steps,
            slots=max(1, min(p["slots"], int(together), round(count))), batch=p["batch"], targets=p["targets"],
            rank=p["rank"],
        )  # fmt: skip
        return [train, answers(phase, count, True)]

    def write(phase: str, texts: float) -> Work:
        rows = max(1, min(ROWS, int(CACHE_TOKENS // (puzzle.write + p["edit_tokens"])), round(texts)))
        edit = min(puzzle.edit, p["edit_tokens"])
        return Work("write", phase, texts, texts * edit, puzzle.write, p["edit_tokens"], rows=rows)

    def evaluate(name: str) -> list[Work]:
        texts = held * p["edits"]
        tried = attempts(f"evaluate/{name}", texts * puzzle.accepted * puzzle.distinct)
        return [write(f"evaluate/{name}/write", texts), *tried]

    fixed = [answers("evaluate/icl", held, False)] + (attempts("evaluate/oracle", held) if p["oracle"] else [])
    pair = puzzle.write + min(puzzle.edit, p["edit_tokens"])
    if "documents" in p:  # notebook 23 makes its untrained policy first, and tries three configurations on all tasks
        opening = finetuning("opening", {**p, "sft_epochs": 1}, p["documents"], pair)
        fixed = [opening, answers("evaluate/icl", held, False), *attempts("ways", 3 * (held + practice))]
    texts, loop = practice * p["samples"], evaluate("own_untrained")
    kept = texts * puzzle.kept
    learn = finetuning("learn", p, kept, pair)
    for index in range(1, p["rounds"] + 1):
        loop += [write(f"seal_round_{index}/sample", texts)]
        scored = attempts(f"seal_round_{index}/score", texts * puzzle.accepted * puzzle.distinct)
        loop += [w.times(p["reward_seeds"]) for w in scored]
        if p["reward"] == "improvement":
            loop += [answers(f"seal_round_{index}/frozen", practice, False)]
        loop += [learn, *evaluate(f"seal_round_{index}")]
    controls = ["random_config_sft"] * p["random_control"] + ["dealt_config_sft"] * ("documents" in p)  # notebook 23
    for name in controls:
        loop += [learn, *evaluate(name)]
    return fixed + [w.times(len(p["seeds"])) for w in loop]


def other_puzzle_models(p: Mapping) -> list[Work]:
    loop = arc_self_edits({**p, "oracle": "", "seeds": [0], "random_control": True})
    return [w for w in loop if w.phase != "evaluate/icl"] * (1 + len(p["other_models"]))


def number(source: str, ids: list[str] | None) -> int:
    """How many tasks a source and a list of ids stand for; a folder of ARC-AGI-1 holds 400."""
    if ids is not None:
        return len(ids)
    return int(source.rpartition(":")[2]) if source.startswith("world:") else 400


def nothing(p: Mapping) -> list[Work]:
    return []


def _continual(name: str) -> Callable[[Mapping], list[Work]]:
    def count(p: Mapping) -> list[Work]:
        from seal_lib.continual import counts

        return getattr(counts, name)(p)

    return count


#: notebook → what it will do
COUNTS: dict[str, Callable[[Mapping], list[Work]]] = {
    "00_tour": tour,
    "01_one_self_edit": one_edit,
    "10_self_edits": self_edits,
    "11_single_passage": single_passage,
    "12_restem_rounds": restem,
    "13_continual_edits": _continual("edits"),
    "14_continual_mitigations": _continual("mitigations"),
    "15_retention_over_time": _continual("retention"),
    "16_continual_tuning": _continual("tuning"),
    "17_other_models": other_models,
    "20_arc_tasks": nothing,
    "21_arc_self_edits": arc_self_edits,
    "22_arc_results": nothing,
    "23_arc_reading_puzzles": arc_self_edits,
    "24_other_puzzle_models": other_puzzle_models,
    "91_figures": nothing,
}


def of(notebook: str, parameters: Mapping) -> list[Work]:
    """The work of a notebook with these parameters.

    Raises:
        ParameterError: nobody has counted this notebook.
    """
    if notebook not in COUNTS:
        raise ParameterError(f"{notebook} is not counted; add a row to COUNTS in seal_lib/plan/counts.py.")
    return COUNTS[notebook](parameters)


def totals(work: list[Work]) -> dict[str, float]:
    """Units and tokens by what they are: ``written``, ``trainings``, ``steps``, ``answers``, and their tokens."""

    def total(kind: str, value: str) -> float:
        return sum(getattr(w, value) for w in work if w.kind == kind)

    return {
        "written": total("write", "units"), "written_tokens": total("write", "tokens"),
        "trainings": total("train", "units"), "steps": total("train", "steps"),
        "trained_tokens": total("train", "tokens"), "answers": total("answer", "units"),
        "answered_tokens": total("answer", "tokens"), "sft_steps": total("sft", "steps"),
        "sft_tokens": total("sft", "tokens"), "read_tokens": total("read", "tokens"),
    }  # fmt: skip
