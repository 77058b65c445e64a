"""Decide what answers a question: the base, the passage in view, or an adapter. A route is a row of `ROUTES`.

It reads what the store holds and has measured, and loads no model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seal_lib.errors import ParameterError
from seal_lib.records import Passage
from seal_lib.store.database import Store
from seal_lib.store.learning import accuracy
from seal_lib.store.retrieval import Match, threshold
from seal_lib.store.schema import Edit
from seal_lib.store.search import Search
from seal_lib.store.texts import Part

#: share of its own questions that an adapter must answer right to be used instead of the passage in view
TRUST = 0.75
NOWHERE = Part(Passage("", "", "", ()), "", "")  # where no passage matches


@dataclass(frozen=True)
class Evidence:
    """The facts about a question that are known before it is asked.

    ``match``: the best passage, None if there is none; ``part``: the same with its place; ``needed``: the weight from
    which a match is trusted; ``told``: both in words; ``edit``: the edit in use for that passage; ``right``: share of
    its own questions that are right after it.
    """

    match: Match | None
    part: Part
    needed: float
    told: str
    edit: Edit | None
    right: float

    @property
    def found(self) -> bool:
        return self.match is not None and self.match.weight >= self.needed


def _edit(e: Evidence) -> str:
    kind = "merged weights hold edit" if e.edit and e.edit.state == "merged" else "edit"
    return f"{kind} {e.edit.id if e.edit else 0}"


def _base(e: Evidence) -> tuple[str, str]:
    return "before", f"{e.told}, so the model says what it knew before"


def _measured(e: Evidence) -> tuple[str, str]:
    if not e.found:
        return _base(e)
    if e.edit is None:
        return "in_view", "no edit of this passage is in use, so it is read"
    if e.right >= TRUST:
        return "after", f"{_edit(e)}, which has {e.right:.0%} of its own questions right"
    return "in_view", f"{_edit(e)} has only {e.right:.0%} of its own questions right, so the passage is read"


def _retrieval(e: Evidence) -> tuple[str, str]:
    return ("in_view", "the passage is read") if e.match else _base(e)


#: route → its function from evidence to (stage, why); stages are those of `seal_lib.store.schema`, and "both": the
#: adapter of a passage with that passage in view
ROUTES: dict[str, Callable[[Evidence], tuple[str, str]]] = {
    "measured": _measured,
    "weights": lambda e: ("after", _edit(e)) if e.edit else ("before", "no edit of a passage that fits is in use"),
    "retrieval": _retrieval,
    "both": lambda e: ("both", f"{_edit(e)} reads the passage") if e.edit else _retrieval(e),
}


#: the last measured threshold, by what it was measured on: a server makes a router for each call, and measuring takes
#: seconds with hundreds of passages
_NEEDED: dict[tuple, float] = {}


class Router:
    """Routes questions for one base, from the store as it is when the router is made."""

    def __init__(self, store: Store, weights: str, way: str = "measured", search: Search | None = None) -> None:
        """Index the store's passages, and measure the weight from which a match is trusted.

        Args:
            weights: hash of the base (`seal_lib.models.weight_hash`); an edit of another base is taken only for a
                passage that has none of this one.
            way: a key of `ROUTES`.
            search: how the passage of a question is found; None: by its words.

        Raises:
            ParameterError: there is no such route.
        """
        if way not in ROUTES:
            raise ParameterError(f"route: {way!r} is not one of {', '.join(ROUTES)}.")
        self.way, self._parts = way, {part.id: part for part in store.passages()}
        search = search or Search()
        self._index = search.index(store, [part.passage for part in self._parts.values()])
        edits = store.edits("merged") + store.edits("active")  # an active one is newer than a merged one
        ranked = sorted(edits, key=lambda edit: (edit.weights == weights, edit.state == "active"))
        self._edits = {edit.passage.id: edit for edit in ranked}
        asked = [(q.question, edit.passage.id) for edit in edits for q in edit.questions]
        on = search, tuple(self._parts), tuple(asked)
        if on not in _NEEDED:
            _NEEDED.clear()
            _NEEDED[on] = threshold(self._index, asked)
        self.needed = _NEEDED[on]

    def routes(self, questions: Sequence[str]) -> list[tuple[Evidence, str, str]]:
        """Return (evidence, the stage that answers, why) for each question."""
        ranked = self._index.rank_all(questions, 1)
        several = [self._evidence(found[0] if found else None) for found in ranked]
        return [(evidence, *ROUTES[self.way](evidence)) for evidence in several]

    def _evidence(self, match: Match | None) -> Evidence:
        index = self._index
        told = index.told.format(weight=match.weight, needed=self.needed) if match else index.none
        part = self._parts[match.passage.id] if match else NOWHERE
        edit = self._edits.get(part.id)
        right = accuracy(edit.questions, "after", edit.recipe["grader"]) if edit else 0.0
        return Evidence(match, part, self.needed, told, edit, right)

    def route(self, question: str) -> tuple[Evidence, str, str]:
        """Return (evidence, the stage that answers, why)."""
        return self.routes([question])[0]
