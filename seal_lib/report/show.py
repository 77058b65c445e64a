"""HTML views for notebooks that are more than one record: the loss mask, and self-edits side by side."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from seal_lib.records import LEFT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Html:
    """Markup that Jupyter shows as HTML."""

    def __init__(self, markup: str):
        self.markup = markup

    def _repr_html_(self) -> str:
        return self.markup


def loss_mask(examples: Sequence, tokenizer: "PreTrainedTokenizerBase", limit: int = 80) -> Html:
    """Tokens of training examples, one line each; green carries loss, grey is only read.

    ``examples`` are the bank's; at most ``limit`` tokens of each are shown.
    """
    lines = []
    for example in examples:
        weights = list(example.weights) if example.weights is not None else [1.0] * len(example.ids)
        cells = []
        for position, (token, weight) in enumerate(list(zip(example.ids, weights, strict=True))[:limit]):
            colour = "#c9ecd2" if weight and position else "#eeeeee"
            text = html.escape(tokenizer.decode([int(token)])).replace("\n", "⏎").replace(" ", "·")
            cells.append(f"<span style='background:{colour};color:#111;margin-right:1px'>{text}</span>")
        more = f" … {len(example.ids) - limit} more" if len(example.ids) > limit else ""
        lines.append(f"<div style='font-family:monospace;margin:.3em 0'>{''.join(cells)}{more}</div>")
    return Html("".join(lines))


def side_by_side(columns: dict[str, Sequence]) -> Html:
    """Records that show themselves (self-edits, trials) in columns, one row per position."""
    head = "".join(f"<th style='{LEFT}'>{html.escape(name)}</th>" for name in columns)
    rows = ""
    for row in zip(*columns.values(), strict=True):
        cells = "".join(f"<td style='{LEFT}'>{item._repr_html_()}</td>" for item in row)
        rows += f"<tr style='vertical-align:top'>{cells}</tr>"
    return Html(f"<table><tr>{head}</tr>{rows}</table>")
