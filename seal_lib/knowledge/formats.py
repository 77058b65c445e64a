"""Prompt formats before and after rounds of ReST^EM: the rows of ``knowledge/prompts`` (Table 6 in v1, 10 in v2).

A format is a prompt set (`prompts.yaml`); an arm is a format after a number of rounds, ``rewrite_round_1``. The control
``rewrite_external`` has the prompts of a format and the texts of another writer.
"""

from collections.abc import Mapping, Sequence

from seal_lib.knowledge.evaluate import ArmTrials, difference_rows, edit_rows, result_rows, table_rows, token_row
from seal_lib.knowledge.experiment import reward_rows
from seal_lib.knowledge.prompts import Prompts
from seal_lib.loops.outer import Loop
from seal_lib.records import PassageTrial
from seal_lib.report.arms import arm_label
from seal_lib.report.paper_values import paper_index
from seal_lib.report.stats import separable
from seal_lib.report.words import Rows, bullets, differences, points, told

EXPERIMENT = "knowledge/prompts"
#: the set of the shipped model's notebooks, which asks for notes
_OWN = "seedling"


def family_of(prompts: str) -> str:
    """Return the family of a set's arms: implications_long for ``implications-long``, notes for ``seedling``."""
    return "notes" if prompts == _OWN else prompts.removeprefix(f"{_OWN}-").replace("-", "_")


def arm_of(prompts: str, index: int) -> str:
    """Return the arm of a set after ``index`` rounds; 0: the untrained policy."""
    return f"{family_of(prompts)}_round_{index}"


def _comparisons(formats: Sequence[str], rounds: int) -> list[tuple[str, str]]:
    """Return the pairs of arms to compare, which are one family: each format and the first after equal rounds, each
    format after all rounds and before any, and each other untrained format and the first after all rounds (does a
    wording do what training does?)."""
    first, *others = formats
    pairs = [(arm_of(name, i), arm_of(first, i)) for i in range(rounds + 1) for name in others]
    pairs += [(arm_of(name, rounds), arm_of(name, 0)) for name in formats]
    return pairs + [(arm_of(name, 0), arm_of(first, rounds)) for name in others]


def format_rows(
    controls: Mapping[str, ArmTrials],
    loops: Mapping[str, Mapping[int, Loop]],
    wordings: Mapping[str, Prompts],
    *,
    grader: str,
    **label: str,
) -> list[dict]:
    """Return rows of every (format, round) and of the controls: levels, tokens trained, self-edits, rewards,
    differences. A format that the paper has also gets rows ``knowledge/prompts/<format>``, to stand beside the paper's.

    Args:
        controls: arm → trials, run once.
        loops: format → seed → loop; the others are compared with the first format.
        wordings: format → its prompt set.
    """
    rounds = len(next(iter(next(iter(loops.values())).values())).rounds)
    names = ["own_untrained", *(f"seal_round_{i}" for i in range(1, rounds + 1))]
    arms: dict[str, Mapping[int, Sequence[PassageTrial]]] = {
        arm_of(name, i): {seed: loop.evaluated[names[i]] for seed, loop in several.items()}
        for name, several in loops.items()
        for i in range(rounds + 1)
    }
    rows, evaluated = [], {**controls, **arms}
    for arm, trials in evaluated.items():
        rows += result_rows(EXPERIMENT, arm, trials, grader=grader, **label)
        rows.append(token_row(EXPERIMENT, arm, trials, **label))
    for name, several in loops.items():
        for i in range(rounds + 1):
            arm = arm_of(name, i)
            edits = {seed: [t.edit for t in trials if t.edit] for seed, trials in arms[arm].items()}
            # no passages, because note styles do not apply to a format that asks for other texts
            rows += edit_rows(EXPERIMENT, arm, edits, (), prompts=wordings[name], **label)
        own = family_of(name)
        rows += reward_rows(list(several.values()), experiment=EXPERIMENT, family=own, grader=grader, **label)
        if (where := f"{EXPERIMENT}/{own}") in {experiment for experiment, *_ in paper_index()}:
            found: dict[str, ArmTrials] = {names[i]: arms[arm_of(name, i)] for i in range(rounds + 1)}
            found |= {"external": controls[f"{own}_external"]} if f"{own}_external" in controls else {}
            pairs = [(later, names[0]) for later in names[1:]]
            rows += table_rows(where, found, pairs, grader=grader, **label)
    return rows + difference_rows(EXPERIMENT, evaluated, _comparisons([*loops], rounds), grader=grader, **label)


def reasoned_rows(trials: Mapping[str, ArmTrials], **label: str) -> list[dict]:
    """Return the lines of ``knowledge/prompts/reasoned_answers``, whose arms reason before they answer."""
    pairs = [(arm, "frozen") for arm in trials if arm != "frozen"]
    return table_rows(f"{EXPERIMENT}/reasoned_answers", trials, pairs, **label)


def in_words(rows: Rows, formats: Sequence[str], rounds: int) -> str:
    """Return Markdown on which untrained formats are above the trained first one, and on every separable difference."""
    apart, trained = differences(rows, EXPERIMENT), arm_of(formats[0], rounds)
    above = [
        f"{arm_label(a)} {points(e)}"
        for (a, b), e in apart.items()
        if b == trained and a.endswith("_round_0") and separable(e) and e.value > 0
    ]
    first = f"Untrained, but above **{arm_label(trained)}**: {'; '.join(above) or 'no format, as far as can be told'}."
    return f"{bullets([first])}\n{told(apart)}"
