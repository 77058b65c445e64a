"""Graders against a hand-labelled table: SQuAD exact match, F1, containment, blank."""

import pytest

from seal_lib.grading.graders import contains, exact_match, f1, grade, is_blank, normalise
from seal_lib.records import Question

# answer, gold, exact, F1, contains, blank
TABLE = [
    ("Paris", "Paris", 1, 1, 1, False),
    ("paris.", "Paris", 1, 1, 1, False),
    ("The Eiffel Tower", "eiffel tower", 1, 1, 1, False),
    ("  a\tcat \n", "the cat", 1, 1, 1, False),
    ("In Paris, France", "Paris", 0, 1 / 2, 1, False),  # P 1/3, R 1
    ("Paris", "Paris France", 0, 2 / 3, 0, False),  # P 1, R 1/2
    ("London", "Paris", 0, 0, 0, False),
    ("parish church", "Paris", 0, 0, 0, False),  # whole words only
    ("church of Notre Dame in Paris", "Notre-Dame", 0, 0, 0, False),  # hyphens vanish, they do not split
    ("state of the art", "state of art", 1, 1, 1, False),
    ("New York City", "York New", 0, 4 / 5, 0, False),  # containment needs the order
    ("cat cat", "cat", 0, 2 / 3, 1, False),  # a repeated word counts once
    ("1,000", "1000", 1, 1, 1, False),
    ("10000", "1000", 0, 0, 0, False),
    ("Beyoncé", "beyoncé", 1, 1, 1, False),
    ("Beyonce", "Beyoncé", 0, 0, 0, False),
    ("Angel", "an gel", 0, 0, 0, False),  # articles are words, not letters
    ("", "Paris", 0, 0, 0, True),
    (" \n", "Paris", 0, 0, 0, True),
    ("...", "Paris", 0, 0, 0, True),
    ("the", "Paris", 0, 0, 0, False),  # says something, and it is wrong
    ("", "the", 0, 0, 0, True),  # silence is never right, whatever the gold
    ("the", "the", 0, 0, 0, False),
    ("北京", "北京", 1, 1, 1, False),
    ("—", "Paris", 0, 0, 0, True),
]


@pytest.mark.parametrize(("answer", "gold", "exact", "overlap", "inside", "blank"), TABLE)
def test_hand_labelled(answer: str, gold: str, exact: float, overlap: float, inside: float, blank: bool) -> None:
    assert exact_match(answer, gold) == exact
    assert f1(answer, gold) == pytest.approx(overlap, abs=1e-12)
    assert contains(answer, gold) == inside
    assert is_blank(answer) is blank


def test_grades_keep_their_order() -> None:
    for answer, gold, *_ in TABLE:
        assert exact_match(answer, gold) <= min(contains(answer, gold), f1(answer, gold)) <= 1


def test_normalise_is_idempotent_and_a_graded_answer_keeps_the_text_as_given() -> None:
    for answer, *_ in TABLE:
        assert normalise(normalise(answer)) == normalise(answer)
    given = grade(Question("Where?", "Paris"), "In Paris!", "contains")
    assert (given.question, given.gold, given.text) == ("Where?", "Paris", "In Paris!")
    assert given.grades == {"exact": 0.0, "contains": 1.0, "f1": pytest.approx(2 / 3)} and not given.blank
