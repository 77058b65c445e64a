"""Publish the results of a scale: figures/<scale>, RESULTS.md, REPRODUCTION.md and the README's tables.

Knows which runs may be published. Tables come from `tables` and `paper`, pictures from the gallery.

    python -m seal_lib.report.publish collect --scale seedling     # results.csv and manifest.json of the gallery
    python -m seal_lib.report.publish page --scale seedling        # paper.html there: the paper's tables and figures
    python -m seal_lib.report.publish publish --scale seedling     # the gallery to figures/, and the texts
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import paths
from seal_lib.errors import DataError, command_line
from seal_lib.report import frames, paper
from seal_lib.report.arms import NOT_RUN, arm_label
from seal_lib.report.results import collect, read_results
from seal_lib.report.tables import LEVELS, OTHER_TITLES, TITLES, shown, table, title, to_markdown
from seal_lib.runs import manifest, params

if TYPE_CHECKING:
    import pandas as pd

README_SHOWS = "seedling"  # the scale and set whose tables are in the README
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def results_block(df: pd.DataFrame, few: bool = False) -> str:
    """Return one table for each headline experiment, and the names of those that did not run.

    ``few``: only the rows of `Shown.few` and the columns that a first look needs.
    """
    parts = []
    for experiment, name in TITLES.items():
        about, title = shown(experiment), f"**{name}** (`{experiment}`)"
        rows = df[df["experiment"] == experiment]
        if few and not about.few:
            continue
        if not (rows["metric"] == about.metric).any():
            parts.append(f"{title}: {NOT_RUN}.")
            continue
        if few:
            title = title.replace(name, name.partition(" (")[0])  # RESULTS.md says more
            rows = rows[rows["arm"].isin(about.few)]
        which = sorted({f"{row['model']}, protocol {row['protocol']}" for row in rows.to_dict("records")})
        frame = table(df, experiment)
        if few:
            judged = next(c for c in frame if c.startswith("separable"))
            judged = next((c for c in frame if c == "separable from untrained?"), judged)
            kept = [c for c in frame if c in ("arm", "n", "paper, %", judged) or c.startswith(about.metric[:2])]
            frame = frame.loc[frame["arm"].isin([arm_label(arm) for arm in about.few]), kept]
            frame["paper, %"] = frame["paper, %"].str.partition(" (")[0]  # the notes are in RESULTS.md
            frame.attrs["notes"] = []
        frame = frame.drop(columns=[name for name in frame if (frame[name].isin(["", "–"])).all()])
        part = [f"{title}: {'; '.join(which)}", to_markdown(frame), "" if few else about.note]
        parts.append("\n\n".join(filter(None, part)))
    return "\n\n".join(parts)


def others_block(df: pd.DataFrame) -> str:
    """Return a table for each other experiment that ran."""
    parts = []
    ran = df["experiment"].unique()
    for experiment in [name for pattern in OTHER_TITLES for name in ran if re.fullmatch(pattern, name)]:
        rows = df[df["experiment"] == experiment]
        wanted = [m for m in dict.fromkeys(rows["metric"]) if re.fullmatch(LEVELS.get(experiment, "(?!)"), m)]
        if (rows["metric"] == shown(experiment).metric).any():
            frame = table(df, experiment)
            frame = frame.drop(columns=[name for name in frame if frame[name].isin(["", "–"]).all()])
        elif wanted:
            frame = frames.levels(rows, wanted).reset_index()
        else:
            continue
        parts.append(f"**{title(experiment)}** (`{experiment}`)\n\n{to_markdown(frame)}")
    return "\n\n".join(parts)


def readable(notebook: dict) -> dict:
    """Return an executed notebook without papermill's notes about this machine and without progress lines."""
    for part in (notebook, *notebook["cells"]):
        for name in ("papermill", "execution"):
            part["metadata"].pop(name, None)
    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("output_type") != "stream"]
    return notebook


