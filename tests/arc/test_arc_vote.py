"""Views, votes and scores: vectors of the released code, ties, missing answers, tasks of several tests."""

import random

import pytest
from test_arc_examples import made

from seal_lib.arc import prompts
from seal_lib.arc.tasks import Task
from seal_lib.arc.vote import TURNS, majority, proposals, rates, score, subsets, views, vote
from seal_lib.errors import DataError

A, B, C = ((1, 1), (1, 1)), ((2, 2), (2, 2)), ((3,),)
GEOMETRIC = ("transpose", "flip0", "flip1", "rot180")


def plain(*grids) -> list:
    return [("identity", grid) for grid in grids]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (plain(A, A, A, B), (A, B)),
        (plain(A), (A, A)),
        (plain(A) + [(turn, B) for turn in GEOMETRIC], (B, A)),
        (plain(A, A) + [(turn, B) for turn in GEOMETRIC[:3]], (B, A)),
        (plain(*[A] * 10) + [(turn, B) for turn in GEOMETRIC[:2]], (B, A)),
        (plain(*[A] * 10) + [("flip0", B)], (A, B)),
        ([], ()),
    ],
)
def test_vectors_of_the_facts(answers, expected) -> None:
    assert vote(answers) == expected
    draws = random.Random(0)
    for _ in range(5):  # whatever the order of the answers
        draws.shuffle(answers)
        assert vote(answers) == expected


def test_a_tie_for_the_second_attempt_goes_to_what_was_answered_unturned() -> None:
    turned = [("transpose", grid) for grid in (A, A, C)]
    assert vote(turned + plain(A, A, B)) == vote(plain(A, A, B) + turned) == (A, B)


def test_three_different_answers_prefer_the_one_the_others_agree_with() -> None:
    x, y, z = ((1, 1), (2, 2)), ((1, 1), (3, 3)), ((4, 4), (2, 2))
    for order in ((x, y, z), (z, y, x), (y, z, x)):
        assert vote(plain(*order))[0] == x


def test_majority_is_taken_within_the_most_common_shape() -> None:
    x, y, z = ((1, 1), (2, 2)), ((1, 1), (3, 3)), ((4, 4), (2, 2))
    assert majority([C, x, y, z]) == x
    assert majority([((1, 2), (1, 2)), ((1, 3), (1, 3)), ((4, 2), (4, 2))], columns=True) == ((1, 2), (1, 2))
    assert proposals([A, A, B]) == [(A, 2), (B, 1), (A, 0)]
    assert proposals([A]) == [(A, 1), (A, 0), (A, 0)]


def test_an_unknown_turn_is_an_error() -> None:
    with pytest.raises(DataError, match="rot45"):
        vote([("rot45", A)])


@pytest.mark.parametrize(("n", "few", "all_"), [(2, 2, 7), (3, 5, 10), (4, 11, 16), (5, 15, 20), (6, 18, 23)])
def test_number_of_views(n, few, all_) -> None:
    task = made(n)
    assert len(subsets(task, 0)) == few
    seen = views(task, 0)
    assert len(seen) == all_ and [v.turn for v in seen[:few]] == ["identity"] * few
    assert {v.turn for v in seen} == set(TURNS) and seen == views(task, 0)
    for view in seen:  # what a perfect model answers is turned back to the truth
        assert len(view.example.demonstrations) == n - 1
        assert view.back(view.example.target.output) == task.solutions[0]
        assert view.back(view.example.target.input) == task.tests[0]


def test_what_is_asked_does_not_depend_on_the_answer() -> None:
    task = made(3)
    unknown = Task(task.id, task.train, task.tests)
    ask = prompts.load("chat").question
    asked = [[ask(view.example) for view in views(t, 0)] for t in (task, unknown)]
    assert asked[0] == asked[1] and len(asked[0]) == 10


TWO = Task("two", made(2).train, (A, B), (B, A))


def test_a_task_is_right_only_if_every_output_is() -> None:
    right = score(TWO, [(B,), (C, A)])
    assert right.pass_2 and not right.pass_1 and right.first == (True, False)
    dropped = score(TWO, [(B, C)])
    assert not dropped.pass_2 and dropped.either == (True, False)
    assert rates([right, dropped]) == {"pass_1": 0.0, "pass_2": 0.5, "outputs": 0.75}
    unanswered = score(TWO, [(), (A,)])
    assert unanswered.either == (False, True) and not unanswered.pass_2


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(DataError, match="4 answers for 2"):
        score(TWO, [(A,)] * 4)
    with pytest.raises(DataError, match="no solutions"):
        score(Task("t", TWO.train, TWO.tests), [])
    with pytest.raises(DataError, match="more than two"):
        score(TWO, [(A, B, C)])
    with pytest.raises(DataError, match="no task"):
        rates([])
