"""HTML views for notebooks that show more than one record: the loss mask, self-edits side by side, the two loops."""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from IPython.display import HTML

from seal_lib.records import LEFT, Passage, Round

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIMIT = 80  # tokens of an example


def loss_mask(examples: Sequence, tokenizer: "PreTrainedTokenizerBase") -> HTML:
    """Show at most `LIMIT` tokens of each training example in a line: green ones carry loss, grey ones are only read.

    The first token of an example never carries loss.
    """
    lines = []
    for example in examples:
        weights = list(example.weights) if example.weights is not None else [1.0] * len(example.ids)
        cells = []
        for position, (token, weight) in enumerate(list(zip(example.ids, weights, strict=True))[:LIMIT]):
            colour = "#c9ecd2" if weight and position else "#eeeeee"
            text = html.escape(tokenizer.decode([int(token)])).replace("\n", "⏎").replace(" ", "·")
            cells.append(f"<span style='background:{colour};color:#111;margin-right:1px'>{text}</span>")
        more = f" … {len(example.ids) - LIMIT} more" if len(example.ids) > LIMIT else ""
        lines.append(f"<div style='font-family:monospace;margin:.3em 0'>{''.join(cells)}{more}</div>")
    return HTML("".join(lines))


def side_by_side(columns: dict[str, Sequence]) -> HTML:
    """Show records that have an HTML view (self-edits, trials) in columns, one row per position."""
    head = "".join(f"<th style='{LEFT}'>{html.escape(name)}</th>" for name in columns)
    rows = ""
    for row in zip(*columns.values(), strict=True):
        cells = "".join(f"<td style='{LEFT};vertical-align:top'>{item._repr_html_()}</td>" for item in row)
        rows += f"<tr>{cells}</tr>"
    return HTML(f"<table><tr>{head}</tr>{rows}</table>")


def two_loops(round_: Round, units: Sequence[Passage]) -> HTML:
    """Show the inner and the outer loop of a round, with the passage whose self-edits differ most in reward."""
    title = {unit.id: unit for unit in units}
    tried: dict[str, list[int]] = {}
    for i, (trial, reward) in enumerate(zip(round_.candidates, round_.rewards, strict=True)):
        if not math.isnan(reward) and trial.unit_id in title:
            tried.setdefault(trial.unit_id, []).append(i)
    if not tried:
        return HTML("<p>No self-edit of this round has a reward.</p>")
    orders = {unit: sorted(several, key=lambda i: round_.rewards[i]) for unit, several in tried.items()}
    unit = max(orders, key=lambda unit: round_.rewards[orders[unit][-1]] - round_.rewards[orders[unit][0]])
    lines = ""
    for i in dict.fromkeys((orders[unit][-1], orders[unit][0])):
        trial, reward = round_.candidates[i], round_.rewards[i]
        kept = trial.id in round_.kept
        boxes = [
            _box("self-edit", trial.edit.text if trial.edit else "", 26),
            _box("adapter", "trained on it alone, then thrown away", 9),
            _box("reward", f"{100 * reward:.0f} % of the questions right, without the passage", 10),
            _box("kept" if kept else "dropped", "the policy is trained to write it" if kept else "", 9, kept),
        ]
        lines += f"<div style='display:flex;flex-wrap:wrap;align-items:center'>{_ARROW.join(boxes)}</div>"
    left = _box("passage", title[unit].text, 20)
    many = f"{len(round_.candidates)} self-edits, {len(round_.kept)} kept"
    return HTML(
        f"<div style='{LEFT};font-size:90%'><b>Inner loop</b>: each line below. <b>Outer loop</b>: many such lines "
        f"({many}), then the policy is finetuned on what was kept and writes again."
        f"<div style='display:flex;align-items:center'>{left}{_ARROW}<div>{lines}</div></div></div>"
    )


_ARROW = "<span style='padding:0 .4em;font-size:140%'>→</span>"


def _box(head: str, text: str, wide: int, strong: bool = False) -> str:
    shown = html.escape(text if len(text) <= 260 else text[:260] + " …").replace("\n", "<br>")
    edge = "2px solid #1e9150" if strong else "1px solid #888"
    return (
        f"<div style='border:{edge};border-radius:4px;padding:.3em .6em;margin:.3em 0;width:{wide}em;{LEFT}'>"
        f"<small><b>{html.escape(head)}</b></small><br>{shown}</div>"
    )
