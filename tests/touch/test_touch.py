"""Things to touch: a widget where a person sits, and what it shows at first where nobody does.

Run: pytest tests/touch/test_touch.py
"""

import IPython.display
import pytest

from seal_lib import touch
from seal_lib.records import Answer, Passage, PassageTrial, Question
from seal_lib.runs import progress

PASSAGE = Passage("p", "Title", "the passage", (Question("who?", "she"),))


class Screen:
    """What was displayed, and what later took its place."""

    def __init__(self) -> None:
        self.shown, self.updates = [], []

    def display(self, thing, display_id: bool = False):
        self.shown.append(thing)
        return self if display_id else None

    def update(self, thing) -> None:
        self.updates.append(thing)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen()
    monkeypatch.setattr(progress, "context", lambda: "jupyter")
    monkeypatch.setattr(IPython.display, "display", made.display)
    return made


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inner loop, of which only the text is seen; the seeds that it was given."""
    seeds: list[int] = []

    def try_all(policy, candidates, domain) -> list[PassageTrial]:
        seeds.extend(c.seed for c in candidates)
        answers = (Answer("who?", "she", "she", {"exact": 1.0}, False),)
        return [PassageTrial(c.id, c.unit.id, c.arm, c.edit, c.seed, answers, "exact") for c in candidates]

    monkeypatch.setattr(touch, "try_all", try_all)
    return seeds


def test_an_executed_copy_shows_the_first_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "context", lambda: "batch")
    assert touch.choose(lambda a, b: (a, b), a={"one": 1, "two": 2}, b={"three": 3}) == (1, 3)


@pytest.mark.parametrize("slider", [False, True])
def test_a_menu_and_a_slider_change_what_is_shown(screen: Screen, slider: bool) -> None:
    assert touch.choose(lambda a, b: (a, b), slider, a={"one": 1, "two": 2}, b={"three": 3, "four": 4}) is None
    controls, first = screen.shown
    assert first == (1, 3)  # plain output, which a saved notebook keeps
    controls.children[0].value = "two"
    controls.children[1].value = "four"
    assert screen.updates == [(2, 3), (2, 4)]


CELLS = {(0.1, 2): "best", (0.01, 2): "slow", (0.01, 8): "long"}


def test_a_click_on_a_cell_shows_what_is_behind_it(screen: Screen) -> None:
    assert touch.click(str.upper, CELLS, lambda value: f"<{value}>", "rate", "epochs") is None
    grid, first = screen.shown
    assert first == "BEST"
    texts = [getattr(child, "value", None) or getattr(child, "description", "") for child in grid.children]
    assert texts == ["rate ↓  epochs →", "2", "8", "0.1", "<best>", "", "0.01", "<slow>", "<long>"]
    for number in (7, 8, 4):
        grid.children[number].click()
    assert screen.updates == ["SLOW", "LONG", "BEST"]


def test_cells_in_a_copy_show_the_first_and_none_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "context", lambda: "batch")
    assert touch.click(str.upper, CELLS, str, "rate", "epochs") == "BEST"
    assert touch.click(str.upper, {}, str, "rate", "epochs") is None


def test_notes_of_your_own_are_trained_on_when_the_button_is_pressed(screen: Screen, tried: list[int]) -> None:
    assert touch.write_notes(None, PASSAGE, None, "notes at first") is None
    (box, button), first = screen.shown[0].children, screen.shown[1]
    assert "notes at first" in first.data and "no self-edit" in first.data and box.value == "notes at first"
    box.value = "mine <b>"
    button.click()
    assert "mine &lt;b&gt;" in screen.updates[-1].data and not button.disabled


def test_a_copy_shows_what_the_first_notes_teach(monkeypatch: pytest.MonkeyPatch, tried: list[int]) -> None:
    monkeypatch.setattr(progress, "context", lambda: "batch")
    assert "the passage" in touch.write_notes(None, PASSAGE, None, seed=7).data  # without notes the passage stands in
    assert tried == [7, 7]
