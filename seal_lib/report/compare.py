"""Compare two finished runs: which parameters differ, and which run wins on which passage (or task).

Knows run folders and the rows that evaluations write (phase ``evaluate/<arm>``, inside ``seed_<n>/`` if there are
several loops).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import paths
from seal_lib.errors import DataError, RunError
from seal_lib.records import UNSCORED, PassageTrial, mean_of
from seal_lib.report import stats, words
from seal_lib.report.arms import arm_label, arm_rank
from seal_lib.runs import manifest

if TYPE_CHECKING:
    import pandas as pd

_PHASE = re.compile(r"(?:(?P<loop>seed_\w+)/)?evaluate/(?P<arm>\w+)")
#: arm -> loop -> unit -> accuracy, or share of configurations that solve
Values = dict[str, dict[str, dict[str, float]]]


def run_folder(name: str, scale: str) -> Path:
    """Return the folder of a finished run; RunError if there is none.

    ``name``: a notebook, meaning its newest finished run at ``scale``; ``notebook/scale/key`` under runs/; or a folder,
    which may lie elsewhere.
    """
    for folder in (paths.runs() / name, Path(name)):
        if (folder / "parameters.json").exists():
            manifest.read(folder)
            return folder
    found = manifest.newest(name, scale) if re.fullmatch(r"\w+", name) else None
    if found is None:
        raise RunError(
            f"{name!r} is no finished run: give a notebook that has run at scale {scale}, a folder such as "
            "12_restem_rounds/seedling/0123456789ab, or its path; `make status` lists them."
        )
    return found


def parameters(first: Path, second: Path) -> pd.DataFrame:
    """Return the parameters in which two runs differ, one per line; "–" means that a run has no such parameter."""
    import pandas as pd

    a, b = (manifest.read(folder)["parameters"] for folder in (first, second))
    both = {name: (a.get(name, "–"), b.get(name, "–")) for name in (*a, *(b.keys() - a.keys()))}
    lines = [(name, str(one), str(other)) for name, (one, other) in both.items() if one != other]
    return pd.DataFrame(lines, columns=["parameter", "first", "second"])


def values(folder: Path) -> Values:
    """Return the accuracy of each evaluated arm on each unit in each loop, by the run's own grader.

    For a task it is the share of its distinct configurations that solve it. It is NaN if nothing was graded.
    """
    gathered: dict[tuple[str, str, str], list[float]] = {}
    for row in manifest.rows(folder):
        found = _PHASE.fullmatch(row["phase"])
        if found and "answers" in row:
            graded = PassageTrial.from_dict(row).accuracy
        elif found and "pass_2" in row:
            graded = math.nan if row["outcome"] in UNSCORED else float(row["pass_2"])
        else:
            continue
        gathered.setdefault((found["arm"], found["loop"] or "", row["unit_id"]), []).append(graded)
    known: Values = {}
    for (arm, loop, unit), several in gathered.items():
        known.setdefault(arm, {}).setdefault(loop, {})[unit] = mean_of(several)
    return known


def differences(first: Path, second: Path) -> pd.DataFrame:
    """Compare each arm that both runs evaluated on common units: means, first − second with its verdict, and wins.

    A win is a passage (or task) whose mean over the loops is higher in the first run. The p-values of all lines form
    one family. Arms whose loops cannot be paired are left out. Raises DataError if the runs have no arm in common that
    was evaluated on common units.
    """
    import pandas as pd

    ours, theirs = values(first), values(second)
    apart = {}
    for arm in sorted(ours.keys() & theirs.keys(), key=arm_rank):
        try:
            apart[arm] = stats.differences(ours[arm], theirs[arm])
        except DataError:
            continue
    if not apart:
        raise DataError(
            f"{paths.short(first)} and {paths.short(second)} evaluated no arm on common units; give runs that did."
        )
    sides = {f"{arm} {side}": of[arm] for arm in apart for side, of in (("first", ours), ("second", theirs))}
    pairs = {arm: (f"{arm} first", f"{arm} second") for arm in apart}
    found = stats.compare(sides, list(pairs.values()), unit="unit")
    lines = []
    for arm, loops in apart.items():
        estimate = found[pairs[arm]]
        means = [mean_of(of[unit] for of in loops.values()) for unit in next(iter(loops.values()))]
        first_mean, second_mean = (stats.mean_over_loops(side[arm], stats.SHARE) for side in (ours, theirs))
        lines.append(
            {
                "arm": arm_label(arm),
                "first, %": first_mean.text(),
                "second, %": second_mean.text(),
                "difference": estimate.text("+.1f"),
                "separable?": "yes" if stats.separable(estimate) else "no",
                "n": words.units(estimate),
                "wins": sum(m > 0 for m in means),
                "ties": sum(m == 0 for m in means),
                "losses": sum(m < 0 for m in means),
            }
        )
    return pd.DataFrame(lines)


def by_unit(first: Path, second: Path, arm: str) -> pd.DataFrame:
    """Return first, second and their difference for each unit that both runs evaluated, largest losses first.

    DataError if a run has not evaluated this arm.
    """
    import pandas as pd

    sides = []
    for folder in (first, second):
        known = values(folder)
        if arm not in known:
            raise DataError(
                f"{paths.short(folder)} has not evaluated arm {arm!r}; it has {', '.join(known) or 'none'}."
            )
        sides.append(pd.DataFrame(known[arm]).mean(axis=1))
    frame = pd.concat(sides, axis=1, join="inner", keys=["first", "second"])
    return frame.assign(difference=frame["first"] - frame["second"]).sort_values("difference", kind="stable")
