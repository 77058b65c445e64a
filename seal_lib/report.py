"""Collects finished runs into one tidy table and puts our numbers beside the paper's.

Knows the run folders (`runs/<notebook>/<scale>/<hash>/`), `paper_values.yaml`, and how a table looks in Markdown and
HTML; also the names, order and labels of arms, which figures and tables share. Does not know how a number was made and
draws nothing. What did not run is shown as a gap ("not run"), never as a zero.

A difference is a row with metric `difference` whose arm is `difference_arm(a, b)`, that is "a - b".

    python -m seal_lib.report collect --scale seedling     # figures/seedling/results.csv and manifest.json
    python -m seal_lib.report readme --scale seedling      # rewrites the block between the markers in README.md
"""

from __future__ import annotations

import argparse
import html
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from seal_lib import paths, stats
from seal_lib.errors import DataError, SealError

if TYPE_CHECKING:
    import pandas as pd

KEYS = ["experiment", "arm", "metric", "protocol", "model"]
OWN_COLUMNS = ["experiment", "arm", "metric", "value", "low", "high", "n", "unit", "protocol", "model", "run"]
COLUMNS = [*OWN_COLUMNS[:-1], "paper_value", "paper_source", "run"]
NUMBERS = ["value", "low", "high", "paper_value"]
NOT_RUN = "not run"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

TITLES = {
    "knowledge/single_passage": "One passage at a time",
    "knowledge/restem": "Rounds of ReST-EM",
    "continual/mitigations": "Eight self-edits in a row",
    "arc/few_shot": "Grid puzzles from a few examples",
}


@dataclass(frozen=True)
class Shown:
    """What a table shows of an experiment: its headline metric, the share of failures beside it (metric, column), and
    the arms that the others are compared with (arm -> word in the column's name)."""

    metric: str = "accuracy"
    beside: tuple[str, str] = ("blank_rate", "blank, %")
    references: Mapping[str, str] = field(default_factory=lambda: {"frozen": "frozen", "own_untrained": "untrained"})
    also: Mapping[str, str] = field(default_factory=dict)  # further metrics -> their columns


SHOWN = {  # experiments whose headline is not accuracy
    "arc/few_shot": Shown(
        "success_rate", ("rejected_rate", "rejected, %"), {"own_untrained": "untrained", "random_config_sft": "random"}
    ),
    "continual/mitigations": Shown(
        "AA_8",
        ("blank_rate", "blank, %"),
        {"sequential": "sequential", "joint": "joint"},
        {"BWT": "BWT, %", "recovery_joint": "of joint's gain, %", "prior_kept": "prior knowledge kept, %"},
    ),
}
ARMS = {  # arm -> (rank, label); rounds of a family are added by `arm_label`
    "icl": (0, "in context only"),
    "frozen": (1, "frozen model"),
    "passage_only": (2, "passage only"),
    "notes_remark": (10, "notes: remarks only"),
    "notes_verbatim": (11, "notes: verbatim copy"),
    "notes_questions": (12, "notes: questions"),
    "notes_half": (13, "notes: half the facts"),
    "own_untrained": (30, "untrained self-edits"),
    "sequential": (31, "sequential edits"),
    "random_edit_sft": (41, "random self-edit kept"),
    "random_config_sft": (41, "random self-edits kept"),
    "external": (80, "stronger writer's notes"),
    "gold_notes": (85, "gold notes"),
    "joint": (86, "joint retraining"),
    "oracle": (90, "oracle"),
    "passage_in_context": (95, "passage in view"),
}
ARMS |= {  # of the forgetting study
    "rag": (94, "retrieval (BM25)"),
    "sequential_authors": (30.5, "sequential, authors' way"),
    "low_lr": (32.5, "low learning rate"),
    "few_epochs": (32.75, "few epochs"),
    "delta_scaling": (33, "ΔW / √k"),
    "freeze_lower": (33.25, "lower layers frozen"),
    "l2": (33.5, "L2 to base"),
    "ewc": (33.75, "EWC"),
    "o_lora": (34, "O-LoRA"),
    "gated_merge": (34.25, "gated merge"),
    "kl": (34.5, "KL on own texts"),
    "generative_replay": (34.75, "generative replay"),
    "replay": (35, "replay"),
    "kl_replay": (35.25, "replay + KL"),
    "null_space_calibration": (35.5, "null space of base texts"),
    "null_space": (35.75, "null space + past edits"),
    "inflora": (36, "InfLoRA"),
    "null_space_replay": (36.25, "null space + replay"),
    "merge_sum": (36.5, "sum of edits"),
    "merge_mean": (36.75, "mean of edits"),
    "ties": (37, "TIES"),
    "isolation": (84, "isolation + BM25"),
    "isolation_oracle": (84.5, "isolation, oracle"),
}
FAMILIES = {"seal": (60, "SEAL"), "random": (40, "random choice"), "seal_proxy": (55, "SEAL, proxy reward")}
_ROUND = re.compile(r"^(?:(?P<family>\w+?)_)?round_(?P<round>\d+)$")


