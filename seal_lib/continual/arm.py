"""The arms of the forgetting study: an update rule with its knobs, and who writes the self-edits that it trains on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seal_lib import paths
from seal_lib.continual.lab import Lab
from seal_lib.continual.rules import RULES
from seal_lib.continual.rules.base import Rule
from seal_lib.errors import DataError
from seal_lib.report.arms import arm_label, family_of_arm, plain
from seal_lib.runs import yaml_files

TUNED = Path(__file__).with_name("tuned.yaml")


@dataclass(frozen=True)
class Arm:
    """A named update rule with its knobs.

    If ``live``, the edited model theta_{k-1} writes self-edit k just before that edit.
    """

    name: str
    rule: str
    knobs: Mapping[str, float] | None = None
    live: bool = False

    def make(self, lab: Lab) -> Rule:
        if self.rule not in RULES:
            raise DataError(f"arms: {self.rule!r} is not one of {', '.join(RULES)}.")
        return lab.rule(RULES[self.rule], **(self.knobs or {}))


def arms_of(names: Sequence[str], knobs_file: str | None = None) -> list[Arm]:
    """Return one arm per name, with the knobs of a YAML file (``rule: {knob: value}``) or else the rules' defaults.

    A name is a rule's, optionally with the suffix ``_own`` (the unedited model writes all self-edits once) or ``_live``
    (theta_{k-1} writes each self-edit, as in the authors' code).
    """
    found = tuned(paths.given(knobs_file)) if knobs_file else {}
    rules = {name: plain(name) for name in names}
    return [Arm(name, rule, found.get(rule), live=name.endswith("_live")) for name, rule in rules.items()]


def tuned(file: Path = TUNED) -> dict[str, dict]:
    """Return the knobs in a YAML file, by default the committed ones; a rule that is not listed keeps its defaults."""
    found = yaml_files.read(Path(file)) or {}
    unknown = sorted(set(found) - set(RULES))
    if unknown:
        raise DataError(f"{Path(file).name}: {unknown[0]!r} is no update rule; choose from {', '.join(RULES)}.")
    return found


def notes_by(arm: str, writer: str) -> str:
    """Return who wrote the self-edits that an arm trains on; ``writer`` is the run's parameter of that name."""
    if arm.endswith("_live"):
        return "the edited model, before each edit"
    if arm.endswith("_own") or writer == "policy":
        return "the unedited model, once"
    return "–" if family_of_arm(arm) == "reference" else arm_label(writer.partition(":")[2]).removesuffix("'s notes")


def stores_text(arm: str) -> bool:
    """Return whether the rule of an arm trains and keeps text beside the weights."""
    rule = RULES[plain(arm)]
    return rule.trains and "text" in rule.stores
