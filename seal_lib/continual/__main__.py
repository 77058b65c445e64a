"""``python -m seal_lib.continual facts FILE.json``: the forgetting metrics of a finished accuracy matrix, as JSON.

The command reads two kinds of file:

* ours: ``{"accuracy": [[...]] or [[[...]]], "isolated": ..., "joint": ..., "sequences": 64}``. ``accuracy`` is one
  matrix [K+1, K] or a stack [S, K+1, K], with null where a cell was not measured. The reference accuracies ``isolated``
  and ``joint`` (a number, [K] or [S, K]) are optional, and so is ``sequences``, the number of sequences behind one mean
  matrix;
* the authors' ``overall_results.json``: its ``mean_over_sequences`` is one mean matrix. Its zeros above the diagonal
  mean "not measured" and are read as NaN. Its per-cell spreads give no interval for a metric: that would need the joint
  distribution of the cells of a sequence, which was not released.

The exit status is 0, or 2 after a one-sentence message if the file cannot be used.
"""

import argparse
import json
import math
from pathlib import Path

from seal_lib import paths
from seal_lib.continual import intervals, metrics
from seal_lib.errors import DataError, command_line


def facts(path: Path, isolated: float | None = None, joint: float | None = None) -> dict[str, object]:
    """Return `intervals.summary` of a file and the outcome of each matrix, as JSON values in which NaN is null.

    Args:
        isolated, joint: reference accuracies that replace the file's own.

    Raises:
        DataError: the file is missing, is not JSON, or has neither layout.
    """
    content = paths.read_data(path)
    if not isinstance(content, dict) or not {"accuracy", "mean_over_sequences"} & set(content):
        raise DataError(
            f"{path.name} has neither 'accuracy' (ours) nor 'mean_over_sequences' (the authors'); give one of the two."
        )
    ours = "accuracy" in content
    try:
        R = metrics.check(content["accuracy"]) if ours else metrics.released(content["mean_over_sequences"])
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None
    count = content.get("sequences" if ours else "n_sequences")
    if count is not None and (type(count) is not int or count < 1):
        raise DataError(f"{path.name}: the number of sequences must be a whole number from 1, got {count!r}.")
    references = {"isolated": isolated, "joint": joint}
    if ours:
        references = {name: content.get(name) if given is None else given for name, given in references.items()}
    measures = intervals.summary(R, sequences=count, **references)
    stack = R if R.ndim == 3 else R[None]
    return {
        "file": path.name,
        "kind": "ours" if ours else "authors",
        "passages": R.shape[-1],
        "matrices": len(stack),
        "held": [metrics.outcome(matrix) for matrix in stack],
        "metrics": {name: _plain(measure) for name, measure in measures.items()},
    }


def _plain(measure: intervals.Measure) -> dict[str, object]:
    e = measure.estimate
    row = {name: None if math.isnan(x := getattr(e, name)) else round(x, 6) for name in ("value", "low", "high")}
    row |= {"n": e.n, "unit": e.unit, "dropped": e.dropped, "outcome": measure.outcome}
    return row | ({"note": measure.note} if measure.note else {})


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m seal_lib.continual", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("facts", help="metrics of a matrix as JSON")
    asked.add_argument("file", type=Path, metavar="FILE.json")
    for name in ("isolated", "joint"):
        asked.add_argument(f"--{name}", type=float, help=f"reference accuracy: {name} edits, instead of the file's")
    options = parser.parse_args(arguments)
    found = facts(options.file, options.isolated, options.joint)
    print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
