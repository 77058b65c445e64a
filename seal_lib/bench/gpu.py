"""Measure the cost of one 7B self-edit on this GPU: train its adapter in three ways and answer five questions with it.

The weights are random, made on the device with the shapes of Qwen2.5-7B and Llama-3.2-1B in bfloat16: nothing is
downloaded, and no accuracy is measured. Documents have the lengths of SEAL's released self-edits
(`seal_lib.plan.lengths`).

==============  =====================================================================================================
``authors``     HF Trainer + PEFT, batch 1, every document padded to 2 048, padding in the loss; a few steps only
``sequential``  one adapter after the other, without padding (`seal_lib.training.finetune.train_alone`)
``bank``        the adapter bank, K = 1 … 64 adapters side by side, from a queue of 2 K self-edits (at least 8)
==============  =====================================================================================================

In every way, the time before the second step of an adapter, or of a bank full of adapters, is spread over all steps of
the self-edits, even if a measurement stops earlier (`seal_lib.bench.inner_loop.Timing`). The time that a bank spends
once on capturing steps, whatever the number of self-edits, is a column of its own (``start_s``). In the first
repetition some steps in the steady state are profiled, for the device's busy time and the number of launches.

The results for each way, on q/v and on all linears, are seconds per self-edit including answers, tokens per second, the
share of the device's lower bounds from bytes and FLOPs (`seal_lib.plan.costs`), and peak memory. Repetitions are
interleaved until the time is up. Every measurement is written at once (``bench_gpu_rows.csv``), so a killed run keeps
its rows, and ``--draw`` makes table and figure of them; running out of memory is an outcome. Run ``make bench-gpu``;
``--tiny`` runs the same code on a CPU in seconds. `seal_lib.bench.gpu_table` makes the table and the figure.
"""

import argparse
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import paths
from seal_lib.bench import gpu_table, inner_loop
from seal_lib.bench.gpu_table import ALPHA, LR, QUESTIONS, RANK, GpuPlan, Measurement
from seal_lib.errors import SealError, command_line
from seal_lib.plan import lengths
from seal_lib.training.jobs import Example, Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_READ_EVERY = 8  # steps of a bank between two readings of the clock, since each reading must synchronise the GPU


class OutOfTime(Exception):
    """Raised inside a measurement to end it when its time is up; the steps until then count."""


class Words:
    """A stand-in for a tokenizer: a text is a list of numbers, and its end-of-text id is never sampled."""

    eos_token_id, pad_token_id, all_special_ids = -1, 0, (-1,)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


def jobs_of(plan: GpuPlan, count: int, vocabulary: int) -> list:
    """Return the jobs of ``count`` self-edits with recorded lengths and random tokens, the same for every variant."""
    edits, draw = itertools.cycle(gpu_table.documents(plan)), random.Random(0)
    drawn = ([Example([draw.randrange(2, vocabulary) for _ in range(n)]) for n in next(edits)] for _ in range(count))
    about = {"lr": LR, "epochs": plan.epochs, "rank": RANK, "alpha": ALPHA}
    return [Job(str(i), examples, seed=i, **about) for i, examples in enumerate(drawn)]


def variants(plan: GpuPlan) -> list[tuple[str, str, int]]:
    """Return (targets, variant, K) of every measurement, in the order of a repetition."""
    ways = [("bank", plan.slots[0]), ("authors", 1), ("sequential", 1), *(("bank", k) for k in plan.slots[1:])]
    return [(targets, *way) for targets in plan.targets for way in ways]


# ---------------------------------------------------------------------------------------------- measuring


