"""The paper's numbered figures and tables with our numbers beside them, and the list of what was reproduced.

They are made for notebooks, LaTeX, CSV and one HTML page; the list is REPRODUCTION.md. ``paper_items.yaml`` says which
experiments correspond to a number of the paper. What did not run is a gap.
"""

from __future__ import annotations

import base64
import fnmatch
import html
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import paths
from seal_lib.report import pages, tables, words
from seal_lib.report.arms import NOT_RUN, arm_label, arm_rank
from seal_lib.report.paper_values import grader_sentence, paper_values
from seal_lib.report.stats import Estimate
from seal_lib.runs import params, yaml_files

if TYPE_CHECKING:
    import pandas as pd

VERSIONS = ("v1", "v2")
#: characters that LaTeX writes differently
LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "×": r"$\times$", "<": "$<$", ">": "$>$"}
    | {"–": "--", "\\": "/"}
)


@dataclass(frozen=True)
class ItemPart:
    """The values of one experiment in a numbered item; ``metric`` is a pattern."""

    experiment: str
    metric: str
    label: str = ""


@dataclass(frozen=True)
class Item:
    """A numbered figure or table; the head of ``paper_items.yaml`` explains the fields."""

    title: str
    v1: str = ""
    v2: str = ""
    parts: Sequence[ItemPart] = ()
    pictures: Sequence[str] = ()
    space: dict[str, list[float]] = field(default_factory=dict)
    notebook: str = ""
    lacks: str = ""

    @property
    def number(self) -> str:
        """The numbers in the paper's versions: "Table 2", "Table 6 (v1), Table 10 (v2)", "Table 7 (v2)"."""
        if self.v1 == self.v2:
            return self.v1
        return ", ".join(f"{name} ({version})" for version in VERSIONS if (name := getattr(self, version)))

    @property
    def slug(self) -> str:
        """The name of its files, such as ``table_2``, with v2's number if there are two."""
        return (self.v2 or self.v1).lower().replace(" ", "_")


@cache
def items() -> tuple[Item, ...]:
    """Return every numbered item, in the paper's order."""
    rows = yaml_files.read(Path(__file__).with_name("paper_items.yaml"))
    return tuple(Item(**{**row, "parts": [ItemPart(**part) for part in row.get("parts", ())]}) for row in rows)


def printed(part: ItemPart) -> dict[tuple[str, str], dict[str, dict]]:
    """Return (arm, metric) -> version (v1, v2, json) -> the paper's entry; an entry of ``v1=v2`` is under both."""
    found: dict[tuple[str, str], dict[str, dict]] = {}
    for entry in paper_values():
        if entry["experiment"] == part.experiment and re.fullmatch(part.metric, entry["metric"]):
            for version in entry["version"].split("="):
                found.setdefault((entry["arm"], entry["metric"]), {}).setdefault(version, entry)
    return found


def beside(df: pd.DataFrame, item: Item, scale: str = "") -> pd.DataFrame:
    """Return one numbered item as a table: ours [interval], n and verdict, then v1, v2 and the authors' files.

    Arms that only the paper has are shown as "not run". Arms that only we have are included if the paper gives a single
    metric. Beside the settings that the paper searched stand the parameters of ``scale``.
    """
    import pandas as pd

    if item.space:
        return pd.DataFrame(list(_settings(item, scale)))
    frame = pd.DataFrame([line for part in item.parts for line in _lines(df, part, len(item.parts) > 1)])
    if "model" in frame and len({*frame["model"]} - {""}) < 2:
        frame = frame.drop(columns="model")
    frame = frame.drop(columns=[name for name in frame if (frame[name] == "").all()])
    entries = [entry for part in item.parts for versions in printed(part).values() for entry in versions.values()]
    notes = dict.fromkeys(f"{e['cell']} ({e['version']}): {e['note']}." for e in entries if e["note"])
    judged = any(entry["grader"] == "GPT-4.1" for entry in entries)
    frame.attrs["notes"] = [*([grader_sentence()] if judged else []), *notes]
    return frame


def _lines(df: pd.DataFrame, part: ItemPart, labelled: bool) -> Iterator[dict]:
    about, known = tables.shown(part.experiment), printed(part)
    rows = df[df["experiment"] == part.experiment]
    ours = rows[rows["metric"].str.fullmatch(part.metric)]
    reference = "own_untrained" if "own_untrained" in about.references else next(iter(about.references))
    verdict_column = f"separable from {about.references[reference]}?"
    several = len({metric for _, metric in known}) > 1  # if the paper has several metrics, show only its values
    keys = {*known, *(() if several else ours[["arm", "metric"]].itertuples(index=False, name=None))}
    for arm, metric in sorted(keys, key=lambda key: (arm_rank(key[0]), key[1])):
        versions = known.get((arm, metric), {})
        files = versions.get("json") or next((e for e in versions.values() if e["low"] is not None), None)
        for row in ours[(ours["arm"] == arm) & (ours["metric"] == metric)].to_dict("records") or [None]:
            line = {"setting": part.label} if labelled else {}
            line |= {"arm": arm_label(arm)} | ({"value": _value(metric)} if several else {})
            if row is None:
                line |= {"ours, %": NOT_RUN, "n": "", "model": "", "protocol": "", verdict_column: ""}
            else:
                same = rows[(rows["protocol"] == row["protocol"]) & (rows["model"] == row["model"])]
                verdict = tables.verdict(same, arm, reference, metric) if metric == about.metric else ""
                line |= {"ours, %": tables.percent_of_row(row), "n": words.units(Estimate.of_row(row))}
                line |= {"model": row["model"], "protocol": row["protocol"], verdict_column: verdict}
            line |= {v: f"{100 * versions[v]['value']:.1f}" if v in versions else "" for v in VERSIONS}
            yield line | {"authors' files, 95 %": tables.percent_of_row(_bounds(files)) if files else ""}


