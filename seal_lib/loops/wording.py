"""Prompt templates: read sets of them, and fill the slots of a text."""

import re
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.runs import yaml_files


def fill(template: str, **values: str) -> str:
    """Replace every ``{slot}`` by its value; braces inside values stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)


def entries(shipped: Path, file: str | None, form: str) -> dict[Any, tuple[dict, str]]:
    """Return name → (entry, name of its file) of the shipped YAML file; those of the user's ``file`` take precedence.

    Raises:
        DataError: the user's file does not hold entries by name; the message says the ``form`` that they have.
    """
    found = {name: (entry, shipped.name) for name, entry in yaml_files.read(shipped).items()}
    if not file:
        return found
    own = yaml_files.read(paths.given(file))
    if not isinstance(own, dict) or not all(isinstance(entry, dict) for entry in own.values()):
        raise DataError(f"{file}: expected `name: {{{form}}}` entries.")
    return found | {name: (entry, file) for name, entry in own.items()}


def check_slots(entry: dict, slots: dict[str, tuple[str, ...]], where: str) -> None:
    """Raise DataError if a template of an entry lacks one of its slots (key → slots)."""
    for key, names in slots.items():
        for name in names:
            if "{" + name + "}" not in entry[key]:
                raise DataError(f"{where}, {key}: the slot {{{name}}} is missing from the template.")
