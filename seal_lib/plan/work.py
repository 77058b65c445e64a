"""The pieces of a plan: a :class:`Phase`, and the counts of writing, asking, trials and an M-step.

Units follow from the parameters alone and are exact; tokens come from recorded lengths (``lengths``) and are as good as
those. Knows no notebook, model, device or price.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from seal_lib.errors import ParameterError
from seal_lib.knowledge.documents import CAPS
from seal_lib.plan import lengths

#: rows and tokens that the Hugging Face engine decodes at once (:class:`seal_lib.generation.hf.HFGenerator`)
ROWS, CACHE_TOKENS = 256, 100_000


@dataclass(frozen=True)
class Phase:
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

    def times(self, count: float) -> "Phase":
        """The phase repeated ``count`` times."""
        return replace(
            self, units=self.units * count, tokens=self.tokens * count, steps=self.steps * count
        )  # fmt: skip


def pad_tokens(pad_loss: str, length: float, limit: int = 2048) -> float:
    """Tokens a document of ``length`` tokens becomes under a pad rule (`training.jobs.pad_examples`)."""
    if pad_loss == "full":
        return float(limit)
    kind, _, number = pad_loss.partition(":")
    return length + (1 + int(number) if kind == "probe" else float(pad_loss == "eos"))


# ---------------------------------------------------------------------------------------------- pieces


def writing(phase: str, p: Mapping, passages: float, samples: int, text: lengths.Text) -> Phase:
    """Self-edits of ``passages`` passages."""
    limit = p["edit_tokens"]
    rows = max(1, min(ROWS, int(CACHE_TOKENS // (text.write + limit)), round(min(32, passages) * samples)))
    units = passages * samples
    return Phase("write", phase, units, units * text.edit(limit), text.write, text.longest(rows, limit), rows=rows)


def asking(
    phase: str, p: Mapping, questions: float, text: lengths.Text, shown: bool = False, adapters: int = 0,
    at_once: float = ROWS,
) -> Phase:  # fmt: skip
    """Greedy answers; ``adapters`` distinct ones in a batch."""
    prompt, limit = text.shown if shown else text.ask, p["answer_tokens"]
    rows = max(1, min(ROWS, int(CACHE_TOKENS // (prompt + limit)), round(at_once)))
    long = min(text.answer_longest, limit)
    return Phase(
        "answer", phase, questions, questions * min(text.answer, limit), prompt, long, rows=rows, adapters=adapters,
        targets=p.get("targets", "qv"), rank=p.get("rank", 8),
    )  # fmt: skip


def trials(phase: str, p: Mapping, count: float, text: lengths.Text, kind: str = "policy") -> list[Phase]:
    """``count`` adapters on texts of a kind, and their questions (:func:`seal_lib.loops.inner.try_all`)."""
    documents, tokens = text.training(kind, p.get("document_limit") or CAPS.get(p.get("protocol", "")))
    if "edit_tokens" in p and kind == "policy":  # a limit that cuts self-edits cuts documents in proportion
        share = text.edit(p["edit_tokens"]) / text.edit(1 << 30)
        documents, tokens = 1 + (documents - 1) * share, text.passage + (tokens - text.passage) * share
    rule, batch, slots = p.get("pad_loss", "eos"), p.get("batch", 1), p.get("slots", 32)
    padded = documents * pad_tokens(rule, tokens / documents)
    steps = p["epochs"] * max(1.0, documents / batch)
    train = Phase(
        "train", phase, count, count * p["epochs"] * padded, steps=count * steps,
        slots=max(1, min(slots, round(count))), batch=batch, targets=p["targets"], rank=p["rank"],
    )  # fmt: skip
    together = min(2 * slots, count) * text.questions
    rows_adapters = max(1, round(min(ROWS, together) / text.questions))
    return [train, asking(phase, p, count * text.questions, text, adapters=rows_adapters, at_once=together)]


def finetuning(phase: str, p: Mapping, kept: float, pair: float) -> Phase:
    """The M-step on ``kept`` pairs of ``pair`` tokens."""
    steps = p["sft_epochs"] * -(-kept // p["sft_batch"])
    return Phase(
        "sft", phase, kept, p["sft_epochs"] * kept * pair, steps=steps, batch=p["sft_batch"],
        targets=p.get("sft_targets", "all-linear"), rank=p["sft_rank"],
    )  # fmt: skip


def arm(phase: str, p: Mapping, passages: float, name: str, text: lengths.Text) -> list[Phase]:
    """One row of the table (:func:`seal_lib.knowledge.evaluate.evaluate_arm`)."""
    from seal_lib.knowledge.evaluate import BASELINES

    if name not in BASELINES:
        raise ParameterError(f"arms: {name!r} is not one of {', '.join(BASELINES)}.")
    kind = BASELINES[name].text
    if kind == "none":
        return [
            asking(phase, p, passages * text.questions, text, BASELINES[name].in_context, at_once=64 * text.questions)
        ]
    if kind == "policy":
        return [writing(f"{phase}/write", p, passages, 1, text), *trials(phase, p, passages, text)]
    return trials(phase, p, passages, text, kind.removeprefix("reference:"))


def round_(phase: str, p: Mapping, text: lengths.Text, blind: bool = False) -> list[Phase]:
    """One round of ReST^EM on ``n_practice`` passages (:func:`seal_lib.loops.outer.restem_round`)."""
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
