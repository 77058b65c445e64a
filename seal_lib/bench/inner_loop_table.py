"""The table of the CPU benchmark, its ratios and its figure; `seal_lib.bench.inner_loop` makes the measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seal_lib.report.marks import darker

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

BENCH_COLUMNS = (
    "lengths",
    "tokens",
    "steps",
    "model",
    "rank",
    "variant",
    "K",
    "ms_per_adapter_step",
    "low",
    "high",
    "peak_mb",
    "adapters",
)
LABELS = {
    "authors": "authors' code: padded to 2 048",
    "trainer_dynamic": "HF Trainer, nothing padded",
    "peft_loop": "plain PEFT loop",
    "bank": "adapter bank",
}
LENGTHS = {"seal": "lengths of SEAL's self-edits", "seedling": "the made world's notes"}


def ratios(table: pd.DataFrame) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Return the cost of each way relative to the bank at its best K, by (lengths, variant).

    Each value is (ratio of the medians, smallest, largest ratio that the spreads over repetitions allow).
    """
    found = {}
    for lengths, rows in table.groupby("lengths", sort=False):
        bank = rows[rows["variant"] == "bank"]
        best = bank.loc[bank["ms_per_adapter_step"].idxmin()]
        for row in rows[rows["variant"] != "bank"].itertuples():
            middle = row.ms_per_adapter_step / best["ms_per_adapter_step"]
            found[lengths, row.variant] = middle, row.low / best["high"], row.high / best["low"]
    return found


def ratios_text(table: pd.DataFrame) -> str:
    """Return the ratios with their settings as text, one per line, in the order of the table."""
    lines = []
    for (lengths, variant), (middle, low, high) in ratios(table).items():
        row = table[table["lengths"] == lengths].iloc[0]
        about = f"{row['model']}, rank {row['rank']}, {LENGTHS[lengths]}, {row['tokens']:.0f} tokens a document"
        lines.append(f"{variant}/bank: {middle:.1f} [{low:.1f}, {high:.1f}] ({about})")
    return "\n".join(lines)


def cost_by_slots(table: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Draw milliseconds per adapter-step against K, one panel per length setting, with logarithmic axes.

    The three sequential ways are horizontal lines, labelled with their ratio to the bank's best.
    """
    panels = list(axes.flat)
    for ax, (_, rows) in zip(panels, table.groupby("lengths", sort=False), strict=True):
        _panel(rows, ratios(rows), ax)
    limits = [limit for ax in panels for limit in ax.get_ylim()]
    for ax in panels:
        ax.set_ylim(min(limits), max(limits))
    panels[0].set_ylabel("CPU ms per adapter-step, one thread\n(band: least to most)")
    return axes


def _panel(table: pd.DataFrame, times: dict, ax: Axes) -> None:
    bank, slots = table[table["variant"] == "bank"], sorted(table["K"].unique())
    colours = {"authors": "#D55E00", "trainer_dynamic": "#E69F00", "peft_loop": "#56B4E9", "bank": "#0072B2"}
    for row in table[table["variant"] != "bank"].itertuples():
        paint = colours[row.variant]
        ax.axhline(row.ms_per_adapter_step, color=paint)
        ax.axhspan(row.low, row.high, color=paint, alpha=0.2, linewidth=0)
        share = times[row.lengths, row.variant][0]
        label = f"{LABELS[row.variant]}, {_digits(row.ms_per_adapter_step)} ms, {_digits(share, 2)} × the bank"
        ax.text(
            slots[-1],
            row.ms_per_adapter_step * 1.09,
            label,
            color=darker(paint),
            ha="right",
            va="bottom",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.3},
        )
    best = bank.loc[bank["ms_per_adapter_step"].idxmin()]
    ax.fill_between(bank["K"], bank["low"], bank["high"], color=colours["bank"], alpha=0.2, linewidth=0)
    ax.plot(bank["K"], bank["ms_per_adapter_step"], color=colours["bank"], marker="o", markersize=4)
    label = f"{LABELS['bank']}, {_digits(best['ms_per_adapter_step'])} ms at K = {best['K']:.0f}"
    ax.text(slots[-1], best["low"] * 0.86, label, color=colours["bank"], ha="right", va="top", fontsize=8)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(slots, [str(k) for k in slots])
    ax.set_ylim(bottom=best["low"] * 0.5, top=table["high"].max() * 2)
    ax.set_xlabel("adapters trained side by side, K")
    about = table.iloc[0]
    ax.set_title(f"{LENGTHS[about['lengths']]}: {about['tokens']:.0f} tokens a document", fontsize=9)


def _digits(value: float, most: int = 3) -> str:
    """Format a number to ``most`` significant digits, or to all digits of its integer part from 100 on."""
    return f"{value:.{most}g}" if value < 100 else f"{value:,.0f}".replace(",", " ")
