"""The main comparisons on several models, as lines of ``results.csv`` and in words.

Each model has one ReST^EM loop (`seal_lib.loops.outer.Loop`), and all are evaluated on the same passages or tasks.
Models that differ only in their seed are pooled: a model takes the role that a loop has elsewhere, so the pooled
intervals account for other passages or tasks *and* for other models grown by the same recipe. Models of several sizes
are not a sample of anything and are not pooled. Knows no domain: the caller gives the function that turns a model's
trials into lines (``table_rows`` of `seal_lib.knowledge.evaluate` or `seal_lib.arc.tables`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seal_lib.report import stats
from seal_lib.report.arms import arm_label
from seal_lib.report.words import bullets, points, units


def _comparisons(loop: Any) -> list[tuple[str, str]]:
    """Return the pairs SEAL − untrained, SEAL − random choice and random choice − untrained, after the last round."""
    last = f"seal_round_{len(loop.rounds)}"
    (blind,) = (arm for arm in loop.evaluated if arm.startswith("random_"))
    return [(last, "own_untrained"), (last, blind), (blind, "own_untrained")]


def model_rows(
    experiment: str,
    loops: Mapping[str, Any],
    table_rows: Callable[..., list[dict]],
    **label: str,
) -> list[dict]:
    """Return the lines of ``experiment`` for each model and, if there are several, for all of them together.

    Args:
        loops: model name -> its loop.
        table_rows: returns the domain's lines for (experiment, trials by arm and loop, pairs).
        label: protocol and grader.
    """
    first = next(iter(loops.values()))
    several: dict[str, Mapping] = {name: loop.evaluated for name, loop in loops.items()}
    if len(loops) > 1:
        pooled = {arm: {name: loop.evaluated[arm] for name, loop in loops.items()} for arm in first.evaluated}
        several[f"{len(loops)} models"] = pooled
    return [
        row
        for model, trials in several.items()
        for row in table_rows(experiment, trials, _comparisons(first), model=model, **label)
    ]


def size_rows(
    experiment: str,
    sizes: Mapping[str, str],
    loops: Mapping[str, Any],
    frozen: Mapping[str, Sequence],
    table_rows: Callable[..., list[dict]],
    **label: str,
) -> list[dict]:
    """Return the lines of ``<experiment>/<size>`` for each size: its frozen model and its loop.

    Args:
        sizes: size -> model name.
        loops: model name -> its loop.
        frozen: model name -> the trials without training.
        table_rows, label: as in `model_rows`.
    """
    rows = []
    for size, model in sizes.items():
        pairs = [*_comparisons(loops[model]), ("own_untrained", "frozen")]
        trials = {"frozen": frozen[model], **loops[model].evaluated}
        rows += table_rows(f"{experiment}/{size}", trials, pairs, model=model, **label)
    return rows


def sizes_in_words(rows: Sequence[Mapping]) -> str:
    """Return Markdown with the separable comparisons of each size, as by `in_words`, from `size_rows`."""
    models = dict.fromkeys(row["model"] for row in rows)
    return "\n".join(f"`{one}`:\n\n{in_words([row for row in rows if row['model'] == one])}" for one in models)


def in_words(rows: Sequence[Mapping]) -> str:
    """Return Markdown with one line for each comparison that is separable over all models, from `model_rows`."""
    apart = [row for row in rows if row["metric"] == "difference"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    alone = models[:-1] if len(models) > 1 else models
    lines = []
    for row in apart:
        if row["model"] != models[-1] or not _separable(row):
            continue
        own = [other for other in apart if other["arm"] == row["arm"] and other["model"] in alone]
        held = [other for other in own if _separable(other) and other["value"] * row["value"] > 0]
        a, b = (arm_label(arm) for arm in row["arm"].split(" - "))
        whole = stats.Estimate.of_row(row)
        line = f"**{a} − {b}**: {points(whole)} over {units(whole, 'models')}"
        if len(alone) > 1:
            each = ", ".join(f"{100 * other['value']:+.1f}".replace("-", "−") for other in own)
            line += f"; model by model {each}, separable alone on {len(held)} of {len(alone)}"
        lines.append(line + ".")
    return bullets(lines, "No comparison of this run can be told apart from none over all models.")


def _separable(row: Mapping) -> bool:
    return stats.separable(stats.Estimate.of_row(row))
