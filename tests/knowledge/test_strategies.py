"""Many self-edits in one adapter, strategies as data, diversity, and the lines by amount."""

import json
from dataclasses import replace

import pytest
from fixtures_seal import DOMAIN, INNER, WORDING, MemoryRun, made, plain_passage, seedling, trial, trials_of

from seal_lib.errors import DataError, SealError
from seal_lib.generation.contract import Completion
from seal_lib.knowledge import corpus, relations, strategies
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.world import describe_notes
from seal_lib.loops.domain import Candidate
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.plan.checks import check
from seal_lib.records import Round, SelfEdit
from seal_lib.report import plots
from seal_lib.report.arms import amount_of, arm_label, arm_rank, colour, with_amount


def edit(text: str, k: int = 0) -> SelfEdit:
    return SelfEdit(f"p/{k}", "p", text, "policy")


def several(*texts: str) -> Candidate:
    first, *more = (edit(text, k) for k, text in enumerate(texts))
    return Candidate("c", plain_passage(), first, "arm", 1, more=tuple(more))


# ---------------------------------------------------------------------------------------- several self-edits


def test_an_adapter_is_trained_on_the_documents_of_all_its_self_edits_and_once_on_the_passage() -> None:
    texts = [d.text for d in DOMAIN.documents(plain_passage(), "one\ntwo", "three", "")]
    assert texts == ["Title\none", "Title\ntwo", "Title\nthree", "Title\nSome text."]
    tokenizer = seedling()[1]
    one, three = (DOMAIN.jobs([several(*t)], tokenizer)[0] for t in (("one\ntwo",), ("one\ntwo", "three", "four")))
    assert len(one.examples) == 3 and len(three.examples) == 5
    assert three.examples[:2] == one.examples[:2] and three.examples[-1].ids == one.examples[-1].ids


def test_each_self_edit_is_read_by_itself() -> None:
    authors = Knowledge(replace(INNER, protocol="authors_v1", pad_loss="full", targets="qv"), WORDING)
    questions = "Question 1: a?\nAnswer: b"
    texts = [d.text for d in authors.documents(plain_passage(), questions, "a line\nanother")]
    assert texts[:-1] == [f"Title\n{questions}", "Title\na line", "Title\nanother"]  # the lines are no answer


def test_a_budget_keeps_the_first_documents_that_fit_with_the_passage() -> None:
    tokenizer, texts = seedling()[1], ("one\ntwo two two", "three")
    sizes = [len(example.ids) for example in DOMAIN.examples(several(*texts), tokenizer)]
    assert len(sizes) == 4
    for limit, kept in (
        (sum(sizes), [0, 1, 2, 3]),
        (sum(sizes) - 1, [0, 1, 3]),
        (sizes[0] + sizes[3], [0, 3]),
        (sizes[0] + sizes[3] - 1, [3]),
        (1, [3]),
    ):
        small = Knowledge(replace(INNER, token_limit=limit), WORDING)
        found = [len(example.ids) for example in small.examples(several(*texts), tokenizer)]
        assert found == [sizes[i] for i in kept], limit
    alone = Knowledge(replace(INNER, token_limit=sizes[0], add_passage=False), WORDING)
    assert [len(e.ids) for e in alone.examples(several(*texts), tokenizer)] == sizes[:1]
    assert "token_limit=9" in replace(INNER, token_limit=9).label and "token_limit" not in INNER.label


def test_a_trial_of_several_is_empty_only_if_all_are_and_counts_what_any_lost() -> None:
    (empty,), (one,) = trials_of([several("", " ")]), trials_of([several("", "```\na note")])
    assert (empty.outcome, one.outcome) == ("empty_edit", "ok") and one.left_out == {"marks": 1}


# --------------------------------------------------------------------------------------------- strategies


def test_shipped_strategies_ask_for_the_passage_and_keep_the_rest_of_the_prompt_set() -> None:
    names = ["copying", "paraphrase", "questions", "study-guide", "relations", "contrasts", "teach-back"]
    for study in strategies.load(names):
        asked = study.prompts(replace(WORDING, opening="- Which ", after="x"))
        assert "Secret text." in asked.write(plain_passage("Secret text.")) and asked.opening == asked.after == ""
        assert asked.answer == WORDING.answer and arm_label(study.arm) != study.arm


