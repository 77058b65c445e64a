"""Collect finished runs into one tidy table, results.csv, with the paper's numbers in columns beside ours.

Knows the run folders (`runs/<notebook>/<scale>/<hash>/`) and the columns and types of the table. A difference is a row
with metric `difference`, whose arm is `arms.difference_arm`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.report.arms import NOT_RUN, arm_rank
from seal_lib.report.paper_values import paper_index, paper_source
from seal_lib.runs import manifest, params
from seal_lib.runs.lifecycle import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

KEYS = ["experiment", "arm", "metric", "protocol", "model"]
TABLE_COLUMNS = [*COLUMNS[:-1], "paper_value", "paper_source", "run"]
NUMBERS = ["value", "low", "high", "p", "paper_value"]
COUNT_COLUMNS = ["n", "loops", "dropped"]


def collect(scale: str, write: bool = True) -> pd.DataFrame:
    """Join results.csv of the finished run of each notebook (`manifest.newest`) with the paper's values.

    Writes results.csv and manifest.json (which runs, from which code and parameters) into `paths.gallery`. With
    ``SEAL_PUBLISHED=1``, a notebook that has not run here keeps what is published of it; the manifest says which.

    Raises:
        DataError: two runs disagree about one (experiment, arm, metric, protocol, model), two runs give p-values for
            one experiment, or a file lacks a column.
        RunError: a results.csv is not what its run wrote.
    """
    import pandas as pd

    found = {path.stem for path in paths.notebooks().glob("*.ipynb")}
    found |= {path.parent.name for path in paths.runs().glob(f"*/{scale}")}
    found -= {name for name in params.names() if params.sets(name) and not params.at(name, scale)}  # not in this set
    before = _published(scale) if os.environ.get("SEAL_PUBLISHED") == "1" else {}
    frames, used, missing = [], [], []
    for notebook in sorted(found):
        folder = manifest.newest(notebook, scale)
        if folder is not None:
            entry = _provenance(notebook, scale, folder)
            frame = read_results(manifest.written(folder, "results.csv"), COLUMNS).assign(run=entry["run"])
        elif notebook in before:
            entry, frame = before[notebook]
        else:
            missing.append(notebook)
            continue
        if len(frame):
            frames.append(frame)
        used.append(entry | {"rows": len(frame)})
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    _one_family(table)
    table = with_paper_values(_without_duplicates(table))
    if write:
        folder = paths.gallery(scale)
        paths.write_text(folder / "results.csv", table.to_csv(index=False, lineterminator="\n"))
        paths.write_json(folder / "manifest.json", {"scale": scale, "runs": used, NOT_RUN.replace(" ", "_"): missing})
    return table


def _published(scale: str) -> dict[str, tuple[dict, pd.DataFrame]]:
    """Return notebook → its entry in the published manifest of a scale, and its published rows."""
    folder = paths.published(scale)
    if not (folder / "manifest.json").exists():
        return {}
    rows = read_results(folder / "results.csv")[COLUMNS]
    runs = paths.read_json(folder / "manifest.json")["runs"]
    return {run["notebook"]: (run | {"published": True}, rows[rows["run"] == run["run"]]) for run in runs}


def read_results(path: Path, columns: list[str] = TABLE_COLUMNS) -> pd.DataFrame:
    """Read a results.csv with its types: text stays text (a run hash is not a number), an empty number is NaN.

    DataError if a column is missing, or a column of numbers holds text.
    """
    import pandas as pd

    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if absent := [name for name in columns if name not in frame and name != "run"]:
        raise DataError(f"{paths.short(path)}: column {absent[0]!r} is missing; run the notebook again.")
    frame = frame.reindex(columns=columns, fill_value="")
    for name in [*NUMBERS, *COUNT_COLUMNS]:
        if name in frame:
            try:
                frame[name] = pd.to_numeric(frame[name].replace("", None))
            except (ValueError, TypeError) as error:
                raise DataError(f"{paths.short(path)}: column {name!r} holds text ({error}); write a number.") from None
            frame[name] = frame[name].astype("Int64" if name in COUNT_COLUMNS else float)
    return frame


def read_run(folder: Path) -> pd.DataFrame:
    """Return the results of one finished run with the paper's values beside them, as `collect` joins them."""
    return with_paper_values(read_results(manifest.written(folder, "results.csv"), COLUMNS).assign(run=folder.name))


