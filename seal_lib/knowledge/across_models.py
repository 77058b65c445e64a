"""The main comparisons on several models that differ in their seed alone: their lines in ``results.csv``, and in words.

One ReST^EM loop per model (:func:`seal_lib.knowledge.experiment.restem_loop`) on the same evaluation passages. A model
is what a loop is elsewhere: the pooled intervals speak of other passages *and* of other models grown by the same
recipe.
"""

from collections.abc import Mapping, Sequence

from seal_lib.knowledge.evaluate import difference_rows, result_rows
from seal_lib.loops.outer import Loop
from seal_lib.report import stats
from seal_lib.report.arms import arm_label

EXPERIMENT = "knowledge/models"


def comparisons(rounds: int) -> list[tuple[str, str]]:
    """SEAL − untrained, SEAL − random choice, random choice − untrained, after the last round."""
    last = f"seal_round_{rounds}"
    return [(last, "own_untrained"), (last, "random_edit_sft"), ("random_edit_sft", "own_untrained")]


def pooled_name(models: Sequence[str]) -> str:
    """What stands in the column ``model`` of the lines over all of them."""
    return f"{len(models)} models"


def model_rows(loops: Mapping[str, Loop], *, protocol: str, grader: str) -> list[dict]:
    """Lines of ``knowledge/models``: of each model by name, and over all of them where there are several.

    Args:
        loops: model name -> its loop; all evaluated on the same passages.
    """
    label, pairs = {"protocol": protocol, "grader": grader}, comparisons(len(next(iter(loops.values())).rounds))
    several: dict[str, Mapping] = {name: loop.evaluated for name, loop in loops.items()}
    if len(loops) > 1:
        arms = next(iter(loops.values())).evaluated
        several[pooled_name([*loops])] = {arm: {m: loop.evaluated[arm] for m, loop in loops.items()} for arm in arms}
    rows = []
    for model, trials in several.items():
        for arm, own in trials.items():
            rows += result_rows(EXPERIMENT, arm, own, model=model, **label)
        rows += difference_rows(EXPERIMENT, trials, pairs, model=model, **label)
    return rows


def in_words(rows: Sequence[Mapping]) -> str:
    """Markdown: one line a comparison that is separable over all models; silent about those that are not.

    Args:
        rows: as :func:`model_rows` gives them.
    """
    apart = [row for row in rows if row["metric"] == "difference"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    alone = models[:-1] if len(models) > 1 else models
    lines = []
    for row in apart:
        if row["model"] != models[-1] or not stats.separable(_estimate(row)):
            continue
        own = [other for other in apart if other["arm"] == row["arm"] and other["model"] in alone]
        held = [other for other in own if stats.separable(_estimate(other)) and other["value"] * row["value"] > 0]
        a, b = (arm_label(arm) for arm in row["arm"].split(" - "))
        value, low, high = (_points(row[key]) for key in ("value", "low", "high"))
        told = f"* **{a} − {b}**: {value} points [{low}, {high}] over {row['n']} passages"
        each = ", ".join(_points(other["value"]) for other in own)
        if len(alone) > 1:
            told += f" × {len(alone)} models; model by model {each}, separable alone on {len(held)} of {len(alone)}"
        lines.append(told + ".")
    return "\n".join(lines)


def _estimate(row: Mapping) -> stats.Estimate:
    return stats.Estimate(row["value"], row["low"], row["high"], row["n"], p=row["p"])


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