def test_notes_of_the_made_world_are_of_the_strategys_kind_drawn_anew_and_repeatable() -> None:
    (passage,) = made(1)
    paraphrase, questions, copying, guide, relations = strategies.load(
        ["paraphrase", "questions", "copying", "study-guide", "relations"]
    )
    for study, style, covered in ((paraphrase, "forward", 1), (questions, "questions", 1), (copying, "verbatim", 0)):
        several = study.notes(passage, 4, seed=0)
        about = [describe_notes(e.text, passage) for e in several]
        assert {d["style"] for d in about} == {style} and {d["coverage"] for d in about} == {covered}
        assert len({e.text for e in several}) == 4 and [*study.notes(passage, 6, seed=0)][:4] == several
        assert study.notes(passage, 4, seed=1) != several
    assert guide.notes(passage, 1, seed=0)[0].text
    for study, where, says in (
        (relations, passage, "no notes of the made world"),
        (guide, plain_passage(), "real text"),
    ):
        with pytest.raises(DataError, match=says):
            study.notes(where, 1, seed=0)


def test_a_strategy_that_relates_things_writes_in_both_worlds_and_says_where_it_has_no_text() -> None:
    (passage,) = made(1)
    pairs, both = strategies.load(["entigraph-pairs", "entigraph"])
    assert (pairs.arm, both.arm) == ("entigraph_pairs", "entigraph") and pairs.write == both.write
    notes = both.notes(passage, 4, seed=0)
    assert len({e.id for e in notes}) == 4 and notes[0].text == pairs.notes(passage, 1, seed=0)[0].text
    assert notes[1].text == relations.made(passage, 3, 1, 0)[0].text  # the first pair, the first triple, …

    class Writes:
        def generate(self, requests, sampling):
            said = ["- Rome\n- Nero" if "one a line" in r.prompt else "They met." for r in requests]
            return [[Completion(text, 3, "eos")] for text in said]

    class Speaks(Policy):
        def generator(self):
            return Writes()

    written = strategies.write(
        MemoryRun(),
        Speaks("writer", *seedling()),
        [plain_passage("Nero saw Rome.", name="a")],
        Knowledge(INNER, WORDING),
        OuterLoop(),
        phase="w",
        count=3,
        seed=0,
        study=pairs,
    )
    assert [e.text for e in written["a"]] == ["They met.", "", ""]  # two things make one pair


def test_every_strategy_is_a_writer_of_a_corpus() -> None:
    study = corpus.writer_of("strategy_paraphrase").study
    assert study == strategies.load(["paraphrase"])[0]
    (passage,) = made(1)
    texts = corpus.write(MemoryRun(), None, [passage], "strategy_paraphrase", None, None, count=2, seed=0)
    assert [t.text for t in texts] == [e.text for e in study.notes(passage, 2, seed=0)]
    told = {"cpt_method": "full", "arms": ["strategy_contrasts"], "passages": "world:heldout"}
    with pytest.raises(SealError, match="'strategy_contrasts' has no notes of the made world"):
        check(told)
    check(told | {"passages": "hub:rajpurkar/squad"})


def test_a_file_of_strategies_adds_and_wins_and_wrong_ones_are_named(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        json.dumps(
            {
                "songs": {"write": "Sing of {passage}"},
                "questions": {"write": "{passage}?"},
                "mute": {"write": "Nothing"},
                "odd": {"write": "{passage}", "pieces": "x"},
                "lost": {"write": "{passage}", "made": "ballad"},
                "apart": {"write": "{passage}", "groups": [2], "listing": "{passage}"},
            }
        )
    )
    songs, questions = strategies.load(["songs", "questions"], str(file))
    assert songs.made is None and questions.write == "{passage}?" and songs.arm == "strategy_songs"
    for name, says in (
        ("mute", "slot {passage}"),
        ("odd", "'pieces' is unknown"),
        ("lost", "'ballad' is no note"),
        ("apart", "write needs the slot {entities}"),
        ("none", "'none' is not one of"),
    ):
        with pytest.raises(DataError, match=says):
            strategies.load([name], str(file))
    known = {"strategies": ["relations"], "strategy_writer": "made", "passages": "world:heldout"}
    for changes, says in (({}, "'relations' has no notes"), ({"passages": "a.json"}, "knows the made world only")):
        with pytest.raises(SealError, match=says):
            check(known | changes)
    check(known | {"strategy_writer": "policy"})