def shown(experiment: str) -> Shown:
    """What a table shows of an experiment, or of one seed of it; accuracy and blank answers unless :data:`SHOWN` says
    otherwise."""
    return SHOWN.get(re.sub(r"/seed_\w+$", "", experiment), Shown())


def round_of(arm: str) -> tuple[str, int] | None:
    """(family, round) of an arm: seal_round_2 -> ("seal", 2), round_1 -> ("seal", 1), own_untrained -> ("seal", 0)."""
    if arm == "own_untrained":
        return "seal", 0
    match = _ROUND.match(arm)
    return (match["family"] or "seal", int(match["round"])) if match else None


def arm_label(arm: str) -> str:
    """What a person reads for an arm; "a - b" becomes "a − b" in labels."""
    if " - " in arm:
        return " − ".join(arm_label(part) for part in arm.split(" - ", 1))
    if arm in ARMS:
        return ARMS[arm][1]
    if found := _ROUND.match(arm):
        family = found["family"]
        name = FAMILIES[family][1] if family in FAMILIES else family.replace("_", " ") if family else ""
        return f"{name}, round {found['round']}".removeprefix(", ")
    return FAMILIES[arm][1] if arm in FAMILIES else arm.replace("_", " ")


def arm_rank(arm: str) -> tuple[float, str]:
    """Sort key: baselines first, then controls, SEAL by round, stronger references last."""
    arm = arm.split(" - ", 1)[0]
    if arm in ARMS:
        return ARMS[arm][0], arm
    if found := round_of(arm):
        return FAMILIES.get(found[0], (50, ""))[0] + found[1] / 100, arm
    return FAMILIES.get(arm, (50, ""))[0], arm


def difference_arm(a: str, b: str) -> str:
    """Name of the arm of a paired difference a − b."""
    return f"{a} - {b}"


def arm_rows(table: pd.DataFrame, metric: str, needed: bool = True) -> list[dict]:
    """Rows of one metric in the order of the arms; an arm that is there twice is an error."""
    wants(table, ["arm", "metric", "value", "low", "high"])
    rows = table[table["metric"] == metric]
    if needed and len(rows) == 0:
        raise DataError(f"The table has no row with metric {metric!r}; it has {', '.join(table['metric'].unique())}.")
    if rows["arm"].duplicated().any():
        arm = rows.loc[rows["arm"].duplicated(), "arm"].iloc[0]
        raise DataError(f"The table has {arm!r} twice for {metric}; narrow it to one experiment, protocol and model.")
    records = sorted(rows.to_dict("records"), key=lambda row: arm_rank(row["arm"]))
    return [{"paper_value": math.nan, "n": 0, "unit": ""} | row for row in records]


def wants(table: pd.DataFrame, columns: list[str]) -> None:
    """Refuse a table that lacks a column, and say which columns it has."""
    if absent := [name for name in columns if name not in table]:
        raise DataError(f"The table lacks the column {absent[0]!r}; it has {', '.join(map(str, table.columns))}.")


def by_round(rows: list[dict]) -> list[tuple[str, dict]]:
    """(tick label, row) of the arms that are rounds, SEAL's first; the external writer, if there, last."""
    found = [(round_of(row["arm"]), row) for row in rows]
    found = sorted(((r[0] != "seal", r, row) for r, row in found if r), key=lambda item: item[:2])
    ticks = []
    for other, (family, k), row in found:
        name = "untrained" if row["arm"] == "own_untrained" else f"round {k}"
        ticks.append((family.split("_")[0] + "\n" + name if other else name, row))
    return ticks + [("stronger\nwriter", row) for row in rows if row["arm"] == "external"]


def round_ticks(arms: Iterable[str]) -> list[str]:
    """Tick labels of the rounds among some arms, in their order on an axis."""
    return [tick for tick, _ in by_round([{"arm": arm} for arm in dict.fromkeys(arms)])]


