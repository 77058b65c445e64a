"""Prepare what a command needs: the settings of notebook 03, a model with them, the store, a bar."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from seal_lib import paths
from seal_lib.errors import DataError, ParameterError
from seal_lib.knowledge import prompts
from seal_lib.knowledge.domain import InnerLoop, Knowledge
from seal_lib.loops.policy import Policy, Source
from seal_lib.loops.settings import OuterLoop
from seal_lib.runs import params
from seal_lib.runs.lifecycle import Scratch
from seal_lib.runs.progress import Progress
from seal_lib.store.database import Store
from seal_lib.store.learning import Learner, OwnQuestions
from seal_lib.store.search import Search
from seal_lib.store.transactions import FILE

NOTEBOOK = "03_your_document"


class Bar(Scratch):
    """A run that keeps no rows and shows the progress of each phase on a terminal."""

    def map(self, phase: str, units: Sequence, fn: Callable[[list], list[dict]], chunk: int = 32) -> list[dict]:
        bar = Progress(phase, total=len(units))

        def told(part: list) -> list[dict]:
            rows = fn(part)
            bar.update(len(part))
            return rows

        rows = super().map(phase, units, told, chunk)
        bar.close()
        return rows


@dataclass(frozen=True)
class Session(Learner):
    """A learner with how it finds passages, from the parameters of the notebook."""

    search: Search = Search()


def session(values: dict[str, Any]) -> Session:
    """Load the model and make its settings from parameters (those of `NOTEBOOK`)."""
    search = params.pick(Search, values)
    source = Source(values["model"], values["dtype"], values["revision"])
    policy = Policy("untrained", *source.load(values["device"]), values["engine"], source)
    domain = Knowledge(params.pick(InnerLoop, values), prompts.load(values["prompts"]))
    outer = OuterLoop(**{key: values[key] for key in ("samples", "temperature", "top_p", "edit_tokens")})
    own = OwnQuestions(prompts.load(values["question_prompts"]), values["question_samples"])
    return Session(policy, domain, outer, own, seed=values["seed"], search=search)


def assigned(texts: Sequence[str]) -> dict[str, object]:
    """Return the parameters that ``--set KEY=VALUE`` gives; raise ParameterError if one has no value."""
    pairs = [text.partition("=") for text in texts]
    wrong = next((key for key, mark, _ in pairs if not mark), None)
    if wrong is not None:
        raise ParameterError(f"--set {wrong} has no value; write --set {wrong}=VALUE.")
    return {key: value for key, _, value in pairs}


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters that a command line asks for."""
    values = assigned(given.set)
    if given.model:
        values["model"] = given.model
    shipped = str(values.get("model", "seedling-")).startswith("seedling-")
    return params.resolve(NOTEBOOK, given.scale or ("seedling" if shipped else "small"), values)


def store_of(folder: str, begin: bool = False) -> Store:
    """Return the store in the folder that a person named, or in the default one.

    Only commands that learn (``begin``) make one that is not there.

    Raises:
        DataError: there is none.
    """
    place = paths.expanded(folder) if folder else paths.data() / "store"
    if not begin and not (place / FILE).is_file():
        raise DataError(f"There is no store in {place}; `seal learn DOCUMENT` begins one, --store names another.")
    return Store(place)


def tell(text: str) -> None:
    """Print to stderr what is not part of the result."""
    print(text, file=sys.stderr)