def _value(metric: str) -> str:
    """Return "BWT", or the cell of a matrix: "after edit 3, passage 2"."""
    cell = re.fullmatch(r"accuracy_after_(\d+):passage_(\d+)", metric)
    if cell is None:
        return metric.replace("_", " ")
    return f"{'before any edit' if cell[1] == '0' else f'after edit {cell[1]}'}, passage {cell[2]}"


def _bounds(entry: dict) -> dict[str, float]:
    return {name: math.nan if entry[name] is None else entry[name] for name in ("value", "low", "high")}


def _settings(item: Item, scale: str) -> Iterator[dict]:
    there = [s for s in dict.fromkeys((scale, "paper")) if item.notebook and s in params.scales(item.notebook)]
    ours = {s: params.resolve(item.notebook, s) for s in there}
    for name, values in item.space.items():
        line = {"setting": name, "searched by the authors": ", ".join(f"{value:g}" for value in values)}
        yield line | {f"ours, scale {s}": f"{ours[s][name]:g}" for s in there}


def reproduced(df: pd.DataFrame, item: Item) -> tuple[int, int]:
    """Return how many of an item's values we have, and how many the paper has."""
    have = set(df.loc[df["value"].notna(), ["experiment", "arm", "metric"]].itertuples(index=False, name=None))
    wanted = [(part.experiment, *key) for part in item.parts for key in printed(part)]
    return sum(key in have for key in wanted), len(wanted)


def item_pictures(item: Item, folder: Path) -> list[Path]:
    """Return the item's pictures that exist in a gallery's folder or in the repository."""
    drawn = sorted(folder.glob("*.png"))
    found = [path for pattern in item.pictures for path in drawn if fnmatch.fnmatch(path.stem, pattern)]
    return found + [path for name in item.pictures if "/" in name and (path := paths.ROOT / name).exists()]


def to_latex(frame: pd.DataFrame, caption: str, label: str) -> str:
    """Return a booktabs table; characters that LaTeX reads as commands are escaped."""
    shown = frame.map(_escaped).rename(columns=_escaped)
    return shown.style.hide(axis="index").to_latex(
        hrules=True, column_format="l" * len(frame.columns), caption=_escaped(caption), label=label, position="t"
    )


def _escaped(text: object) -> str:
    return str(text).translate(LATEX)


def write(df: pd.DataFrame, folder: Path, scale: str) -> list[str]:
    """Write each item that is a table as CSV, Markdown and LaTeX, ``table_2.csv`` and so on; return the names."""
    written = []
    for item in items():
        frame, title = beside(df, item, scale), f"{item.number}. {item.title}"
        if item.slug.startswith("table") and len(frame):
            notes = " ".join([f"{title}.", *frame.attrs.get("notes", [])])
            latex = to_latex(frame, f"The paper's {notes}", f"tab:{item.slug}")
            texts = {"csv": frame.to_csv(index=False, lineterminator="\n"), "tex": latex}
            texts["md"] = f"**{title}**\n\n{tables.to_markdown(frame)}\n"
            for kind, text in texts.items():
                paths.write_text(folder / f"{item.slug}.{kind}", text)
            written.append(item.slug)
    return written


def page(df: pd.DataFrame, folder: Path, scale: str) -> str:
    """Return every item in the paper's order as one HTML page that contains its pictures (from ``folder``)."""
    title = f"The paper's figures and tables, ours at scale {scale} beside them"
    sections = "\n".join(_section(df, item, folder, scale) for item in items())
    return pages.page(title, f"<h1>{html.escape(title)}</h1>\n{sections}")


def _section(df: pd.DataFrame, item: Item, folder: Path, scale: str) -> str:
    title, frame = html.escape(item.title), beside(df, item, scale)
    parts = [tables.to_html(frame)] if len(frame) else []
    for path in item_pictures(item, folder):
        kind, data = "svg+xml" if path.suffix == ".svg" else "png", base64.b64encode(path.read_bytes()).decode()
        parts.append(f"<img alt='{title}' src='data:image/{kind};base64,{data}'>")
    if item.lacks:
        parts.append(f"<p><i>Not here: {html.escape(item.lacks)}.</i></p>")
    return f"<section><h2>{item.number}. {title}</h2>{''.join(parts or [NOT_RUN])}</section>"


def reproduction(published: dict[str, pd.DataFrame]) -> str:
    """Return REPRODUCTION.md: which numbers of the paper have ours beside them, at which scale, and what is missing.

    ``published``: scale -> results.csv of figures/<scale>.
    """
    import pandas as pd

    lines = []
    for item in items():
        line = {"paper": item.number, "what": item.title}
        for scale, df in published.items():
            have, wanted = reproduced(df, item)
            line[f"scale {scale}"] = f"{have} of {wanted} values" if wanted else "–"
        line |= {"notebook": f"`{item.notebook}`" if item.notebook else "", "not here": item.lacks}
        lines.append(line)
    return (
        "# What of the paper is reproduced\n\n"
        "Written by `make publish` from `figures/*/results.csv`. A value counts when ours stands beside it, whatever "
        "it says; scale `seedling` is another model in a made world, so no level is "
        "comparable. Scales that are not named have not been run.\n\n"
        f"{tables.to_markdown(pd.DataFrame(lines))}\n"
    )
