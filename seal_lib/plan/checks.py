"""Check a notebook's parameters before it starts: values that must fit together, and names that only the domains know.

`seal_lib.runs.values` checks the types and ranges of single values. Imports torch for the forgetting study only.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_lib import models, paths
from seal_lib.arc import prompts as arc_prompts
from seal_lib.arc.domain import TestTimeTraining
from seal_lib.errors import ParameterError
from seal_lib.generation.contract import Sampling
from seal_lib.generation.others import Other
from seal_lib.grading.judge import NOBODY, NOBODY_RATES
from seal_lib.knowledge import prompts as knowledge_prompts
from seal_lib.knowledge import strategies
from seal_lib.knowledge.corpus import WRITERS
from seal_lib.knowledge.domain import InnerLoop
from seal_lib.knowledge.evaluate import BASELINES
from seal_lib.knowledge.notes import NOTE_FILES
from seal_lib.loops.settings import OuterLoop, Pretraining
from seal_lib.models.checks import check_folder
from seal_lib.report.arms import plain
from seal_lib.runs import manifest, yaml_files
from seal_lib.runs.values import did_you_mean

if TYPE_CHECKING:
    from seal_lib.continual.rules.base import Rule


#: parameters that name data: a path on this machine, unless the value begins with ``world:`` or ``hub:``
SOURCES = ("passages", "practice", "prior", "tasks", "solutions", "practice_solutions")


def on_this_machine(values: Mapping[str, Any]) -> None:
    """Raise SealError if data or a model that the parameters name is missing here, or a model folder is incomplete.

    Names on the Hub are not looked up, so no network is used.
    """
    for key in SOURCES:
        value = str(values.get(key) or "world:")
        if not value.startswith(("world:", "hub:")) and not paths.given(value).exists():
            raise ParameterError(f"{key}: there is no {paths.given(value)}; give the path of your data, or fetch it.")
    for name in manifest.models_named(values).values():
        if Path(source := models.resolve(name)[0]).is_dir() and not name.startswith("seedling-"):
            check_folder(Path(source))


def check(values: Mapping[str, Any]) -> None:
    """Raise SealError, with one sentence, if a notebook cannot run with these parameters."""
    _arms(values)
    _elsewhere(values)
    puzzles = "tasks" in values
    known = [TestTimeTraining if puzzles else InnerLoop, OuterLoop, *([Pretraining] if "cpt_method" in values else [])]
    for settings in known:  # the settings classes check which values fit together
        fields = dataclasses.fields(settings)
        if all(field.name in values or field.default is not dataclasses.MISSING for field in fields):
            settings(**{field.name: values[field.name] for field in fields if field.name in values})
    if "temperature" in values:
        several = max(values.get(key, 1) for key in ("samples", "edits"))
        Sampling(values["edit_tokens"], values["temperature"], values["top_p"], several)
    for name in filter(None, (values.get("prompts"), values.get("reasoning"), *values.get("formats", ()))):
        (arc_prompts if puzzles else knowledge_prompts).load(name, values.get("prompts_file"))
    if "strategies" in values:
        studies = strategies.load(values["strategies"], values.get("strategies_file"))
        if values["strategy_writer"] == "made" and not str(values["passages"]).startswith("world:"):
            raise ParameterError("strategy_writer: made knows the made world only; take policy for real text.")
        if values["strategy_writer"] == "made" and (odd := [s.name for s in studies if not s.ready]):
            raise ParameterError(
                f"strategies: {odd[0]!r} has no notes of the made world; take strategy_writer: policy."
            )
    if values.get("knobs_file"):
        yaml_files.read(paths.given(values["knobs_file"]))
    lengths = values.get("lengths", [])
    if lengths and (lengths != sorted(lengths) or lengths[-1] > values["length"]):
        raise ParameterError(f"lengths={lengths} do not rise to {values['length']} at most; that many edits are made.")


def _elsewhere(values: Mapping[str, Any]) -> None:
    """Raise ParameterError unless a judge, a rater and an external writer are named exactly where they are used."""
    judge, external, rater = (str(values.get(key, "")) for key in ("judge", "external", "rater"))
    if "judge" in values and "grader" in values and (values["grader"] == "judge") != bool(judge):
        unused = f"judge: {judge!r} is named, but grader is {values['grader']!r}; set grader to judge."
        raise ParameterError(unused if judge else NOBODY)
    if external and "external" not in (*values.get("arms", ()), *values.get("controls", ())):
        raise ParameterError(f"external: {external!r} writes for an arm that is not run; add external to the arms.")
    rubrics = [values[key] for key in ("rubric", "poor_rubric") if key in values]
    if rubrics and ("judge" in rubrics) != bool(rater):
        unused = f"rater: {rater!r} is named, but no rubric is judge; set rubric to judge."
        raise ParameterError(unused if rater else NOBODY_RATES)
    if "facts" in rubrics and not str(values["passages"]).startswith("world:"):
        raise ParameterError("rubric: facts are known of the made world only; take length, likeness or judge.")
    for key, name in (("judge", judge), ("external", external), ("rater", rater)):
        if name and not name.endswith(NOTE_FILES):
            Other(name)
        elif name and not paths.given(name).is_file():
            raise ParameterError(f"{key}: there is no file {name}; give its path, or MODEL@URL.")


def rule_of(name: str) -> "type[Rule]":
    """Return the update rule of an arm; imports torch.

    Raises:
        ParameterError: no rule has this name.
    """
    from seal_lib.continual.rules import RULES

    if plain(name) not in RULES:
        hint = did_you_mean(plain(name), list(RULES)) or "choose from these."
        raise ParameterError(f"arms: {name!r} is not one of {', '.join(RULES)}; {hint}")
    return RULES[plain(name)]


def _arms(values: Mapping[str, Any]) -> None:
    study, tuning = "sequences" in values, "settings" in values
    known = WRITERS if "cpt_method" in values else BASELINES
    for key in ("arms", "own_arms", "controls"):
        for name in values.get(key, ()):
            if study:
                rule_of(name)
            elif name not in known:
                hint = did_you_mean(name, list(known)) or "choose from these."
                raise ParameterError(f"{key}: {name!r} is not one of {', '.join(known)}; {hint}")
            elif (way := getattr(known[name], "study", None)) and not way.ready:
                if str(values["passages"]).startswith("world:"):
                    raise ParameterError(f"{key}: {name!r} has no notes of the made world; take it for real text.")
            if tuning and name != plain(name):
                raise ParameterError(f"{key}: {name!r} has no knobs of its own; write {plain(name)!r}.")
    if study and not tuning and not any(rule_of(name).trains for name in values["arms"]):
        raise ParameterError("arms: none of these edits the weights, so nothing is forgotten; add one, as sequential.")
