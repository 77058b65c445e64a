"""Whole figures: a drawing function on its own axes, saved with its table; and the gallery of all of results.csv.

Knows for which experiments there is something to draw, and not how a mark is drawn (`plots`, and the domains' own
functions). `draw` and `save` apply the style themselves.

    table = tables.with_gaps(read_results(path), "knowledge/single_passage")
    figures.draw(plots.accuracy_by_arm, table, "single_passage", folder)     # .pdf, .png and .csv side by side
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import paths
from seal_lib.report import tables
from seal_lib.report.marks import GREY
from seal_lib.report.plots import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(
    function: Callable[[pd.DataFrame, Axes], Axes],
    table: pd.DataFrame,
    name: str = "",
    folder: Path | None = None,
    title: str = "",
    size: tuple[float, float] | None = None,
    panels: tuple[int, int] = (1, 1),
    **options: str,
) -> Figure:
    """Draw one styled figure with one function, and save it if a folder is given.

    A table of results is narrowed to the metrics that the function draws, so that the CSV holds what is seen. For
    `panels` (rows, columns) other than (1, 1) the function gets an array of axes; `options` are its further arguments.
    The figure is closed, so that in a notebook it shows only as the last value of a cell.
    """
    import matplotlib.pyplot as plt

    table = narrowed(table, getattr(function, "metrics", "").format(**options))
    with style():
        figure, axes = plt.subplots(*panels, figsize=size or _size(function, table), layout="constrained")
        function(table, axes, **options)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        say(figure, table)
        plt.close(figure)
        if folder is not None:
            save(figure, name or function.__name__, table, folder)
    return figure


def panels(*drawn: tuple, size: tuple[float, float] | None = None) -> Figure:
    """Draw (function, table) or (function, table, dictionary of options) side by side with one caption."""
    import matplotlib.pyplot as plt
    import pandas as pd

    parts = [(function, table, *(options or [{}])) for function, table, *options in drawn]
    shown = [narrowed(table, getattr(f, "metrics", "").format(**options)) for f, table, options in parts]
    sizes = [_size(function, table) for (function, *_), table in zip(parts, shown, strict=True)]
    size = size or (min(12.0, sum(wide for wide, _ in sizes)), max(high for _, high in sizes))
    with style():
        figure, axes = plt.subplots(1, len(parts), figsize=size, layout="constrained", squeeze=False)
        for ax, (function, _, options), table in zip(axes[0], parts, shown, strict=True):
            function(table, ax, **options)
        say(figure, pd.concat(shown))
        plt.close(figure)
    return figure


def narrowed(table: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Return the rows whose metric matches the pattern, or all rows if there is no pattern."""
    return table[table["metric"].str.fullmatch(pattern)] if pattern else table


def caption(table: pd.DataFrame, intervals: bool = True) -> str:
    """Return the caption of these rows (intervals, n, loops, model, protocol, grader), or "" for other tables.

    If the figure does not draw the ``intervals``, the caption says that they are in the CSV file.
    """
    if not {"value", "low", "n", "unit", "model", "protocol", "grader"} <= set(table.columns):
        return ""
    rows = table[table["value"].notna()]
    told = "means with 95 % intervals" if intervals else "means (their 95 % intervals are in the CSV file)"
    said = [told] if rows["low"].notna().any() else []
    for unit, some in rows.groupby("unit", sort=False):
        counts = sorted(some["n"].dropna().astype(int).unique())
        if unit and counts:
            between = f"{counts[0]}–{counts[-1]}" if len(counts) > 1 else counts[0]
            said.append(f"n = {between} {unit}{'s' if counts[-1] > 1 else ''}")
    loops = int(rows["loops"].max()) if "loops" in rows and rows["loops"].notna().any() else 1
    said += [f"up to {loops} loops"] if loops > 1 else []
    for name in ("model", "protocol", "grader"):
        values = [str(value) for value in rows[name].dropna().unique() if value]
        few = " / ".join(values) if len(values) < 4 else ""
        said += [few if few.endswith(f"{name}s") else f"{name} {few}"] if few else []  # "3 models" needs no name
    return "; ".join(said)


def say(figure: Figure, table: pd.DataFrame, intervals: bool = True) -> None:
    """Write the caption of these rows below a figure with constrained layout."""
    text = textwrap.fill(caption(table, intervals), max(40, int(18 * figure.get_figwidth())), break_on_hyphens=False)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=6.8, color=GREY)


def save(fig: Figure, name: str, table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write name.pdf, name.png and name.csv (the plotted table), each as a whole or not at all, and close `fig`.

    The files hold no time stamp and no version, so the same figure gives the same bytes.
    """
    import matplotlib.pyplot as plt

    folder = Path(folder)
    plain = {"pdf": dict.fromkeys(("CreationDate", "ModDate", "Producer", "Creator")), "png": {"Software": None}}
    written = [folder / f"{name}.{kind}" for kind in plain]
    with style():
        for path, (kind, metadata) in zip(written, plain.items(), strict=True):
            with paths.whole(path) as temporary:
                fig.savefig(temporary, format=kind, metadata=metadata)
    plt.close(fig)
    return [*written, paths.write_text(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))]


def gallery(df: pd.DataFrame, folder: Path, pictures: Sequence[Callable]) -> list[str]:
    """Draw every figure for which ``df`` (results.csv) has data, and return their names, ``<experiment>_<kind>``.

    Earlier pictures in the folder are deleted first, since their rows may no longer be among the results. An experiment
    with several protocols or models gives one figure for each, so that they never share an axis. ``pictures``: for each
    domain a function that says what to draw of an experiment, like `seal_lib.report.plots.pictures`.
    """
    for picture in folder.glob("*.png"):
        for kind in (".png", ".pdf", ".csv"):
            picture.with_suffix(kind).unlink(missing_ok=True)
    names = []
    parent = df["experiment"].str.replace(r"/(seed_\w+|tasks|choices|texts_\d+)$", "", regex=True)
    for (experiment, protocol, model), rows in df.groupby([parent, "protocol", "model"]):
        own = rows[rows["experiment"] == experiment]
        kinds = df.loc[parent == experiment, ["protocol", "model"]].drop_duplicates()
        slug = re.sub(r"\W+", "_", " ".join([experiment, *([protocol, model] if len(kinds) > 1 else [])])).strip("_")
        # arms of the paper that a shipped model lacks are no gaps: they were never meant to run on it
        full = own if str(model).startswith("seedling") else tables.with_gaps(own, experiment)
        for function, kind, table, options in [one for find in pictures for one in find(own, full, rows)]:
            names.append(f"{slug}_{kind}")
            title = ": ".join(filter(None, [tables.title(experiment), getattr(function, "title", "")]))
            draw(function, table, names[-1], folder, title=title, **options)
    return names


def _size(function: Callable, table: pd.DataFrame) -> tuple[float, float]:
    of = getattr(function, "size", None)
    return of(table) if of else (5.6, 3.4)