def paper_values() -> list[dict]:
    """Every value of paper_values.yaml with its group's fields filled in; the continual matrix as one row a cell."""
    values = []
    for group in yaml.safe_load(Path(__file__).with_name("paper_values.yaml").read_text(encoding="utf-8")):
        shared = {"low": None, "high": None, "note": "", "headline": True}
        shared |= {key: value for key, value in group.items() if key not in ("rows", "matrix")}
        values += [shared | row for row in group.get("rows", [])]
        for edits, line in enumerate(group.get("matrix", [])):
            cells = enumerate(line, start=1)
            values += [
                shared | {"metric": f"accuracy_after_{edits}:passage_{k}", "value": v, "cell": f"row {edits}, d{k}"}
                for k, v in cells
                if v is not None
            ]
    return values


def paper_index() -> dict[tuple[str, str, str], dict]:
    """(experiment, arm, metric) -> the one paper value it is compared with."""
    index: dict[tuple[str, str, str], dict] = {}
    for entry in paper_values():
        key = (entry["experiment"], entry["arm"], entry["metric"])
        if not entry["headline"]:
            continue
        if key in index:
            raise DataError(f"paper_values.yaml: {'/'.join(key)} is there twice; mark one with headline: false.")
        index[key] = entry
    return index


def paper_source(entry: dict) -> str:
    """Version, table, cell, protocol and model of a paper value in one line."""
    return f"{entry['version']}, {entry['table']}, {entry['cell']} ({entry['protocol']}, {entry['model']})"


def newest_finished(notebook: str, scale: str) -> Path | None:
    """The run folder whose run.json was written last, or None; a folder without run.json does not count."""
    done = (paths.runs() / notebook / scale).glob("*/run.json")
    newest = max(done, key=lambda file: (file.stat().st_mtime_ns, file.parent.name), default=None)
    return newest.parent if newest else None


def collect(scale: str, write: bool = True) -> pd.DataFrame:
    """Join results.csv of the newest finished run of each notebook with the paper's values.

    Writes figures/<scale>/results.csv and manifest.json (which runs, from which code and parameters).

    Raises:
        DataError: two runs disagree about one (experiment, arm, metric, protocol, model), or a file lacks a column.
    """
    import pandas as pd

    found = {path.stem for path in paths.notebooks().glob("*.ipynb")}
    found |= {path.parent.name for path in paths.runs().glob(f"*/{scale}")}
    frames, used, missing = [], [], []
    for notebook in sorted(found):
        folder = newest_finished(notebook, scale)
        if folder is None:
            missing.append(notebook)
            continue
        frame = read_results(folder / "results.csv", OWN_COLUMNS) if (folder / "results.csv").exists() else None
        if frame is not None and len(frame):
            frames.append(frame.assign(run=f"{notebook}/{scale}/{folder.name}"))
        used.append(_provenance(notebook, scale, folder) | {"rows": 0 if frame is None else len(frame)})
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=OWN_COLUMNS)
    table = _joined(_without_duplicates(table))
    if write:
        folder = paths.figures() / scale
        paths.write_text(folder / "results.csv", table.to_csv(index=False, lineterminator="\n"))
        paths.write_json(folder / "manifest.json", {"scale": scale, "runs": used, NOT_RUN.replace(" ", "_"): missing})
    return table


def read_results(path: Path, columns: list[str] = COLUMNS) -> pd.DataFrame:
    """A results.csv with its types: text stays text (a run hash is not a number), an empty number is NaN."""
    import pandas as pd

    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if absent := [name for name in columns if name not in frame and name != "run"]:
        raise DataError(f"{paths.short(path)}: column {absent[0]!r} is missing; run the notebook again.")
    frame = frame.reindex(columns=columns, fill_value="")
    for name in [*NUMBERS, "n"]:
        if name in frame:
            try:
                frame[name] = pd.to_numeric(frame[name].replace("", None))
            except (ValueError, TypeError) as error:
                raise DataError(f"{paths.short(path)}: column {name!r} holds text ({error}); write a number.") from None
            frame[name] = frame[name].astype("Int64" if name == "n" else float)
    return frame


def read_run(folder: Path) -> pd.DataFrame:
    """The results of one finished run with the paper's values beside them, as :func:`collect` joins them."""
    return _joined(read_results(folder / "results.csv", OWN_COLUMNS).assign(run=folder.name))


