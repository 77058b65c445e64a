"""Measure the cost of a useful token of test-time training: 15 self-edits of one task, trained in seven ways.

====================  ===============================================================================================
one_at_a_time_padded  one adapter after the other, every example padded to the longest of its set, padding in the
                      loss, as in the released code (but in a plain loop, without a Trainer and its start-up)
one_at_a_time         one adapter after the other, without padding
bank_padded           all adapters side by side, padded as above
bank                  all adapters side by side, without padding
bank_bounded          as ``bank`` with half as many slots and at most 1 000 tokens per step: slots take turns
bank_bucketed         as ``bank_bounded``, with minibatches of examples of similar length
bank_unique           as ``bank_bounded``, with equal configurations trained once
====================  ===============================================================================================

The self-edits are drawn from 18 configurations, as a policy is about that concentrated after a round, so some repeat. A
useful token is one that is not padding, counted for all 15 self-edits; sampling and scoring are not measured. Every way
trains whole self-edits, with the time to start each included. The puzzles are of the made world and far shorter than
ARC's (`seal_lib.plan.lengths`), so the ratios hold for this model at these lengths. Run ``make bench`` or
``python -m seal_lib.bench.arc``; it writes ``figures/seedling/bench_arc.{csv,png,pdf}``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from seal_lib import paths
from seal_lib.arc import prompts
from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.domain import Puzzles, TestTimeTraining
from seal_lib.arc.self_edits import Config
from seal_lib.arc.tasks import Task
from seal_lib.errors import command_line
from seal_lib.loops.domain import Candidate
from seal_lib.seeds import rng

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seal_lib.training.jobs import Job

MODEL = "seedling-grids"
SELF_EDITS = 15
SETTINGS = TestTimeTraining(
    rank=16,
    alpha=16,
    targets="all-linear",
    batch=4,
    warmup=3,
    cap=32,
    copies=3,
    slots=16,
    tokens_per_step=1000,
    example_tokens=120,
)


def draw_configs(task: Task, count: int = SELF_EDITS) -> list[Config]:
    """Draw configurations as a policy writes them after a round: 3 sets of switches, 2 learning rates, 3 epochs."""
    draws = rng("arc bench", task.id)
    switches = (SWITCHES[2:3], SWITCHES[3:], SWITCHES[1:2] + SWITCHES[3:])
    return [
        Config(draws.choice(switches), "train_using_output_tokens", draws.choice((3e-3, 1e-2)), draws.choice((2, 3, 4)))
        for _ in range(count)
    ]


def jobs_of(
    task: Task, configs: Sequence[Config], tokenizer: PreTrainedTokenizerBase, settings: TestTimeTraining
) -> list[Job]:
    """Return one job per self-edit, all of one seed; equal self-edits have a job each."""
    domain = Puzzles(settings, prompts.load("seedling"))
    candidates = [Candidate(f"{number}", task, config, "", 0) for number, config in enumerate(configs)]
    return [replace(job, seed=0) for job in domain.jobs(candidates, tokenizer)]


def padded(job: Job, pad: int) -> Job:
    """Return the job with every example padded to the longest; the padding is in the loss, as in the released code."""
    longest = max(len(example.ids) for example in job.examples)
    examples = []
    for example in job.examples:
        more, weights = longest - len(example.ids), example.weights or [1.0] * len(example.ids)
        examples.append(replace(example, ids=[*example.ids, *[pad] * more], weights=[*weights, *[1.0] * more]))
    return replace(job, examples=examples)


def bucketed(job: Job) -> Job:
    """Return the job with minibatches of examples of similar length, in random order."""
    order = []
    for epoch in range(job.epochs):
        draws = random.Random(job.seed * 1_000_003 + epoch)
        rows = sorted(range(len(job.examples)), key=lambda i: (len(job.examples[i].ids), draws.random()))
        batches = [tuple(rows[i : i + job.batch]) for i in range(0, len(rows), job.batch)]
        draws.shuffle(batches)
        order += batches
    return replace(job, order=order)


def tokens(jobs: Sequence[Job]) -> int:
    """Return the number of tokens trained on, over all epochs."""
    return sum(job.epochs * sum(len(example.ids) for example in job.examples) for job in jobs)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    settings: TestTimeTraining = SETTINGS,
    repetitions: int = 5,
    count: int = SELF_EDITS,
) -> pd.DataFrame:
    """Train ``count`` self-edits of a task in every way and return one row per way.

    ``ms_per_useful_token`` is the median over interleaved repetitions in CPU milliseconds, ``low`` and ``high`` are the
    extremes; ``tokens`` is the mean length of an example.
    """
    import pandas as pd

    from seal_lib.training.bank import AdapterBank

    configs = draw_configs(task, count)
    plain = jobs_of(task, configs, tokenizer, settings)
    wide = [padded(job, tokenizer.pad_token_id) for job in plain]
    once = [plain[configs.index(config)] for config in dict.fromkeys(configs)]
    useful = tokens(plain)
    length = statistics.fmean(len(example.ids) for job in plain for example in job.examples)
    bounded = (max(1, settings.slots // 2), settings.tokens_per_step or None)
    ways = {
        "one_at_a_time_padded": (wide, 1, None),
        "one_at_a_time": (plain, 1, None),
        "bank_padded": (wide, settings.slots, None),
        "bank": (plain, settings.slots, None),
        "bank_bounded": (plain, *bounded),
        "bank_bucketed": ([bucketed(job) for job in plain], *bounded),
        "bank_unique": (once, *bounded),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, (jobs, slots, bound) in ways.items():
            start = time.process_time()  # CPU seconds of this process, so that other programs do not count
            with AdapterBank(model, slots=slots, targets=settings.targets, tokens_per_step=bound) as bank:
                bank.run(jobs)
            seconds[name].append(time.process_time() - start)
    taken = pd.DataFrame(seconds)
    each = 1e3 * taken / useful
    columns = {
        "ms_per_useful_token": each.median(),
        "low": each.min(),
        "high": each.max(),
        "useful_share": pd.Series({name: useful / tokens(wide) if name.endswith("padded") else 1.0 for name in ways}),
        "seconds": taken.median(),
        "self_edits": len(configs),
        "distinct": len(once),
        "tokens": length,
    }
    return pd.DataFrame(columns).rename_axis("variant").reset_index()


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark from the command line: measure, write table and figure, print the savings."""
    parser = argparse.ArgumentParser(prog="python -m seal_lib.bench.arc", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args(arguments)
    from seal_lib import models
    from seal_lib.arc import plots as arc_plots
    from seal_lib.arc import world
    from seal_lib.report import figures

    model, tokenizer = models.load(MODEL)
    table = measure(model, tokenizer, world.tasks("learning", 1)[0], repetitions=options.repetitions)
    about = table.iloc[0]
    title = f"{MODEL}, LoRA of rank {SETTINGS.rank}, batch {SETTINGS.batch}, {about['tokens']:.0f} tokens an example, "
    title += f"{about['self_edits']} self-edits of one puzzle"
    figures.draw(arc_plots.bench_arc, table, "bench_arc", paths.figures() / "seedling", title, size=(7.2, 3.0))
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}"))
    cost = table.set_index("variant").ms_per_useful_token
    for name in cost.index[1:]:
        print(f"one_at_a_time_padded/{name}: {cost['one_at_a_time_padded'] / cost[name]:.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
