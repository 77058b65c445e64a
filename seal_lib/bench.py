"""What one optimiser step of one adapter costs, in the four ways to train a self-edit's adapter, on this machine.

Same adapters everywhere (r 8, all linear layers, gold notes of held-out passages, batch 1), CPU milliseconds of one
thread, repetitions interleaved so that a busy machine disturbs all alike:

===================  ================================================================================================
``authors``          HF Trainer + PEFT, every document padded to 2 048 tokens, pads in the loss (the released code)
``trainer_dynamic``  HF Trainer + PEFT, transformers' collator pads to the longest of the batch (of one: nothing)
``peft_loop``        PEFT in a plain loop (:func:`seal_lib.finetune.train_alone`)
``bank``             the adapter bank, K adapters at once
===================  ================================================================================================

Set-up per adapter is part of the cost, spread over the adapter's steps. Run: ``make bench`` or
``python -m seal_lib.bench``; writes ``figures/seedling/bench_inner_loop.{csv,png,pdf}``. Knows nothing of accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import paths
from seal_lib.errors import SealError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MODEL, RANK, ALPHA, LR, EPOCHS = "seedling-knowledge", 8, 16.0, 2e-3, 10
COLUMNS = ("variant", "K", "ms_per_adapter_step", "low", "high", "peak_mb", "adapters")
LABELS = {
    "authors": "authors' code: padded to 2 048",
    "trainer_dynamic": "HF Trainer, nothing padded",
    "peft_loop": "plain PEFT loop",
    "bank": "adapter bank",
}


@dataclass(frozen=True)
class Plan:
    """Sizes of a benchmark."""

    slots: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    repetitions: int = 5
    epochs: int = EPOCHS
    length: int = 2048  # the authors' padding
    padded_steps: int = 6  # of the authors' way, of which a whole adapter would take a minute
    hidden: int = 128
    peaks: tuple[tuple[str, int], ...] | None = None  # what to measure memory of; None: everything


TINY = Plan((1, 2), 1, 1, 64, 2, 32, (("bank", 2),))


def variants(plan: Plan) -> list[tuple[str, int]]:
    """(variant, K) of every row of the table."""
    return [("authors", 1), ("trainer_dynamic", 1), ("peft_loop", 1), *(("bank", k) for k in plan.slots)]


def load(plan: Plan):
    """The shipped seedling and documents of its world; for a tiny plan random weights and random documents.

    Returns:
        (model, one list of documents (token ids) per adapter).
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from seal_lib import models

    torch.set_num_threads(1)
    adapters = max(plan.slots)
    if plan.hidden == Plan.hidden:
        from seal_lib.seedling.world import passages

        model, tokenizer = models.load(MODEL)
        texts = [
            [f"{passage.title}\n{line}" for line in passage.references["gold"].splitlines()]
            for passage in passages("heldout", adapters)
        ]
        return model, [[tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in part] for part in texts]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1334, hidden_size=plan.hidden, intermediate_size=3 * plan.hidden, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=plan.length, tie_word_embeddings=True,
    )  # fmt: skip
    draw = random.Random(0)
    documents = [
        [[draw.randrange(1, 1334) for _ in range(draw.randint(14, 20))] for _ in range(6)] for _ in range(adapters)
    ]
    return LlamaForCausalLM(config).eval().requires_grad_(False), documents


def jobs_of(documents: list[list[list[int]]], plan: Plan) -> list:
    """The same jobs for every variant."""
    from seal_lib.bank import Example, Job

    return [
        Job(str(i), [Example(ids) for ids in part], lr=LR, epochs=plan.epochs, rank=RANK, alpha=ALPHA, seed=i)
        for i, part in enumerate(documents)
    ]