def with_gaps(df: pd.DataFrame, experiment: str, metric: str | None = None) -> pd.DataFrame:
    """Rows of one experiment, plus a row without a value for each arm that only the paper has (headline metric)."""
    import pandas as pd

    metric = metric or shown(experiment).metric
    rows = df[df["experiment"] == experiment]
    have = set(rows.loc[rows["metric"] == metric, "arm"])
    known = [key for key in paper_index() if key[0] == experiment and key[2] == metric and key[1] not in have]
    gaps = pd.DataFrame([dict(zip(KEYS, (*key, "", ""), strict=True)) for key in known]).reindex(columns=OWN_COLUMNS)
    gaps = _joined(gaps.assign(unit="", run=""))
    return pd.concat([rows, gaps], ignore_index=True) if len(rows) else gaps


def table(df: pd.DataFrame, experiment: str, metric: str | None = None) -> pd.DataFrame:
    """One line an arm, for people: ours [interval], n, blank answers, the paper's value and source, and whether the
    paired difference to the frozen model and to untrained self-edits is separable from zero ("–" = not computed).

    What stands in for these where an experiment has another headline is in :data:`SHOWN`.
    """
    import pandas as pd

    about = shown(experiment)
    metric, (failures, failed) = metric or about.metric, about.beside
    everything = with_gaps(df, experiment, metric)
    rows = everything[everything["metric"] == metric]
    mixed = rows.loc[rows["run"] != "", ["protocol", "model"]].drop_duplicates()
    lines = []
    for row in sorted(rows.to_dict("records"), key=lambda row: (arm_rank(row["arm"]), row["protocol"], row["model"])):
        beside = everything[(everything["protocol"] == row["protocol"]) & (everything["model"] == row["model"])]
        blank = _find(beside, row["arm"], failures)
        ran = not math.isnan(row["value"])
        line = {"arm": arm_label(row["arm"])}
        if len(mixed) > 1:
            line |= {"protocol": row["protocol"], "model": row["model"]}
        line |= {
            f"{metric.replace('_', ' ')}, %": _percent(row) if ran else NOT_RUN,
            "n": f"{row['n']} {row['unit']}" if ran else "",
            **{
                column: _percent(found) if (found := _find(beside, row["arm"], name)) else "–" if ran else ""
                for name, column in about.also.items()
            },
            failed: f"{100 * blank['value']:.1f}" if blank else "–" if ran else "",
            **{
                f"separable from {word}?": _separable(beside, row["arm"], arm) if ran else ""
                for arm, word in about.references.items()
            },
            "paper, %": "" if math.isnan(row["paper_value"]) else f"{100 * row['paper_value']:.1f}",
            "paper source": row["paper_source"],
        }
        lines.append(line)
    return pd.DataFrame(lines)


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table; a pipe inside a cell is escaped."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_html(frame: pd.DataFrame, caption: str = "") -> str:
    """The same table for a notebook: quiet lines, gaps in grey, nothing loaded from elsewhere."""
    cell = "padding:0.25em 0.8em;text-align:left;border:0;background:none;"
    head = "".join(f"<th style='{cell}border-bottom:1px solid #888'>{html.escape(name)}</th>" for name in frame.columns)
    body = []
    for line in frame.astype(str).values.tolist():
        grey = "color:#888;font-style:italic;" if NOT_RUN in line else ""
        cells = "".join(f"<td style='{cell}'>{html.escape(text)}</td>" for text in line)
        body.append(f"<tr style='background:none;{grey}'>{cells}</tr>")
    title = f"<caption style='text-align:left;padding:0.4em 0.8em'>{html.escape(caption)}</caption>" if caption else ""
    return f"<table style='border-collapse:collapse'>{title}<tr>{head}</tr>{''.join(body)}</table>"


def tabled(df: pd.DataFrame) -> list[str]:
    """The headline experiments that have rows, in the README's order."""
    return [name for name in TITLES if (df["experiment"] == name).any()]


def readme_block(df: pd.DataFrame) -> str:
    """The results of the README: one table for each headline experiment, and what is not run says so."""
    parts = []
    for experiment, name in TITLES.items():
        title = f"**{name}** (`{experiment}`)"
        rows = df[df["experiment"] == experiment]
        if not (rows["metric"] == shown(experiment).metric).any():
            parts.append(f"{title}: {NOT_RUN}.")
            continue
        which = sorted({f"{row['model']}, protocol {row['protocol']}" for row in rows.to_dict("records")})
        frame = table(df, experiment)
        frame = frame.drop(columns=[name for name in frame if (frame[name].isin(["", "–"])).all()])
        parts.append(f"{title}: {'; '.join(which)}\n\n{to_markdown(frame)}")
    return "\n\n".join(parts)