def device_clock(model: "PreTrainedModel") -> Callable[[], float]:
    """Return a clock in seconds that waits until the device has finished its work."""
    import torch

    if next(model.parameters()).device.type == "cpu":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def timed_training(
    model: "PreTrainedModel", plan: GpuPlan, targets: str, variant: str, k: int, turn: int, limit: float
) -> tuple[float, int, int, int, float]:
    """Measure one way of training; return (seconds, adapter-steps, tokens without padding, self-edits begun, rest).

    The bank is stopped ``limit`` seconds after its first step; ``sequential`` trains up to three self-edits and begins
    none after half of ``limit``. The seconds include a share of the time to open adapters: the share that the measured
    steps are of all steps of the opened self-edits. If steps are captured, only replayed steps count; the other steps
    and the captures occur once per bank and make up the rest, in seconds.
    """
    from seal_lib.training.bank import AdapterBank
    from seal_lib.training.finetune import train_alone

    now, begun = device_clock(model), time.perf_counter()
    every = _READ_EVERY if model.device.type == "cuda" else 1  # steps between two readings of the time
    jobs = jobs_of(plan, max(2 * k, 8), model.config.vocab_size)
    own = jobs[turn % len(jobs)]
    if variant == "authors":
        timing = inner_loop.with_trainer(model, own, plan.padding, plan.padded_steps, targets, now)
        whole = len(own.plan())
        return timing.steps * timing.per_step(whole), timing.steps, round(timing.steps * _tokens(own) / whole), 1, 0.0
    if variant == "sequential":
        seconds, steps, tokens, edits = 0.0, 0, 0, 0
        while not edits or edits < 3 and time.perf_counter() - begun < limit / 2:
            start, job = now(), jobs[(turn + edits) % len(jobs)]
            result = train_alone(model, job, targets)
            seconds, steps, edits = seconds + now() - start, steps + result.steps, edits + 1
            tokens += result.tokens
        return seconds, steps, tokens, edits, 0.0
    marks: list[tuple[float, int, int, int]] = []  # time, adapter-steps, tokens and replays so far
    waiting, number = len(jobs), 0

    def watch(counts: dict) -> None:
        nonlocal waiting, number
        number, waiting = number + 1, counts["waiting"]
        if number == 1 or number % every == 0:
            marks.append((now(), counts["steps"], counts["tokens"], bank.replays))
            if marks[-1][0] - marks[0][0] > limit:
                raise OutOfTime

    with AdapterBank(model, slots=k, targets=targets) as bank:
        start = now()
        with suppress(OutOfTime):
            for _ in bank.stream(jobs, watch):  # drop each adapter at once: 128 on all linears take 40 GB
                pass
        whole = now() - start
        captured = bank.captures
    parts = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(marks)]
    if captured:  # the usual step is a replayed one
        parts = [part for part in parts if part[3] == every] or parts
    seconds, steps, tokens, _ = (sum(column) for column in zip(*parts, strict=True)) if parts else (0.0, 0, 0, 0)
    ended, served, first_tokens, _ = marks[0]
    opening = max(0.0, ended - start - served * (seconds / steps if steps else 0.0))
    opened = sum(sorted((len(job.plan()) for job in jobs), reverse=True)[:k])  # steps of the jobs opened at the start
    if not captured or not steps:  # the first step counts too
        seconds, steps, tokens = seconds + ended - start - opening, steps + served, tokens + first_tokens
    return seconds + opening * min(1.0, steps / opened), steps, tokens, len(jobs) - waiting, max(0.0, whole - seconds)


def steady(model: "PreTrainedModel", plan: GpuPlan, targets: str, k: int, after: int = 30) -> dict:
    """Profile four steps of a bank with torch's profiler, following ``after`` other steps.

    Returns:
        ``busy``, the share of the time in which the device works, and ``launches`` per step; empty if the bank has too
        few steps.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    from seal_lib.training.bank import AdapterBank

    now, steps, begun = device_clock(model), 0, 0.0
    record = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def watch(_: dict) -> None:
        nonlocal steps, begun
        steps += 1
        if steps == after:
            now()
            record.start()
            begun = now()
        if steps == after + 4:
            begun = now() - begun
            record.stop()
            raise OutOfTime

    with AdapterBank(model, slots=k, targets=targets) as bank, suppress(OutOfTime):
        for _ in bank.stream(jobs_of(plan, max(2 * k, 8), model.config.vocab_size), watch):
            pass
    if steps < after + 4:  # too few steps for a steady state
        return {}
    events = record.events()
    working = sum(e.device_time_total for e in events if e.device_type == DeviceType.CUDA) / 1e6
    launched = sum(e.name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch")) for e in events)
    return {"busy": working / begun, "launches": launched / 4}


def _tokens(job: Job) -> int:
    return job.epochs * sum(len(example.ids) for example in job.examples)


def answer(model: "PreTrainedModel", plan: GpuPlan, targets: str, k: int) -> tuple[float, int]:
    """Measure (seconds, number of answers) of `QUESTIONS` questions to each of ``k`` adapters, decoded together.

    The adapters start in host memory.

    Raises:
        SealError: an answer is shorter than planned.
    """
    import torch

    from seal_lib.generation.contract import Request, Sampling
    from seal_lib.generation.hf import HFGenerator
    from seal_lib.training.adapters import Adapter, target_linears, target_names

    names = target_names(model, targets)
    start = Job("answer", (), rank=RANK, seed=0).initial(target_linears(model, names))
    draw = torch.Generator().manual_seed(1)
    weights = {n: (a, 1e-3 * torch.randn(b.shape, generator=draw)) for n, (a, b) in start.items()}
    adapters = [Adapter(RANK, ALPHA, names, dict(weights)) for _ in range(k)]  # sharing tensors saves host memory
    words, ask = random.Random(0), round(lengths.profiles()["squad"].ask)
    asked = [
        Request(" ".join(str(words.randrange(2, model.config.vocab_size)) for _ in range(ask)), adapter=adapter)
        for adapter in adapters
        for _ in range(QUESTIONS)
    ]
    now, generator = device_clock(model), HFGenerator(model, Words())
    begun = now()
    done = generator.generate(asked, Sampling(plan.answer_tokens))
    seconds = now() - begun
    if any(c.tokens != plan.answer_tokens for (c,) in done):
        raise SealError("An answer ended early, so its cost would be too low; this must not happen: see Words.")
    return seconds, len(asked)


def _measure(
    model: "PreTrainedModel", name: str, plan: GpuPlan, way: tuple[str, str, int], turn: int, limit: float
) -> Measurement:
    """Measure one way and return its row; running out of memory, or a refusal of the bank, is its outcome."""
    import torch

    gpu = next(model.parameters()).device.type == "cuda"
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    row, (targets, variant, k) = Measurement(name, *way, turn, "ok"), way
    try:
        seconds, steps, tokens, edits, start = timed_training(model, plan, *way, turn, limit)
        row = replace(row, train_seconds=seconds, steps=steps, tokens=tokens, edits=edits, start_seconds=start)
        if gpu and not turn and variant == "bank":
            row = replace(row, **steady(model, plan, targets, k))
        seconds, answers = answer(model, plan, targets, k)
        row = replace(row, answer_seconds=seconds, answers=answers)
    except torch.OutOfMemoryError as error:
        row = replace(row, outcome="out of memory", reason=str(error).splitlines()[0][:120])
    except SealError as error:
        row = replace(row, outcome="refused", reason=str(error)[:200])
    peak = torch.cuda.max_memory_allocated() / 1e9 if gpu else inner_loop.own_peak() / 1e3
    return replace(row, peak_gb=peak)


def measurements(plan: GpuPlan, device: str, say: Callable[[str], None]) -> Iterator[Measurement]:
    """Yield rows as they are measured, model by model, with interleaved variants, within each model's share of time."""
    import torch

    begun, share = time.monotonic(), 0.0
    for name, part in plan.models:
        share += part
        until = begun + 60 * plan.minutes * share - (5 if plan.minutes > 2 else 0)
        model = inner_loop.random_model(gpu_table.BENCH_SHAPES[name], device)
        say(f"{name}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} B random weights on {device}")
        _warm_up(model, plan)
        ways = variants(plan)
        # for training; answering and set-up take the rest
        limit = max(0.5, (until - time.monotonic()) / len(ways) / plan.repetitions / 1.8)
        spent: dict[tuple, float] = {}
        dropped: set[tuple] = set()
        for turn in range(plan.repetitions):
            for way in ways:
                if way in dropped or time.monotonic() + spent.get(way, limit) > until:
                    continue
                start = time.monotonic()
                row = _measure(model, name, plan, way, turn, limit)
                spent[way] = time.monotonic() - start
                if row.outcome != "ok":
                    dropped.add(way)
                yield row
        del model
        if device == "cuda":
            torch.cuda.empty_cache()


