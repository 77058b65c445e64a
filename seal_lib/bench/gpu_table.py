"""Sizes, rows, table and figure of the GPU benchmark, compared with the device's lower bounds.

`GpuPlan` holds the sizes. A row is one measurement, stored as a line of a CSV file. `summary` makes a table with one
line per way, `cost_curve` draws it, and `finish` writes all of it. `seal_lib.bench.gpu` makes the measurements.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

from seal_lib import paths
from seal_lib.bench import inner_loop_table
from seal_lib.errors import SealError
from seal_lib.models import budget
from seal_lib.plan import costs, lengths
from seal_lib.report.marks import names_at_right

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

RANK, ALPHA, LR, EPOCHS = 32, 64.0, 1e-4, 10  # paper Table 3 except lr, as random weights must not diverge
QUESTIONS = 5
#: the goal in seconds per 7B self-edit on one H200, answers included, for q and v or for all linears
GOAL = 0.5
_LABELS = inner_loop_table.LABELS | {"sequential": "one at a time, nothing padded"}
BENCH_PACKAGES = ("torch", "transformers", "peft", "accelerate")
TARGET_LABELS = {"qv": "q and v", "all-linear": "all linears"}


@dataclass(frozen=True)
class GpuPlan:
    """Sizes of a benchmark. ``models`` holds (name, share of the minutes)."""

    models: tuple[tuple[str, float], ...] = (("Qwen/Qwen2.5-7B", 0.75), ("meta-llama/Llama-3.2-1B-Instruct", 0.25))
    targets: tuple[str, ...] = ("qv", "all-linear")
    slots: tuple[int, ...] = (16, 4, 1, 64, 8, 32, 2)  # the most informative first, so that a short run has them
    epochs: int = EPOCHS
    padding: int = 2048
    padded_steps: int = 20  # steps in the authors' way
    answer_tokens: int = 64
    minutes: float = 9.0
    repetitions: int = 3
    documents: int | None = None  # largest number of documents per self-edit, each cut to `longest` tokens
    longest: int = 2048
    tiny: bool = False


TINY_GPU = GpuPlan(
    (("tiny", 1.0),),
    ("qv", "all-linear"),
    (2, 1),
    epochs=1,
    padding=64,
    padded_steps=2,
    answer_tokens=3,
    minutes=600.0,
    repetitions=1,
    documents=3,
    longest=24,
    tiny=True,
)
BENCH_SHAPES = budget.SHAPES | {"tiny": budget.Shape("tiny", 2, 64, 4, 2, 16, 128, 512, False, True, 512)}


def documents(plan: GpuPlan) -> list[list[int]]:
    """Return the number of tokens of each document of each recorded self-edit, the passage last."""
    edits = lengths.profiles()["squad"].documents
    return [[min(n, plan.longest) for n in d[-(plan.documents or len(d)) :]] for d in edits]


@dataclass(frozen=True)
class Measurement:
    """One measurement. ``outcome`` is ok, out of memory or refused; values that were not reached are NaN or 0."""

    model: str
    targets: str
    variant: str
    K: int
    turn: int
    outcome: str
    train_seconds: float = math.nan
    steps: int = 0  # adapter-steps in these seconds
    tokens: int = 0  # document tokens in these steps, without padding
    edits: int = 0  # self-edits begun
    answer_seconds: float = math.nan
    answers: int = 0
    peak_gb: float = math.nan
    start_seconds: float = math.nan  # spent once per bank: opening it, first steps and captures; not in train_seconds
    busy: float = math.nan  # share of a steady step in which the device works
    launches: float = math.nan  # kernels and graphs launched in a steady step
    reason: str = ""


_TYPES = get_type_hints(Measurement)
_WAY = ["model", "targets", "variant", "K"]


def machine(device: str) -> dict[str, object]:
    """Return the device, driver, CUDA, package versions, git state and date of a measurement."""
    import torch

    from seal_lib.runs import manifest

    here = manifest.machine()
    found = costs.this_device(here) if device == "cuda" else costs.devices()["cpu"]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else here["cpu"],
        "device_key": found.key,
        "gpus": here["gpus"],  # name, driver, memory
        "cuda": torch.version.cuda if device == "cuda" else None,
        "versions": {k: v for k, v in manifest.versions().items() if k in BENCH_PACKAGES},
        "dtype": "bfloat16" if device == "cuda" else "float32",
        "git": manifest.git_state(),
        "date": manifest.now(),
    }


def begin(file: Path, record: dict, plan: GpuPlan, shapes: dict[str, budget.Shape]) -> None:
    """Write an empty table of rows, and the record of machine and sizes, before the first measurement."""
    edits = documents(plan)
    sizes = {
        "rank": RANK,
        "alpha": ALPHA,
        "lr": LR,
        "epochs": plan.epochs,
        "epochs_of_an_edit": EPOCHS,
        "questions": QUESTIONS,
        "answer_tokens": plan.answer_tokens,
        "padding": plan.padding,
        "documents_per_edit": statistics.fmean(map(len, edits)),
        "tokens_per_document": sum(map(sum, edits)) / sum(map(len, edits)),
    }
    table = {name: dataclasses.asdict(shape) for name, shape in shapes.items()}
    paths.write_json(_record(file), record | {"sizes": sizes, "shapes": table, "efficiency": {}})
    paths.write_text(file, ",".join(_TYPES) + "\n")


def _record(file: Path) -> Path:
    return file.with_name(f"{file.stem.removesuffix('_rows')}.json")


def append(file: Path, row: Measurement) -> None:
    """Append one row and wait until it is on disk."""
    with open(file, "a", encoding="utf-8", newline="") as out:
        csv.writer(out, lineterminator="\n").writerow(dataclasses.astuple(row))
        out.flush()
        os.fsync(out.fileno())


def read(file: Path) -> list[Measurement]:
    """Read the rows of a file, without a last line that a kill cut off.

    Raises:
        SealError: there is no such file.
    """
    if not file.is_file():
        raise SealError(f"{paths.short(file)} does not exist; run make bench-gpu first.")
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [Measurement(**{k: _TYPES[k](v) for k, v in line.items()}) for line in csv.DictReader(io.StringIO(whole))]


def line(row: Measurement) -> str:
    """Return one row as a sentence for the terminal."""
    what = f"{row.model.rpartition('/')[2]}, {row.targets}, {row.variant} K={row.K}, repetition {row.turn + 1}"
    if row.outcome != "ok":
        return f"{what}: {row.outcome} ({row.reason})"
    step, each = 1e3 * row.train_seconds / row.steps, row.answer_seconds / row.answers
    return f"{what}: {step:.2f} ms an adapter-step ({row.steps}), {each:.3f} s an answer, {row.peak_gb:.1f} GB"


# ---------------------------------------------------------------------------------------------- the table


def summary(rows: Sequence[Measurement], record: dict) -> pd.DataFrame:
    """Return a table with one line per model, targets, variant and K.

    Its columns are ``seconds_per_edit`` (the median of training plus answers, with ``low`` and ``high`` over
    repetitions); the medians ``train_s``, ``answer_s`` and ``ms_per_step`` (of an adapter-step); ``tokens_per_s``
    (trained, without padding); ``floor_ms``, the lower bound of an adapter-step; the shares of the measured time that
    lower bounds take: ``floor_share``, ``bytes_share`` (memory traffic alone), ``flops_share`` (arithmetic alone) and
    ``answer_share``; ``start_s`` (spent once per bank, in no other column); ``busy`` and ``launches`` of a steady step;
    ``peak_gb``; ``outcome``; and ``measured``, the number of repetitions. Missing values are NaN.
    """
    import pandas as pd

    sizes, device = record["sizes"], costs.device(record["device_key"]) if record["device_key"] != "gpu" else None
    steps = sizes["documents_per_edit"] * sizes["epochs_of_an_edit"]
    lines = []
    for key, several in pd.DataFrame(rows).groupby(_WAY, sort=False):
        good, bad = several[several["outcome"] == "ok"], several[several["outcome"] != "ok"]
        ms = 1e3 * good["train_seconds"] / good["steps"]
        asked = good["answer_seconds"] / good["answers"] * sizes["questions"]
        both = ms / 1e3 * steps + asked
        line = dict(zip(_WAY, key, strict=True)) | {
            "seconds_per_edit": both.median(),
            "low": both.min(),
            "high": both.max(),
            "train_s": ms.median() / 1e3 * steps,
            "answer_s": asked.median(),
            "ms_per_step": ms.median(),
            "tokens_per_s": (good["tokens"] / good["train_seconds"]).median(),
        }
        line |= _shares(key, record, device, ms.median(), asked.median())
        line |= {
            "start_s": good["start_seconds"].median(),
            "busy": good["busy"].median(),
            "launches": good["launches"].median(),
            "peak_gb": good["peak_gb"].max(),
            "outcome": "ok" if bad.empty else bad["outcome"].iloc[0],
            "measured": len(good),
        }
        lines.append(line)
    return pd.DataFrame(lines)


def _shares(key: tuple, record: dict, device: costs.Device | None, ms: float, answering: float) -> dict[str, float]:
    """Return the lower bound of an adapter-step and the shares of the lower bounds; NaN if the device is unknown."""
    names = ("floor_ms", "floor_share", "bytes_share", "flops_share", "answer_share")
    if device is None:
        return dict.fromkeys(names, math.nan)
    model, targets, variant, k = key
    sizes, shape = record["sizes"], budget.Shape(**record["shapes"][model])
    length = sizes["padding"] if variant == "authors" else sizes["tokens_per_document"]
    of = costs.Costs(shape, device, targets, sizes["rank"], record["dtype"])
    step = of.train_step([length] * k, k)
    ask = lengths.profiles()["squad"].ask
    asked = of.generation(k * sizes["questions"], ask, sizes["answer_tokens"], adapters=k)
    answers = sum(part.floor for part in asked) / k
    floor, moving, computing = (1e3 * part / k for part in (step.floor, step.moving, step.computing))
    return dict(zip(names, (floor, floor / ms, moving / ms, computing / ms, answers / answering), strict=True))


def best(table: pd.DataFrame, targets: str = "") -> dict | None:
    """Return the bank's line with the fewest seconds per self-edit for the first model and these targets, or None.

    Args:
        targets: default: any targets.
    """
    chosen = table[(table["model"] == table["model"].iloc[0]) & (table["variant"] == "bank")]
    chosen = chosen[chosen["targets"] == targets] if targets else chosen
    chosen = chosen.dropna(subset=["seconds_per_edit"])
    return None if chosen.empty else chosen.loc[chosen["seconds_per_edit"].idxmin()].to_dict()


def finish(folder: Path, stem: str) -> pd.DataFrame:
    """Write table and figure of the stored rows, record the efficiencies that `seal_lib.plan` uses; return the table.

    Raises:
        SealError: there are no rows.
    """
    from seal_lib.report import figures

    file = folder / f"{stem}_rows.csv"
    rows, record = read(file), paths.read_json(_record(file))
    if not rows:
        raise SealError(f"{paths.short(file)} holds no measurement; run make bench-gpu with more --minutes.")
    table = summary(rows, record)
    found = best(table, targets="qv") or best(table)
    if found is not None and not math.isnan(found["floor_share"]):
        record["efficiency"] = {"train": found["floor_share"], "answer": found["answer_share"]}
    record["outcomes"] = {o: sum(r.outcome == o for r in rows) for o in sorted({r.outcome for r in rows})}
    paths.write_json(_record(file), record)
    models = list(dict.fromkeys(table["model"]))
    sizes = record["sizes"]
    title = f"{record['device']}, {record['dtype']}, {record['date'][:10]}\nrandom weights, rank {sizes['rank']}, "
    title += f"{sizes['documents_per_edit']:.1f} documents × {sizes['tokens_per_document']:.0f} tokens a self-edit"
    figures.draw(cost_curve, table, stem, folder, title, size=(5.2 * len(models), 3.8), panels=(1, len(models)))
    return table


def summary_text(table: pd.DataFrame) -> str:
    """Return the table as text, with the best result for each target and the goal."""
    text = [table.to_string(index=False, float_format=lambda x: f"{x:.3g}")]
    for targets in dict.fromkeys(table["targets"]):
        found = best(table, targets=targets)
        if found is not None:
            part = f"train {found['train_s']:.2f}, answer {found['answer_s']:.2f}"
            name = found["model"].rpartition("/")[2]
            text.append(f"{name}, {targets}: {found['seconds_per_edit']:.2f} s a self-edit at K = {found['K']}, {part}")
    return "\n".join([*text, f"goal: at most {GOAL} s per Qwen2.5-7B self-edit on one H200, answers included"])


def cost_curve(table: pd.DataFrame, axes: Axes | np.ndarray) -> Axes | np.ndarray:
    """Draw seconds per self-edit against K, one panel per model, with logarithmic axes.

    The solid line is the bank, answers included (band: lowest to highest), the dashed line its training alone, the
    dotted line the device's lower bound of training; horizontal lines are the other ways. Blue and green are the two
    targets. A cross at the upper edge marks a bank size without a measurement (out of memory or refused).
    """
    panels = [axes] if not hasattr(axes, "flat") else list(axes.flat)
    paints = {"qv": "#0072B2", "all-linear": "#009E73"}
    for ax, model in zip(panels, dict.fromkeys(table["model"]), strict=True):
        own = table[table["model"] == model]
        ks, names = sorted(own.loc[own["variant"] == "bank", "K"].unique()), []
        for targets, paint in paints.items():
            bank = own[(own["variant"] == "bank") & (own["targets"] == targets)].sort_values("K")
            names += _bank(bank, ax, targets, paint)
            for variant, style in (("authors", (0, (6, 2))), ("sequential", (0, (1, 1)))):
                rows = own[(own["variant"] == variant) & (own["targets"] == targets)]
                for y in rows["seconds_per_edit"].dropna():
                    ax.axhline(y, color=paint, linewidth=0.9, linestyle=style, gid=f"value:{variant}:{targets}")
                    names.append((y, f"{_LABELS[variant]},\n{TARGET_LABELS[targets]}: {y:.3g} s", paint))
        ax.set(yscale="log", title=model.rpartition("/")[2])
        ax.set(xlabel="adapters trained side by side, K", ylabel="seconds per self-edit, answers included")
        ax.set_xscale("log", base=2)
        ax.set_xticks(ks, [str(k) for k in ks])
        names_at_right(ax, names, size=7)
    return axes


def _bank(rows: pd.DataFrame, ax: Axes, targets: str, paint: str) -> list[tuple[float, str, str]]:
    """Draw the bank's lines; return the names that `names_at_right` writes beside them."""
    good = rows.dropna(subset=["seconds_per_edit"])
    for row in rows[rows["seconds_per_edit"].isna()].itertuples():
        ax.text(row.K, 0.98, "×", color=paint, ha="center", va="top", transform=ax.get_xaxis_transform())
    if good.empty:
        return []
    ax.fill_between(good["K"], good["low"], good["high"], color=paint, alpha=0.2, linewidth=0)
    ax.plot(good["K"], good["seconds_per_edit"], color=paint, marker="o", markersize=4, gid=f"bank:{targets}")
    ax.plot(good["K"], good["train_s"], color=paint, linewidth=1, linestyle="--", gid=f"training:{targets}")
    floors = good["floor_ms"] / good["ms_per_step"] * good["train_s"]
    ax.plot(good["K"], floors, color=paint, linewidth=1, linestyle=":", gid=f"floor:{targets}")
    least = good.loc[good["seconds_per_edit"].idxmin()]
    words = f"bank, {TARGET_LABELS[targets]}:\n{least['seconds_per_edit']:.3g} s at K = {least['K']:.0f}"
    return [(least["seconds_per_edit"], words, paint)]