def write_readme(scale: str, path: Path | None = None) -> Path:
    """Rewrite what stands between the markers of README.md from figures/<scale>/results.csv; the rest stays as is."""
    path = path or paths.ROOT / "README.md"
    results = paths.figures() / scale / "results.csv"
    if not results.exists():
        raise DataError(f"{paths.short(results)} is missing; run `python -m seal_lib.report collect --scale {scale}`.")
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise DataError(f"{path.name}: the lines {BEGIN} and {END} must each stand there once, in this order.")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    return paths.write_text(path, f"{before}\n\n{readme_block(read_results(results))}\n\n{after}")


def _joined(frame: pd.DataFrame) -> pd.DataFrame:
    """Add paper_value and paper_source, fix the column order and round to six digits after the point."""
    index = paper_index()
    entries = [index.get(key) for key in frame[["experiment", "arm", "metric"]].itertuples(index=False, name=None)]
    frame = frame.assign(
        paper_value=[float(entry["value"]) if entry else math.nan for entry in entries],
        paper_source=[paper_source(entry) if entry else "" for entry in entries],
    )[COLUMNS]
    return frame.astype({**{name: float for name in NUMBERS}, "n": "Int64"}).round(dict.fromkeys(NUMBERS, 6))


def _without_duplicates(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that two runs agree on are kept once; a disagreement is an error."""
    for key, rows in frame[frame.duplicated(KEYS, keep=False)].groupby(KEYS, sort=False):
        if len(rows[["value", "low", "high", "n"]].drop_duplicates()) > 1 or rows["run"].nunique() < len(rows):
            runs = " and ".join(dict.fromkeys(rows["run"]))
            raise DataError(
                f"{' / '.join(str(part) for part in key if part)} is there {len(rows)} times (in {runs}); "
                "give the experiments different names, or remove the run folder that is out of date."
            )
    return frame.drop_duplicates(KEYS, ignore_index=True)


def _provenance(notebook: str, scale: str, folder: Path) -> dict:
    """What the manifest says of one run: code, parameters, when, minutes; a field run.json does not have is null."""
    record = paths.read_json(folder / "run.json")
    kept = {name: record.get(name) for name in ("key", "git", "library", "packages", "start", "end")}
    phases = sum((record.get("seconds") or {}).values())  # of all sessions; wall_seconds is the last session's
    seconds = record.get("wall_seconds")
    minutes = None if seconds is None else round(max(seconds, phases) / 60, 2)
    return {"notebook": notebook, "run": f"{notebook}/{scale}/{folder.name}"} | kept | {"minutes": minutes}


def _find(frame: pd.DataFrame, arm: str, metric: str) -> dict | None:
    rows = frame[(frame["arm"] == arm) & (frame["metric"] == metric) & frame["value"].notna()].to_dict("records")
    return rows[0] if rows else None


def _percent(row: dict, sign: str = "") -> str:
    value = f"{100 * row['value']:{sign}.1f}"
    return value if math.isnan(row["low"]) else f"{value} [{100 * row['low']:{sign}.1f}, {100 * row['high']:{sign}.1f}]"


def _separable(frame: pd.DataFrame, arm: str, reference: str) -> str:
    row = _find(frame, difference_arm(arm, reference), "difference")
    if row is None and (back := _find(frame, difference_arm(reference, arm), "difference")):
        row = back | {"value": -back["value"], "low": -back["high"], "high": -back["low"]}
    if row is None:
        return "" if arm == reference else "–"
    estimate = stats.Estimate(row["value"], row["low"], row["high"], int(row["n"]), row["unit"])
    return f"{'yes' if stats.separable(estimate) else 'no'}, {_percent(row, '+')}"


def main(arguments: list[str] | None = None) -> int:
    """Command line; a SealError becomes its one sentence and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m seal_lib.report", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["collect", "readme"])
    parser.add_argument("--scale", default="seedling")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.what == "readme":
            print(f"wrote {paths.short(write_readme(chosen.scale))}")
        else:
            rows = collect(chosen.scale)
            print(f"{len(rows)} results in {paths.short(paths.figures() / chosen.scale / 'results.csv')}")
    except SealError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