@cache
def padding_collator():
    """transformers' own dynamic padding; made once, so that loading the tokenizer is nobody's cost."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    from seal_lib import models

    return DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(models.resolve(MODEL)[0]), mlm=False)


def with_trainer(
    model, job, pad_to: int | None, max_steps: int, targets: str = "all-linear",
    clock: Callable[[], float] = time.process_time,
) -> tuple[float, int]:  # fmt: skip
    """HF Trainer and PEFT on one job. Returns (CPU seconds of training, steps); ``pad_to`` as the authors pad.

    On a GPU under bf16 autocast, as the authors; ``clock`` then waits for it.
    """
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from seal_lib.adapters import target_linears, target_names
    from seal_lib.finetune import lora

    def row(ids: list[int]) -> dict:
        if pad_to is None:
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        pads = pad_to - len(ids)
        padded = torch.tensor(ids + ids[-1:] * pads)  # documents end in EOS, which is the authors' pad
        real = torch.tensor([1] * len(ids) + [0] * pads)
        return {"input_ids": padded, "labels": padded.clone(), "attention_mask": real}

    def stack(rows: list[dict]) -> dict:
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    names, cpu = target_names(targets), next(model.parameters()).device.type == "cpu"
    with (
        tempfile.TemporaryDirectory() as folder,
        lora(model, job.initial(target_linears(model, names)), job.rank, job.alpha, names),
    ):
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=1, num_train_epochs=job.epochs, max_steps=max_steps,
            learning_rate=job.lr, lr_scheduler_type=job.schedule, weight_decay=job.weight_decay, max_grad_norm=job.clip,
            seed=job.seed, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=cpu,
            bf16=not cpu,
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=arguments, train_dataset=[row(list(example.ids)) for example in job.examples],
            data_collator=padding_collator() if pad_to is None else stack,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        start = clock()
        trainer.train()
        return clock() - start, trainer.state.global_step


def measure(model, jobs: list, variant: str, k: int, plan: Plan, turn: int) -> float:
    """CPU milliseconds per adapter-step of one repetition; where one adapter is run, ``turn`` says which."""
    from seal_lib.bank import AdapterBank, train_alone

    job, start = jobs[turn % len(jobs)], time.process_time()
    steps = len(job.plan())
    if variant == "bank":
        with AdapterBank(model, slots=k) as bank:
            results = bank.run(jobs[:k])
        return 1e3 * (time.process_time() - start) / sum(result.steps for result in results)
    if variant == "peft_loop":
        train_alone(model, job)
        return 1e3 * (time.process_time() - start) / steps
    padded = variant == "authors"
    training, done = with_trainer(model, job, plan.length if padded else None, plan.padded_steps if padded else -1)
    set_up = time.process_time() - start - training
    return 1e3 * (set_up / steps + training / done)


def hand_over(model, jobs: list) -> dict[str, float]:
    """CPU milliseconds per adapter from trained to ready to generate, all jobs in one batch.

    ``in place``: attached to the model that trained them. ``folder``: written as PEFT folders and read again, as an
    engine of its own needs it, its own loading not counted.
    """
    from seal_lib.adapters import Adapter, attached
    from seal_lib.bank import AdapterBank

    with AdapterBank(model, slots=len(jobs)) as bank:
        adapters = [result.adapter for result in bank.run([replace(job, epochs=1) for job in jobs])]
    times = {}
    start = time.process_time()
    with attached(model, adapters, list(range(len(adapters)))):
        times["in place"] = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        for i, adapter in enumerate(adapters):
            Adapter.load(adapter.save(Path(folder) / str(i), MODEL))
        times["folder"] = time.process_time() - start
    return {way: 1e3 * seconds / len(adapters) for way, seconds in times.items()}


def check_same(model, jobs: list) -> float:
    """Largest relative difference of a loss between the bank and the PEFT loop; they must train the same adapters."""
    from seal_lib.bank import AdapterBank, train_alone

    with AdapterBank(model, slots=2) as bank:
        together = bank.run(jobs[:2])
    error = max(
        abs(a - b) / max(abs(b), 1e-3)
        for job, result in zip(jobs, together, strict=False)
        for a, b in zip(result.losses, train_alone(model, job).losses, strict=True)
    )
    if not error < 1e-2:
        raise SealError(f"Bank and PEFT loop disagree by {error:.1e} in a loss; run the tests in tests/test_bank.py.")
    return error


def peak_megabytes(variant: str, k: int, tiny: bool) -> float:
    """Peak resident memory of a fresh process that trains this way."""
    command = [sys.executable, "-m", "seal_lib.bench", "--child", variant, str(k), *(["--tiny"] if tiny else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SealError(f"The memory measurement of {variant} K={k} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])["peak_mb"]


def child(variant: str, k: int, plan: Plan) -> None:
    """What :func:`peak_megabytes` runs: few steps are enough for the peak."""
    model, documents = load(plan)
    plan = replace(plan, padded_steps=2, epochs=1)
    measure(model, jobs_of(documents, plan), variant, k, plan, 0)
    print(json.dumps({"peak_mb": own_peak()}))


def own_peak() -> float:
    """Peak resident megabytes of this process. On Linux from /proc: ``ru_maxrss`` there also counts the parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def run(plan: Plan, say: Callable[[str], None] = print) -> pd.DataFrame:
    """The table of the benchmark, one row per variant and K: median, lowest and highest over the repetitions."""
    import pandas as pd

    model, documents = load(plan)
    jobs = jobs_of(documents, plan)
    padding_collator()
    lengths = [len(ids) for part in documents for ids in part]
    say(f"{len(jobs)} adapters of {len(jobs[0].plan())} steps, documents of {min(lengths)}–{max(lengths)} tokens")
    say(f"bank and PEFT loop give the same losses to {check_same(model, jobs):.0e}")
    times: dict[tuple[str, int], list[float]] = {key: [] for key in variants(plan)}
    for turn in range(plan.repetitions):
        for variant, k in times:
            times[variant, k].append(measure(model, jobs, variant, k, plan, turn))
        latest = ", ".join(f"{variant} {k}: {values[-1]:.2f}" for (variant, k), values in times.items())
        say(f"repetition {turn + 1} of {plan.repetitions}: {latest} ms")
    for way, ms in hand_over(model, jobs[: max(plan.slots[-1] // 4, 1)]).items():
        say(f"from trained to ready to generate, {way}: {ms:.2f} ms an adapter")
    rows = []
    for (variant, k), values in times.items():
        wanted = plan.peaks is None or (variant, k) in plan.peaks
        peak = peak_megabytes(variant, k, plan.peaks is not None) if wanted else float("nan")
        adapters = k if variant == "bank" else min(plan.repetitions, len(jobs))
        rows.append((variant, k, statistics.median(values), min(values), max(values), peak, adapters))
    return pd.DataFrame(rows, columns=COLUMNS)


def ratios(table: pd.DataFrame) -> dict[str, float]:
    """How many times dearer each way is than the bank at its best K."""
    bank = table[table["variant"] == "bank"]["ms_per_adapter_step"].min()
    others = table[table["variant"] != "bank"]
    return {f"{row.variant}/bank": row.ms_per_adapter_step / bank for row in others.itertuples()}


def cost_by_slots(table: pd.DataFrame, ax: Axes) -> Axes:
    """Milliseconds per adapter-step against K, both axes logarithmic; the three sequential ways are level lines."""
    bank, slots = table[table["variant"] == "bank"], sorted(table["K"].unique())
    colours = {"authors": "#D55E00", "trainer_dynamic": "#E69F00", "peft_loop": "#56B4E9", "bank": "#0072B2"}
    for row in table[table["variant"] != "bank"].itertuples():
        paint = colours[row.variant]
        ax.axhline(row.ms_per_adapter_step, color=paint)
        ax.axhspan(row.low, row.high, color=paint, alpha=0.2, linewidth=0)
        label = f"{LABELS[row.variant]}, {row.ms_per_adapter_step:.3g} ms"
        ax.text(slots[-1], row.ms_per_adapter_step * 1.1, label, color=paint, ha="right", va="bottom")
    best = bank.loc[bank["ms_per_adapter_step"].idxmin()]
    ax.fill_between(bank["K"], bank["low"], bank["high"], color=colours["bank"], alpha=0.2, linewidth=0)
    ax.plot(bank["K"], bank["ms_per_adapter_step"], color=colours["bank"], marker="o", markersize=4)
    label = f"{LABELS['bank']}, {best['ms_per_adapter_step']:.3g} ms at K = {best['K']:.0f}"
    ax.text(slots[-1], best["low"] * 0.86, label, color=colours["bank"], ha="right", va="top")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(slots, [str(k) for k in slots])
    ax.set_ylim(bottom=best["low"] * 0.5, top=table["high"].max() * 2)
    ax.set_xlabel("adapters trained side by side, K")
    ax.set_ylabel("CPU ms per adapter-step, one thread")
    return ax


def main(arguments: list[str] | None = None) -> int:
    """Command line: run, write table and picture, print the ratios."""
    parser = argparse.ArgumentParser(prog="python -m seal_lib.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds, random weights: for the tests")
    parser.add_argument("--child", nargs=2, metavar=("VARIANT", "K"), help="internal: measure memory of one variant")
    options = parser.parse_args(arguments)
    plan = TINY if options.tiny else Plan()
    try:
        if options.child:
            child(options.child[0], int(options.child[1]), plan)
            return 0
        from seal_lib import figures

        table = run(plan)
        folder = paths.figures() / "seedling"
        figures.draw(cost_by_slots, table, "bench_inner_loop", folder, size=(5.6, 3.6))
    except SealError as error:
        print(error, file=sys.stderr)
        return 1
    print(table.to_string(index=False, float_format=lambda x: f"{x:.2f}"))
    for name, value in ratios(table).items():
        print(f"{name}: {value:.1f}")
    print(f"written: {paths.short(folder / 'bench_inner_loop.csv')} and .png, .pdf")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