def test_in_turn_takes_the_first_of_each_then_the_second_of_each() -> None:
    a, b = ({"p": [edit(f"{name}{k}") for k in range(3)]} for name in "ab")
    assert [e.text for e in strategies.in_turn([a, b], 5)["p"]] == ["a0", "b0", "a1", "b1", "a2"]


def test_more_self_edits_and_bigger_budgets_train_more_and_writers_share_their_draws() -> None:
    passages, run = made(2), MemoryRun()
    (study,) = strategies.load(["paraphrase"])
    written = {p.id: study.notes(p, 3, seed=0) for p in passages}
    quick = Knowledge(replace(INNER, epochs=1), WORDING)
    policy = Policy("untrained", *seedling())
    found = strategies.train_on_amounts(
        run, policy, passages, written, quick, arm="a", counts=[1, 3], budgets=[150], seed=0, group="g/"
    )
    assert [*found] == ["a_x1", "a_x3", "a_t150"] and [*run.phases] == [f"g/amount/{name}" for name in found]
    tokens = {name: [t.tokens for t in several] for name, several in found.items()}
    assert all(x1 < x3 for x1, x3 in zip(tokens["a_x1"], tokens["a_x3"], strict=True))
    assert all(120 < t <= 150 for t in tokens["a_t150"]) and min(tokens["a_x3"]) > 150
    again = strategies.train_on_amounts(
        MemoryRun(), policy, passages, written, quick, arm="b", counts=[1], budgets=[], seed=0
    )
    assert [t.first_loss for t in again["b_x1"]] == [t.first_loss for t in found["a_x1"]]


# ------------------------------------------------------------------------------------- diversity and lines


def test_diversity_by_hand() -> None:
    one, other = "Ada lives in Rome now", "Ada lives in Paris now"
    assert strategies.distinct([one, one]) == 0.5 and strategies.overlap([one, one]) == 1.0
    # trigrams: ada-lives-in, lives-in-X, in-X-now: one of three is shared, so five are different and one in five
    assert strategies.distinct([one, other]) == pytest.approx(5 / 6) and strategies.overlap([one, other]) == 1 / 5
    assert strategies.overlap(["one two six\nnine ten four", "one two six nine ten four"]) == pytest.approx(
        2 / 4
    )  # none across lines
    assert strategies.overlap(["short", "short"]) == 1.0 == strategies.overlap(["", ""])
    assert str(strategies.overlap([one])) == str(strategies.distinct([""])) == "nan"


def test_arms_with_amounts_are_read_ranked_and_painted_as_their_writer() -> None:
    arm = with_amount("seal_round_1", "x", 3)
    assert amount_of(arm) == ("seal_round_1", "x", 3) and amount_of("seal_round_1") is None
    assert arm_label(arm) == "SEAL, round 1: 3 self-edits" and arm_label("own_untrained_t400").endswith(": 400 tokens")
    assert arm_label("own_untrained_x1").endswith(": 1 self-edit") and colour(arm) == colour("seal_round_1")
    order = ["own_untrained_x3", "own_untrained_x10", "own_untrained_t5", "seal_round_1_x1"]
    assert sorted(reversed(order), key=arm_rank) == order


def rows_of(right: dict[str, dict[str, int]]) -> list[dict]:
    """Lines of writer → amount → how many of ten passages are right; each self-edit is trained on 100 tokens."""
    trials = {
        arm: {
            f"{arm}_{amount}": [replace(trial(f"p{i}", [int(i < n)]), tokens=100 * int(amount[1:])) for i in range(10)]
            for amount, n in by_amount.items()
        }
        for arm, by_amount in right.items()
    }
    written = {arm: {0: {f"p{i}": [edit("a b c"), edit("a b c")] for i in range(10)}} for arm in right}
    done = (replace(trial("q", [1]), tokens=2000),)
    rounds = {0: [Round(1, done, (1.0,), (), by_seed=((1.0, 1.0),))]}
    label = {"protocol": "clean", "model": "m", "grader": "exact"}
    return strategies.amount_rows(trials, written, rounds, trained="seal_round_1", counts=[1, 9], budgets=[5], **label)