def arm_rows(table: pd.DataFrame, metric: str, needed: bool = True) -> list[dict]:
    """Return the rows of one metric in the order of the arms, for figures.

    The paper's value is left out if the model is a seedling: the order of its arms was built in when it was grown, and
    a mark beside it would invite the comparison. Tables keep the paper's column. Raises DataError if an arm occurs
    twice, or no row has the metric although it is ``needed``.
    """
    wants(table, ["arm", "metric", "value", "low", "high"])
    rows = table[table["metric"] == metric]
    if needed and len(rows) == 0:
        raise DataError(f"The table has no row with metric {metric!r}; it has {', '.join(table['metric'].unique())}.")
    if rows["arm"].duplicated().any():
        arm = rows.loc[rows["arm"].duplicated(), "arm"].iloc[0]
        raise DataError(f"The table has {arm!r} twice for {metric}; narrow it to one experiment, protocol and model.")
    records = sorted(rows.to_dict("records"), key=lambda row: arm_rank(row["arm"]))
    made = "model" in table and table["model"].astype(str).str.startswith("seedling").any()
    return [{"paper_value": math.nan} | row | ({"paper_value": math.nan} if made else {}) for row in records]


def wants(table: pd.DataFrame, columns: list[str]) -> None:
    """Raise DataError if a table lacks a column, and say which columns it has."""
    if absent := [name for name in columns if name not in table]:
        raise DataError(f"The table lacks the column {absent[0]!r}; it has {', '.join(map(str, table.columns))}.")


def with_paper_values(frame: pd.DataFrame) -> pd.DataFrame:
    """Add paper_value and paper_source, fix the column order, and round to six decimals."""
    index = paper_index()
    entries = [index.get(key) for key in frame[["experiment", "arm", "metric"]].itertuples(index=False, name=None)]
    frame = frame.assign(
        paper_value=[float(entry["value"]) if entry else math.nan for entry in entries],
        paper_source=[paper_source(entry) if entry else "" for entry in entries],
    )[TABLE_COLUMNS]
    types = dict.fromkeys(NUMBERS, float) | dict.fromkeys(COUNT_COLUMNS, "Int64")
    return frame.astype(types).round(dict.fromkeys(NUMBERS, 6))


def _one_family(frame: pd.DataFrame) -> None:
    """Raise DataError if two runs give p-values for one experiment: Holm's adjustment needs all its differences."""
    for experiment, rows in frame[frame["p"].notna()].groupby("experiment"):
        if rows["run"].nunique() > 1:
            raise DataError(
                f"{experiment} has p-values of {' and '.join(rows['run'].unique())}, each adjusted by itself; leave "
                "its differences to one notebook, or run again the one that is out of date."
            )


def _without_duplicates(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep rows that two runs agree on only once; raise DataError if they disagree."""
    for key, rows in frame[frame.duplicated(KEYS, keep=False)].groupby(KEYS, sort=False):
        if len(rows[["value", "low", "high", "n"]].drop_duplicates()) > 1 or rows["run"].nunique() < len(rows):
            runs = " and ".join(dict.fromkeys(rows["run"]))
            raise DataError(
                f"{' / '.join(str(part) for part in key if part)} is there {len(rows)} times (in {runs}); "
                "give the experiments different names, or remove the run folder that is out of date."
            )
    return frame.drop_duplicates(KEYS, ignore_index=True)


def _provenance(notebook: str, scale: str, folder: Path) -> dict:
    """Return the manifest's entry for one run: code, parameters, times and minutes; null where run.json lacks it."""
    record = manifest.read(folder)
    kept = {name: record.get(name) for name in ("key", "git", "packages", "start", "end")}
    kept["code"] = manifest.digest(*[part for pair in record["code"].items() for part in pair])[:12]
    phases = sum((record.get("seconds") or {}).values())  # of all sessions; wall_seconds is the last session's
    seconds = record.get("wall_seconds")
    minutes = None if seconds is None else round(max(seconds, phases) / 60, 2)
    return {"notebook": notebook, "run": f"{notebook}/{scale}/{folder.name}"} | kept | {"minutes": minutes}