def _warm_up(model: "PreTrainedModel", plan: GpuPlan) -> None:
    """Run every kind of measurement once, so that kernels are chosen and libraries loaded before timing."""
    short = replace(plan, epochs=1, documents=2, answer_tokens=2, padded_steps=1)
    for variant, k in (("bank", 2), ("authors", 1)):
        timed_training(model, short, "qv", variant, k, 0, 10.0)
    answer(model, short, "qv", 2)


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark from the command line: measure, write rows, table, figure and the record of the machine."""
    parser = argparse.ArgumentParser(prog="python -m seal_lib.bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny shape on the CPU, seconds: for the tests")
    parser.add_argument("--minutes", type=float, help="time for all of it (default 9)")
    parser.add_argument("--draw", action="store_true", help="only make table and picture of the rows that are there")
    parser.add_argument("--model", choices=[name for name, _ in GpuPlan().models], help="only this one")
    parser.add_argument("--slots", help="adapters side by side, e.g. 32,16")
    given = parser.parse_args(arguments)
    plan = gpu_table.TINY_GPU if given.tiny else GpuPlan()
    if given.minutes:
        plan = replace(plan, minutes=given.minutes)
    if given.model:
        plan = replace(plan, models=((given.model, 1.0),))
    if given.slots:
        plan = replace(plan, slots=tuple(int(k) for k in given.slots.split(",")))
    folder, stem = paths.figures() / "gpu", "bench_gpu_tiny" if given.tiny else "bench_gpu"
    if not given.draw:
        _run(plan, folder / f"{stem}_rows.csv")
    table = gpu_table.finish(folder, stem)
    print(gpu_table.summary_text(table))
    return 0


def _run(plan: GpuPlan, file: Path) -> None:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # HF Trainer would use all GPUs
    import torch

    device = "cpu" if plan.tiny else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SealError("No CUDA GPU is found; python -m seal_lib.bench.gpu --tiny runs the same code on a CPU.")
    if device == "cpu":
        torch.set_num_threads(1)
    source = lengths.profiles()["squad"].source
    record = gpu_table.machine(device) | {"lengths": source, "minutes": plan.minutes}
    shapes = {name: gpu_table.BENCH_SHAPES[name] for name, _ in plan.models}
    gpu_table.begin(file, record, plan, shapes)
    for row in measurements(plan, device, print):
        gpu_table.append(file, row)
        print(gpu_table.line(row), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
