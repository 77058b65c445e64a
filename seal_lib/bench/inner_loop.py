"""Measure the cost of one optimiser step of one adapter on this machine's CPU, in four ways to train it.

All ways train the same adapters (rank 8, all linear layers, batch 1) on the shipped knowledge seedling. Times are CPU
milliseconds of one thread; repetitions are interleaved, so that a busy machine affects all ways alike.

===================  ================================================================================================
``authors``          HF Trainer + PEFT, every document padded to 2 048 tokens, padding in the loss (the released code)
``trainer_dynamic``  HF Trainer + PEFT, transformers' collator pads to the longest of the batch (of one: no padding)
``peft_loop``        PEFT in a plain loop (`seal_lib.training.finetune.train_alone`)
``bank``             the adapter bank, K adapters at once
===================  ================================================================================================

There are two length settings. ``seal`` has eight lines and the passage, with the lengths recorded from SEAL's released
self-edits (`seal_lib.plan.lengths`) and random tokens of the seedling. ``seedling`` has gold notes of the made world
and the passage. All adapters of a setting have the same number of steps, so no bank ends with half of its slots empty.

In every way, the time before the second step of an adapter, with the Trainer's start-up, is spread over all steps of
the adapter, even if only some are run. Run ``make bench`` or ``python -m seal_lib.bench.inner_loop``; it writes
``figures/seedling/bench_inner_loop.{csv,png,pdf}``. It measures no accuracy, and the results do not apply to larger
models or GPUs. `seal_lib.bench.inner_loop_table` makes the table and the figure.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from seal_lib import paths
from seal_lib.bench.inner_loop_table import BENCH_COLUMNS, LENGTHS, cost_by_slots, ratios_text
from seal_lib.errors import SealError, command_line
from seal_lib.models import budget
from seal_lib.training.jobs import Example, Job

if TYPE_CHECKING:
    import pandas as pd
    from transformers import DataCollatorForLanguageModeling, PreTrainedModel

_MODEL, _RANK, _ALPHA, _LR, _EPOCHS = "seedling-knowledge", 8, 16.0, 2e-3, 10
LINES = 8  # documents of a self-edit besides the passage; the recorded mean is 7.6
PER_REPETITION = 4  # adapters of a sequential way, or of a bank of fewer slots


@dataclass(frozen=True)
class CpuPlan:
    """Sizes of a benchmark."""

    slots: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    repetitions: int = 5
    epochs: int = _EPOCHS
    length: int = 2048  # the authors' padding
    padded_steps: int = 6  # steps in the authors' way, as a whole adapter would take a minute
    hidden: int = 128
    peaks: tuple[tuple[str, int], ...] | None = None  # (variant, K) to measure memory of; None: all


TINY_CPU = CpuPlan((1, 2), 1, 1, 64, 2, 32, (("bank", 2),))


def variants(plan: CpuPlan) -> list[tuple[str, int]]:
    """Return (variant, K) of every row of one length setting."""
    return [("authors", 1), ("trainer_dynamic", 1), ("peft_loop", 1), *(("bank", k) for k in plan.slots)]


def load(plan: CpuPlan) -> PreTrainedModel:
    """Load the shipped seedling, or random weights for a tiny plan, in eval mode; set torch to one thread."""
    import torch

    from seal_lib import models

    torch.set_num_threads(1)
    if plan.hidden == CpuPlan.hidden:
        return models.load(_MODEL)[0]
    words, width = len(models.load_tokenizer(_MODEL)), plan.hidden
    shape = budget.Shape("random", 3, width, 4, 4, width // 4, 3 * width, words, True, False, plan.length)
    return random_model(shape, "cpu")


def random_model(shape: budget.Shape, device: str) -> PreTrainedModel:
    """Make a frozen causal LM of this shape with random weights, in eval mode; bfloat16 on a GPU, float32 on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    kind = Qwen2Config if shape.qkv_bias else LlamaConfig
    own = {} if shape.qkv_bias else {"head_dim": shape.head_dim}
    config = kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **own,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    return model.to(device).eval().requires_grad_(False)