def publish(scale: str, readme: Path | None = None, incomplete: bool = False) -> list[Path]:
    """Publish the gallery of a scale as figures/<scale> and in RESULTS.md, REPRODUCTION.md and, for `README_SHOWS`,
    README.md; return these texts.

    Nothing else writes there (in README.md between its markers), so that a single finished notebook or an experiment of
    one's own changes nothing published.

    Args:
        incomplete: publish even if notebooks of the scale have not run; the tables then say so.

    Raises:
        DataError: nothing was collected; a run is missing, newer than the figures, or not made with the scale's own
            parameters; or the README lacks the markers.
    """
    readme = readme or paths.ROOT / "README.md"
    source, folder = paths.gallery(scale), paths.published(scale)
    _collected(scale)
    drawn = {run["run"] for run in paths.read_json(source / "manifest.json")["runs"]}
    collect(scale)  # again: while the figures were drawn, their own notebook and later ones had not ended
    record = paths.read_json(source / "manifest.json")
    late = [run["run"] for run in record["runs"] if run["rows"] and run["run"] not in drawn]
    if late:
        raise DataError(f"{late[0]} is not in the figures yet; run `make figures SCALE={scale}` first.")
    here = [run for run in record["runs"] if not run.get("published")]  # SEAL_PUBLISHED=1: the others stay
    for run in here:
        own = manifest.reference(run["notebook"], scale)
        if own is None or own.name != run["key"]:
            raise DataError(
                f"{run['run']} has not the parameters of scale {scale}; run `make reproduce ONLY={run['notebook']} "
                f"SCALE={scale}` and `make figures SCALE={scale}` first."
            )
    absent = [name for name in record[NOT_RUN.replace(" ", "_")] if params.at(name, scale)]
    if absent and not incomplete:
        raise DataError(
            f"{', '.join(absent)} has not run at scale {scale}; run it, or publish with --incomplete, which says so."
        )
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise DataError(f"{readme.name}: the lines {BEGIN} and {END} must each occur once, in this order.")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    folder.mkdir(parents=True, exist_ok=True)
    stay = {run["notebook"] for run in record["runs"]} - {run["notebook"] for run in here}
    for old in folder.rglob("*"):
        if old.is_file() and old.stem not in stay and not old.name.startswith("bench_"):  # measured by `make bench`
            old.unlink()
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name)
    for run in here:
        executed = paths.runs() / run["run"] / "notebook.ipynb"
        if executed.exists():  # a run by hand has none
            paths.write_json(folder / "notebooks" / f"{run['notebook']}.ipynb", readable(paths.read_json(executed)))
    found = sorted(paths.figures().glob("*/results.csv"))
    every = {path.parent.name: read_results(path) for path in found}
    wrote = [
        paths.write_text(readme.with_name("RESULTS.md"), _whole(every)),
        paths.write_text(readme.with_name("REPRODUCTION.md"), paper.reproduction(every)),
    ]
    if folder.name == README_SHOWS:
        few = results_block(every[README_SHOWS], few=True)
        wrote.append(paths.write_text(readme, f"{before}\n\n{few}\n\n{after}"))
    return wrote


def _whole(published: Mapping[str, pd.DataFrame]) -> str:
    """Return RESULTS.md: the tables of every published scale and set, and the minutes of their notebooks."""
    import pandas as pd

    parts = [
        "# Results\n\nWritten by `make publish` from `figures/*/results.csv`, which say more; `docs/reading.md` says "
        "how to read them. `seedling` is what `make reproduce` gives, `seedling-full` what it gives with `SET=full`."
    ]
    for name, df in published.items():
        runs = paths.read_json(paths.figures() / name / "manifest.json")["runs"]
        ran = [(f"`{r['notebook']}`", f"{r['minutes'] or math.nan:.1f}", str(r["end"])[:10]) for r in runs]
        minutes = to_markdown(pd.DataFrame(ran, columns=["notebook", "minutes", "on"]))
        parts += [f"# {name}", results_block(df), others_block(df)]
        parts += ["## Minutes", "Other work on the same cores is in them.", minutes]
    return "\n\n".join(parts) + "\n"


def write_page(scale: str) -> Path:
    """Write the paper's tables as files and as one page, paper.html of the scale's gallery, from collected results."""
    folder = paths.gallery(scale)
    df = read_results(_collected(scale))
    paper.write(df, folder, scale)
    return paths.write_text(folder / "paper.html", paper.page(df, folder, scale))


def _collected(scale: str) -> Path:
    path = paths.gallery(scale) / "results.csv"
    if not path.exists():
        raise DataError(f"{paths.short(path)} is missing; run `make figures SCALE={scale}`.")
    return path


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m seal_lib.report.publish", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["collect", "page", "publish"])
    parser.add_argument("--scale", default="seedling")
    parser.add_argument("--incomplete", action="store_true", help="publish although notebooks have not run")
    chosen = parser.parse_args(arguments)
    if chosen.what == "collect":
        rows = collect(chosen.scale)
        print(f"{len(rows)} results in {paths.short(paths.gallery(chosen.scale) / 'results.csv')}")
    else:
        page = chosen.what == "page"
        wrote = [write_page(chosen.scale)] if page else publish(chosen.scale, incomplete=chosen.incomplete)
        print("wrote", ", ".join(paths.short(path) for path in wrote))
    return 0


if __name__ == "__main__":
    sys.exit(main())
