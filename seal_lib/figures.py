"""Whole figures: one drawing function on its own axes, saved with its table; and the gallery of all of results.csv.

Knows which metrics and which size a drawing function wants, and for which experiments there is something to draw. Does
not know how a mark is drawn (`plots`, `arc.plots`). `draw` and `save` enter the style themselves.

    table = report.with_gaps(read_results(path), "knowledge/single_passage")
    figures.draw(plots.accuracy_by_arm, table, "single_passage", folder)     # .pdf, .png and .csv side by side
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import paths, plots, report
from seal_lib.arc import plots as arc
from seal_lib.arms import by_round, round_of
from seal_lib.plots import style
from seal_lib.results import arm_rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = {  # function (of plots or arc.plots) -> the metrics it draws, as a pattern of its options
    "accuracy_by_arm": "accuracy|blank_rate", "accuracy_by_round": "accuracy", "differences": "difference",
    "blank_rate_by_arm": "blank_rate", "coverage_by_round": "coverage", "style_by_round": "style_share:.*",
    "reward_honesty": "|".join(plots.REWARDS), "success_by_arm": "success_rate|rejected_rate",
    "success_by_round": "success_rate", "success_by_task": "success_rate:.*", "choices": "share:.*",
    "success_map": r"success:{down}=.*\|{across}=.*",
}  # fmt: skip


def draw(
    function: Callable[[pd.DataFrame, Axes], Axes], table: pd.DataFrame, name: str = "", folder: Path | None = None,
    title: str = "", size: tuple[float, float] | None = None, panels: tuple[int, int] = (1, 1), **options: str,
) -> Figure:  # fmt: skip
    """One styled figure from one function, saved when a folder is given; as the last value of a cell it shows itself.

    A table of results is narrowed to the metrics that the function draws, so that the CSV holds what is seen.
    `panels` (rows, columns) other than one gives the function an array of axes; `options` are its further arguments.
    """
    import matplotlib.pyplot as plt

    if pattern := METRICS.get(function.__name__):
        table = table[table["metric"].str.fullmatch(pattern.format(**options))]
    with style():
        figure, axes = plt.subplots(*panels, figsize=size or _size(function, table), layout="constrained")
        function(table, axes, **options)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        plt.close(figure)
        if folder is not None:
            save(figure, name or function.__name__, table, folder)
    return figure


def save(fig: Figure, name: str, table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write name.pdf, name.png and name.csv (the plotted table) side by side, each whole or not at all; closes `fig`.

    The files hold no time stamp and no version: the same figure gives the same bytes.
    """
    import matplotlib.pyplot as plt

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"pdf": dict.fromkeys(("CreationDate", "ModDate", "Producer", "Creator")), "png": {"Software": None}}
    written = [folder / f"{name}.{kind}" for kind in plain]
    with style():
        for path, (kind, metadata) in zip(written, plain.items(), strict=True):
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                fig.savefig(temporary, format=kind, metadata=metadata)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    plt.close(fig)
    return [*written, paths.write_text(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))]


def gallery(df: pd.DataFrame, folder: Path) -> list[str]:
    """Draw every figure for which `df` (results.csv) has data; the names written, `<experiment>_<kind>`.

    An experiment with several protocols or models gives one figure each, so that they never share an axis.
    """
    import pandas as pd

    names = []
    parent = df["experiment"].str.replace(r"/(seed_\w+|tasks|choices)$", "", regex=True)
    for (experiment, protocol, model), rows in df.groupby([parent, "protocol", "model"]):
        own = rows[rows["experiment"] == experiment]
        kinds = df.loc[parent == experiment, ["protocol", "model"]].drop_duplicates()
        slug = re.sub(r"\W+", "_", " ".join([experiment, *([protocol, model] if len(kinds) > 1 else [])])).strip("_")
        arms = {metric: set(own.loc[own["metric"] == metric, "arm"]) for metric in own["metric"].unique()}
        headline = report.shown(experiment).metric
        ran = arms.get(headline, ())
        rounds = [arm for arm in ran if arm != "own_untrained" and round_of(arm)]
        grids = headline == "success_rate"
        full = report.with_gaps(own, experiment)
        wanted: list[tuple[Callable, pd.DataFrame, bool]] = [
            (arc.success_by_arm if grids else plots.accuracy_by_arm, full, len(ran) >= 2),
            (arc.success_by_round if grids else plots.accuracy_by_round,
             pd.concat([full, rows.drop(own.index)], ignore_index=True), len(rounds) >= (1 if grids else 2)),
            (plots.differences, own, "difference" in arms),
            (plots.blank_rate_by_arm, own, len(arms.get("blank_rate", ())) >= 2),
            (plots.coverage_by_round, own, len(by_round(arm_rows(own, "coverage", needed=False))) >= 2),
            (plots.style_by_round, own, any(metric.startswith("style_share:") for metric in arms)),
            (plots.reward_honesty, own, set(plots.REWARDS) <= set(arms)),
        ]  # fmt: skip
        pictures = [(function, function.__name__, table, {}) for function, table, there in wanted if there]
        for function, kind, table, options in pictures + arc.pictures(rows, experiment):
            names.append(f"{slug}_{kind}")
            draw(function, table, names[-1], folder, title=report.TITLES.get(experiment, experiment), **options)
    return names


def _size(function: Callable, table: pd.DataFrame) -> tuple[float, float]:
    """Horizontal figures grow with their arms or tasks."""
    name = function.__name__
    if name == "differences" or name.endswith("_by_arm"):
        return 5.6, 1.15 + 0.31 * table["arm"].nunique()
    if name == "success_by_task":
        return 1.1 + 1.05 * table["arm"].nunique(), 1.1 + 0.2 * table["metric"].nunique()
    return 5.6, 0.9 + 0.55 * table["arm"].nunique() if function is plots.score_distribution else 3.4