def documents(lengths: str, plan: CpuPlan) -> list[list[list[int]]]:
    """Return the token ids of each document of each adapter; the passage is last, and each ends in end-of-text."""
    from seal_lib import models
    from seal_lib.knowledge.world import passages

    adapters = max(*plan.slots, PER_REPETITION)
    tokenizer = models.load_tokenizer(_MODEL)
    end = tokenizer.eos_token_id
    if lengths == "seedling":
        texts = [
            [f"{p.title}\n{text}" for text in (*p.references["gold"].splitlines(), p.text)]
            for p in passages("heldout", adapters)
        ]
        return [[[*tokenizer(text)["input_ids"], end][: plan.length - 1] for text in part] for part in texts]
    words = random.Random(0)
    return [
        [[*(words.randrange(end + 1, len(tokenizer)) for _ in range(min(n, plan.length - 2))), end] for n in part]
        for part in seal_lengths(adapters)
    ]


def seal_lengths(adapters: int) -> list[list[int]]:
    """Return the number of tokens of `LINES` lines and the passage for each adapter, as quantiles of recorded lengths.

    The n-th draw is the quantile (n + 0.5) × 0.618… (mod 1), so that even the first few adapters cover the distribution
    evenly.
    """
    from seal_lib.plan.lengths import profiles

    recorded = profiles()["squad"].documents
    lines, whole = sorted(n for part in recorded for n in part[:-1]), sorted(part[-1] for part in recorded)

    def quantile(values: list[int], n: int) -> int:
        return values[int((n + 0.5) * 0.6180339887498949 % 1 * len(values))]

    return [[*(quantile(lines, i * LINES + j) for j in range(LINES)), quantile(whole, i)] for i in range(adapters)]


def jobs_of(documents: list[list[list[int]]], plan: CpuPlan) -> list:
    """Return the jobs of all adapters, the same for every variant."""
    return [
        Job(str(i), [Example(ids) for ids in part], lr=_LR, epochs=plan.epochs, rank=_RANK, alpha=_ALPHA, seed=i)
        for i, part in enumerate(documents)
    ]


@cache
def padding_collator() -> DataCollatorForLanguageModeling:
    """Return transformers' collator with dynamic padding; cached, so that no measurement includes its tokenizer."""
    from transformers import DataCollatorForLanguageModeling

    from seal_lib import models

    return DataCollatorForLanguageModeling(models.load_tokenizer(_MODEL), mlm=False)


@dataclass(frozen=True)
class Timing:
    """The time of training one adapter, in seconds."""

    start: float  # the total time without the time of the steps
    step: float
    steps: int  # the number that were run

    def per_step(self, whole: int) -> float:
        """Return the seconds per step of an adapter of ``whole`` steps, including its share of the start."""
        return self.start / whole + self.step