BOTH = {"own_untrained": {"x1": 0, "x9": 10, "t5": 2}, "seal_round_1": {"x1": 1, "x9": 10, "t5": 10}}


def test_every_writer_has_a_line_at_every_amount_and_all_differences_are_one_family() -> None:
    rows = rows_of(BOTH | {"strategy_copying": {"x1": 0, "x9": 0, "t5": 0}})
    level = {row["arm"]: row["value"] for row in rows if row["metric"] == "accuracy"}
    assert level["own_untrained_x9"] == 1.0 and level["strategy_copying_t5"] == 0.0 and len(level) == 9
    apart = {row["arm"]: row["value"] for row in rows if row["metric"] == "difference"}
    assert apart == {
        "seal_round_1_t5 - own_untrained_t5": 0.8,
        "strategy_copying_t5 - own_untrained_t5": -0.2,
        "strategy_copying_t5 - seal_round_1_t5": -1.0,
        "seal_round_1_x1 - own_untrained_x1": 0.1,
        "seal_round_1_x9 - own_untrained_x9": 0.0,
        "own_untrained_x9 - seal_round_1_x1": 0.9,
    }
    values = {(row["arm"], row["metric"]): row["value"] for row in rows}
    assert values["own_untrained_x9", "overlap"] == 1.0 and values["own_untrained_x9", "distinct"] == 0.5
    assert values["seal_round_1", "tokens_reward"] == 4000  # two reward seeds
    assert values["own_untrained_x9", "tokens_per_edit"] == 900


def test_the_reading_says_who_wins_only_where_it_can_be_told() -> None:
    said = strategies.in_words(rows_of(BOTH), "seal_round_1", [1, 9])
    assert "on 5 passages" in said and "count wins" in said  # 4000 tokens of rounds, 800 saved a passage
    same = {"own_untrained": {"x1": 0, "x9": 5, "t5": 2}, "seal_round_1": {"x1": 5, "x9": 5, "t5": 2}}
    assert "no difference can be told" in strategies.in_words(rows_of(same), "seal_round_1", [1, 9])
    better = {"own_untrained": {"x1": 0, "x9": 0, "t5": 2}, "seal_round_1": {"x1": 10, "x9": 10, "t5": 2}}
    assert "choice wins" in strategies.in_words(rows_of(better), "seal_round_1", [1, 9])


@pytest.mark.parametrize(("against", "places"), [("x", [1, 9]), ("tokens", [100, 500, 900])])
def test_the_figure_has_a_line_a_writer_with_every_amount_in_its_place(against: str, places: list[int]) -> None:
    import matplotlib.pyplot as plt
    import pandas as pd

    _, ax = plt.subplots()
    table = pd.DataFrame(rows_of(BOTH)).assign(paper_value=float("nan"), paper_source="", run="r")
    plots.accuracy_by_amount(table, ax, against)
    lines = {line.get_label(): [*line.get_xdata()] for line in ax.lines if not line.get_label().startswith("_")}
    assert lines == {arm_label(arm): places for arm in BOTH} and ax.get_xscale() == "log"
    marks = [line for line in ax.lines if str(line.get_gid()).startswith("value:")]
    assert len(marks) == 2 * len(places)
    plots.diversity_by_arm(table, plt.subplots()[1])
    plt.close("all")


def test_the_gallery_shows_amounts_and_not_a_line_for_each_of_them() -> None:
    import pandas as pd

    table = pd.DataFrame(rows_of(BOTH)).assign(paper_value=float("nan"), paper_source="", run="r")
    kinds = {kind: options for _, kind, _, options in plots.pictures(table, table, table)}
    assert {*kinds} == {"accuracy_by_amount", "accuracy_by_tokens", "diversity_by_arm", "differences"}
    assert kinds["accuracy_by_tokens"] == {"against": "tokens"} and kinds["accuracy_by_amount"] == {}
