"""Runs arms over streams: all streams of an arm side by side, the full matrix after every edit, resumable per edit.

A unit of work is (edit k, stream); `edits` does it. `tables` computes all metrics from the rows. A stream whose edit
diverges ends there: its later rows say so and hold no answers.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from seal_lib.continual.arm import Arm
from seal_lib.continual.edits import ArmWork, EditUnit, at_work, edit
from seal_lib.continual.lab import Lab
from seal_lib.continual.streams import Stream, with_edits
from seal_lib.errors import DataError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops.policy import Policy
from seal_lib.models.tokens import read_ids
from seal_lib.runs import journal
from seal_lib.runs.work import Count, Recorder, Work


def run_arm(
    run: Recorder,
    arm: Arm,
    lab: Lab,
    streams: Sequence[Stream],
    *,
    slots: int = 16,
    writing: Sampling | None = None,
    group: str = "",
    full_rows: Sequence[int] | None = None,
) -> list[dict]:
    """Run one arm and return its rows in the order (edit, stream), recorded as phase ``<group><arm>``.

    A row holds ``stream``, ``k``, ``protocol`` (`InnerLoop.label` of the rule's lab), ``outcome`` (ok, diverged or
    empty_edit) and, where they were measured:

    * ``reason``: why the edit diverged or was empty, in the row of that edit;
    * ``right``, ``blank``: one text of 0 and 1 per passage, one digit per question; None where not asked;
    * ``prior``, ``prior_blank``: the same for the questions on prior knowledge, as one text;
    * ``steps``, ``tokens``, ``loss``: of the training of this edit;
    * ``norm``: of the whole update;
    * ``drift``: KL(theta_0 || theta_k) per token on texts that the base generated;
    * ``stored``: the bytes kept beside the base's weights.

    Args:
        slots: the number of streams trained side by side, lowered to the next divisor of their total number; 0: all.
        writing: the sampling with which a live arm's model writes its self-edits.
        group: a prefix of the phase, to tell studies in one run apart.
        full_rows: the edits after which every question is asked; after the others, only those on the passage just
            edited. None: all.

    Raises:
        DataError: the streams differ in length, a live arm lacks ``writing``, or streams lack self-edits.
    """
    lengths = {len(stream) for stream in streams}
    if len(lengths) != 1:
        raise DataError(f"The streams of a study have one length, not {sorted(lengths)}; cut them.")
    if arm.live and writing is None:
        raise DataError(f"arm {arm.name!r} writes its own self-edits; say how (`writing`).")
    phase, kept = f"{group}{arm.name}", getattr(run, "folder", None)  # a Scratch run has no folder and keeps nothing
    folder = Path(kept) / "states" / phase if kept else None
    settings = ArmWork(arm, lab.settings, writing, full_rows and tuple(full_rows), folder)
    units = [EditUnit(f"{k}/{s.id}", k, s) for k in range(lengths.pop() + 1) for s in streams]
    chunk = max(n for n in range(1, min(slots or len(streams), len(streams)) + 1) if len(streams) % n == 0)
    with at_work(settings, lab) as edits:
        if edits.trains and not arm.live and any(None in stream.edits for stream in streams):
            raise DataError(f"arm {arm.name!r}: streams without self-edits; give a writer or a live arm.")
        if edits.spoiled():
            run.forget(phase)
            edits.clear()
        # an edit of a stream starts once the edit before it is recorded
        work = Work(partial(edit, settings=settings), lab.policy, run.count, ahead=len(streams) // chunk)
        rows = run.map(phase, units, work, chunk=chunk)
        edits.clear()
    protocol = edits.lab.inner.label  # of the rule's lab, since the authors' rule has another protocol than the study
    return [
        {"stream": unit.stream.id, "k": unit.k, "protocol": protocol, **row}
        for unit, row in zip(units, rows, strict=True)
    ]


def frozen_edits(
    run: Recorder, lab: Lab, streams: Sequence[Stream], writer: str, writing: Sampling, phase: str = "write"
) -> list[Stream]:
    """Return the streams with one self-edit per passage, all written before the first edit: the controlled comparison.

    Args:
        writer: ``reference:<name>``: texts that come with the passage. ``policy``: texts sampled from the unedited
            model, with the seeds that a live arm uses.

    Raises:
        DataError: a passage is too long for the study (the message names it), or the writer is unknown.
    """
    check_lengths(lab, streams, writing)
    kind, _, name = writer.partition(":")
    if kind == "reference":
        return with_edits(streams, name)
    if writer != "policy":
        raise DataError(f"writer: {writer!r} is neither policy nor reference:<name>.")

    work = Work(partial(_write_once, domain=lab.domain, writing=writing), lab.policy, run.count)
    rows = run.map(phase, streams, work, chunk=16)
    return [replace(s, edits=tuple(row["edits"])) for s, row in zip(streams, rows, strict=True)]


def _write_once(
    policy: Policy, part: Sequence[Stream], count: Count, *, domain: Knowledge, writing: Sampling
) -> list[dict]:
    asked = [
        Request(domain.prompt(p, policy.tokenizer), s.seed(k, "self-edit"))
        for s in part
        for k, p in enumerate(s.passages)
    ]
    texts = iter(policy.generator().generate(asked, writing))
    return [{"edits": [next(texts)[0].text.strip() for _ in stream.passages]} for stream in part]


def check_lengths(lab: Lab, streams: Sequence[Stream], writing: Sampling) -> None:
    """Raise DataError if a passage is too long for the model to read, or to be trained on whole.

    A stream without one of its edits has no matrix, so this is checked before anything runs.

    Raises:
        DataError: names the passage, its length and the limit, in tokens.
    """
    domain, room = lab.domain, lab.generator.positions
    for passage in {p.id: p for stream in streams for p in stream.passages}.values():
        texts = {
            "trained on": ([d.text for d in domain.documents(passage, None)], 0, lab.inner.max_length),
            "read for its notes": ([domain.prompt(passage, lab.tokenizer)], writing.max_tokens, room),
            "asked about": (
                [domain.prompts.ask(passage, q, True) for q in passage.questions],
                lab.inner.answer_tokens,
                room,
            ),
        }
        for what, (given, more, most) in texts.items():
            longest = max((len(read_ids(text, lab.tokenizer)) for text in given), default=0) + more
            if longest > most:
                raise DataError(
                    f"passage {passage.id} takes {longest} tokens to be {what}, more than {most}; leave it out of the "
                    "passages, or raise max_length where the model has room."
                )


def run_arms(
    run: Recorder, arms: Sequence[Arm], lab: Lab, streams: Sequence[Stream], *, writing: Sampling, **options: object
) -> dict[str, list[dict]]:
    """Run several arms (`run_arm`) on the same streams, each with its own self-edits; return the rows by arm.

    The self-edits are those of the streams; for ``…_own`` arms, what the unedited model writes once (phase
    ``write_own``); for ``…_live`` arms, what the edited model writes.
    """
    own = [arm.name for arm in arms if arm.name.endswith("_own")]
    mine = frozen_edits(run, lab, streams, "policy", writing, phase="write_own") if own else []
    return {
        arm.name: run_arm(run, arm, lab, mine if arm.name in own else streams, writing=writing, **options)
        for arm in arms
    }


def train_seconds(run: Recorder, phase: str) -> float:
    """Return the CPU seconds of training per edit and stream of a phase, over all restarts of the run.

    NaN if the run keeps no costs.
    """
    folder = getattr(run, "folder", None)
    lines = journal.read(Path(folder) / "costs.jsonl") if folder else []
    counts = [line.get("counts") or {} for line in lines if line.get("phase") == phase]
    edits = sum(count.get("edits", 0) for count in counts)
    return sum(count.get("train_seconds", 0.0) for count in counts) / edits if edits else math.nan