def with_trainer(
    model: PreTrainedModel,
    job: Job,
    pad_to: int | None,
    max_steps: int,
    targets: str = "all-linear",
    clock: Callable[[], float] = time.process_time,
) -> Timing:
    """Train one job with HF Trainer and PEFT and return its timing.

    The time by which the first step exceeds the others counts as start-up; a run of one step has no start-up. On a GPU
    it trains under bf16 autocast, as the authors do.

    Args:
        pad_to: pad every document to this length as the authors do; None: transformers' collator.
        max_steps: number of steps; -1: all.
        clock: returns the time in seconds; on a GPU it must wait for the device.
    """
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from seal_lib.training.adapters import target_linears
    from seal_lib.training.finetune import lora

    def row(ids: list[int]) -> dict:
        if pad_to is None:
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        pads = pad_to - len(ids)
        padded = torch.tensor(ids + ids[-1:] * pads)  # documents end in EOS, which is the authors' padding token
        real = torch.tensor([1] * len(ids) + [0] * pads)
        return {"input_ids": padded, "labels": padded.clone(), "attention_mask": real}

    def stack(rows: list[dict]) -> dict:
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    class Watch(TrainerCallback):
        def on_step_end(self, *_, **__):
            if trainer.state.global_step in (1, trainer.state.max_steps):
                ends.append(clock())

    ends: list[float] = []
    cpu = next(model.parameters()).device.type == "cpu"
    begun = clock()
    with (
        tempfile.TemporaryDirectory() as folder,
        lora(model, job.initial(target_linears(model, targets)), job.rank, job.alpha),
    ):
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=1,
            num_train_epochs=job.epochs,
            max_steps=max_steps,
            learning_rate=job.lr,
            lr_scheduler_type=job.schedule,
            weight_decay=job.weight_decay,
            max_grad_norm=job.clip,
            seed=job.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=cpu,
            bf16=not cpu,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=[row(list(example.ids)) for example in job.examples],
            data_collator=padding_collator() if pad_to is None else stack,
            callbacks=[Watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        steps = trainer.state.global_step
    seconds = clock() - begun
    step = (ends[-1] - ends[0]) / (steps - 1) if steps > 1 else seconds
    return Timing(seconds - steps * step, step, steps)


def _measure(model: PreTrainedModel, jobs: list, variant: str, k: int, plan: CpuPlan, turn: int) -> float:
    """Return the CPU milliseconds per adapter-step of one repetition.

    Sequential ways train the same `PER_REPETITION` adapters as a bank of few slots. The authors' way runs the first
    steps of one adapter, which ``turn`` selects.
    """
    from seal_lib.training.bank import AdapterBank
    from seal_lib.training.finetune import train_alone

    if variant == "authors":
        job = jobs[turn % len(jobs)]
        return 1e3 * with_trainer(model, job, plan.length, plan.padded_steps).per_step(len(job.plan()))
    some = jobs[: max(k, PER_REPETITION)]
    steps, start = sum(len(job.plan()) for job in some), time.process_time()
    if variant == "bank":
        with AdapterBank(model, slots=k) as bank:
            bank.run(some)
    for job in some if variant != "bank" else ():
        train_alone(model, job) if variant == "peft_loop" else with_trainer(model, job, None, -1)
    return 1e3 * (time.process_time() - start) / steps


def hand_over(model: PreTrainedModel, jobs: list) -> dict[str, float]:
    """Return the CPU milliseconds per adapter from the end of training until it can generate, with all jobs in a batch.

    ``in place`` attaches the adapters to the model that trained them. ``folder`` writes them as PEFT folders and reads
    them again, as a separate engine needs; the engine's own loading is not included.
    """
    from seal_lib.training.adapters import Adapter
    from seal_lib.training.attached import attached
    from seal_lib.training.bank import AdapterBank

    with AdapterBank(model, slots=len(jobs)) as bank:
        adapters = [result.adapter for result in bank.run([replace(job, epochs=1) for job in jobs])]
    times = {}
    start = time.process_time()
    with attached(model, adapters, list(range(len(adapters)))):
        times["in place"] = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        for i, adapter in enumerate(adapters):
            Adapter.load(adapter.save(Path(folder) / str(i), _MODEL))
        times["folder"] = time.process_time() - start
    return {way: 1e3 * seconds / len(adapters) for way, seconds in times.items()}


def check_same(model: PreTrainedModel, jobs: list) -> float:
    """Return the largest relative difference of a loss between the bank and the PEFT loop.

    In float32 they agree to 1e-6; twice the learning rate would differ by 1e-3 even on a tiny random model.

    Raises:
        SealError: the difference is 1e-4 or more, so they do not train the same adapters.
    """
    from seal_lib.training.bank import AdapterBank
    from seal_lib.training.finetune import train_alone

    with AdapterBank(model, slots=2) as bank:
        together = bank.run(jobs[:2])
    error = max(
        abs(a - b) / max(abs(b), 1e-3)
        for job, result in zip(jobs, together, strict=False)
        for a, b in zip(result.losses, train_alone(model, job).losses, strict=True)
    )
    if not error < 1e-4:
        raise SealError(
            f"Bank and PEFT loop disagree by {error:.1e} in a loss; run the tests in tests/training/test_bank.py."
        )
    return error


def peak_megabytes(variant: str, k: int, tiny: bool) -> float:
    """Return the peak resident memory in MiB of a new process that trains this way, at SEAL's lengths.

    Raises:
        SealError: the process failed.
    """
    command = [sys.executable, "-m", "seal_lib.bench.inner_loop", "--child", variant, str(k), *["--tiny"] * tiny]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SealError(f"The memory measurement of {variant} K={k} failed: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.splitlines()[-1])


def child(variant: str, k: int, plan: CpuPlan) -> None:
    """Train a few steps, which are enough for the peak, and print the peak memory; `peak_megabytes` runs this."""
    plan = replace(plan, padded_steps=2, epochs=1)
    _measure(load(plan), jobs_of(documents("seal", plan), plan), variant, k, plan, 0)
    print(own_peak())


def own_peak() -> float:
    """Return the peak resident memory of this process in MiB.

    On Linux it is read from /proc, since ``ru_maxrss`` includes the parent there.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _run(plan: CpuPlan, say: Callable[[str], None] = print) -> pd.DataFrame:
    """Run the benchmark and return its table, one row per length setting, variant and K.

    Times are the median, lowest and highest over the repetitions; ``tokens`` per document and ``steps`` per adapter are
    means.
    """
    import pandas as pd

    model = load(plan)
    padding_collator()
    jobs = {lengths: jobs_of(documents(lengths, plan), plan) for lengths in LENGTHS}
    about = {
        lengths: (fmean(len(e.ids) for job in several for e in job.examples), fmean(len(job.plan()) for job in several))
        for lengths, several in jobs.items()
    }
    for lengths, (tokens, steps) in about.items():
        say(f"{LENGTHS[lengths]}: {tokens:.0f} tokens a document on average, {steps:.0f} steps an adapter")
        say(f"bank and PEFT loop give the same losses to {check_same(model, jobs[lengths]):.0e}")
    times: dict[tuple[str, str, int], list[float]] = {(n, *key): [] for n in LENGTHS for key in variants(plan)}
    for turn in range(plan.repetitions):
        for (lengths, variant, k), values in times.items():
            values.append(_measure(model, jobs[lengths], variant, k, plan, turn))
        latest = ", ".join(f"{n} {variant} {k}: {values[-1]:.2f}" for (n, variant, k), values in times.items())
        say(f"repetition {turn + 1} of {plan.repetitions}: {latest} ms")
    for way, ms in hand_over(model, jobs["seedling"][: max(plan.slots[-1] // 2, 1)]).items():
        say(f"from trained to ready to generate, {way}: {ms:.2f} ms an adapter")
    rows = []
    for (lengths, variant, k), values in times.items():
        wanted = lengths == "seal" and (plan.peaks is None or (variant, k) in plan.peaks)
        peak = peak_megabytes(variant, k, plan.peaks is not None) if wanted else float("nan")
        adapters = min(plan.repetitions, len(jobs[lengths])) if variant == "authors" else max(k, PER_REPETITION)
        name = _MODEL if plan.hidden == CpuPlan.hidden else "random"
        spread = median(values), min(values), max(values)
        rows.append((lengths, *about[lengths], name, _RANK, variant, k, *spread, peak, adapters))
    return pd.DataFrame(rows, columns=BENCH_COLUMNS)


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark from the command line: write table and figure, print the ratios."""
    parser = argparse.ArgumentParser(prog="python -m seal_lib.bench.inner_loop", description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds, random weights: for the tests")
    parser.add_argument("--repetitions", type=int, help="of each measurement (default 5)")
    parser.add_argument("--child", nargs=2, metavar=("VARIANT", "K"), help="internal: measure memory of one variant")
    options = parser.parse_args(arguments)
    plan = TINY_CPU if options.tiny else CpuPlan()
    if options.repetitions:
        plan = replace(plan, repetitions=options.repetitions)
    if options.child:
        child(options.child[0], int(options.child[1]), plan)
        return 0
    from seal_lib.report import figures

    table = _run(plan)
    folder = paths.figures() / "seedling"
    about = table.iloc[0]
    title = f"{about['model']}, LoRA of rank {about['rank']} on all linear layers, batch 1, the passage included"
    figures.draw(cost_by_slots, table, "bench_inner_loop", folder, title, size=(9.6, 3.8), panels=(1, 2))
    print(table.to_string(index=False, float_format=lambda x: f"{x:.2f}"))
    print(ratios_text(table))
    print(f"written: {paths.short(folder / 'bench_inner_loop.csv')} and .png, .pdf")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
