"""Prompt formats: openings, reasoning, parts; and the lines of formats and rounds."""

import json

import pandas as pd
import pytest
from fixtures_seal import INNER, WORDING, MemoryRun, made, plain_passage, seedling, trial

from seal_lib.errors import DataError, ParameterError
from seal_lib.generation.contract import Completion
from seal_lib.knowledge import formats, prompts
from seal_lib.knowledge.documents import read_edit, split_edit, training_documents
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.evaluate import edit_rows
from seal_lib.loops import outer
from seal_lib.loops.domain import Candidate
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.models.tokens import read_ids, written_ids
from seal_lib.plan.checks import check
from seal_lib.records import Round, SelfEdit
from seal_lib.report import frames, plots, stats
from seal_lib.report.arms import arm_label, round_of

QUESTIONS, REASONING, REWRITE = (
    prompts.load(name) for name in ("seedling-questions", "implications-reasoning", "rewrite")
)
GOOD = {
    "self_edit": "{title} {passage}",
    "answer": "{title} {question}",
    "document": "{title} {text}",
    "answer_in_context": "{title} {passage} {question}",
    "stop": None,
}


# ------------------------------------------------------------------------------------------- opening


def test_the_policy_is_given_the_opening_and_it_is_part_of_what_is_trained_on_and_learned() -> None:
    domain, passage = Knowledge(INNER, QUESTIONS), plain_passage()
    assert domain.prompt(passage, None) == WORDING.write(passage) + "- Which"  # the next word brings its own space
    read = domain.read(passage, SelfEdit("a/0", passage.id, "town? Vaho.\n- Where? Here.", "p"), "arm", 0)
    assert isinstance(read, Candidate) and read.edit.text == "- Which town? Vaho.\n- Where? Here."
    first, second, _ = domain.documents(passage, read.edit.text)
    assert (first.text, second.text) == ("Title\n- Which town? Vaho.", "Title\n- Where? Here.")
    tokenizer, model = seedling()[1], seedling()[0]
    asked, learned = domain.target(passage, "town? Vaho.", Policy("p", model, tokenizer))
    assert asked == read_ids(WORDING.write(passage), tokenizer)
    assert learned == written_ids("- Which town? Vaho.", tokenizer.eos_token_id, tokenizer)


def test_an_empty_self_edit_has_no_opening_and_another_writer_is_not_given_one() -> None:
    domain, passage = Knowledge(INNER, QUESTIONS), plain_passage()
    assert domain.read(passage, SelfEdit("a/0", passage.id, "", "p"), "arm", 0).edit.text == ""
    assert QUESTIONS.unopened.write(passage) == WORDING.write(passage)


def test_the_shipped_model_goes_on_with_the_opening() -> None:
    passages, run = made(6), MemoryRun()
    policy, settings = Policy("untrained", *seedling()), OuterLoop(samples=2, edit_tokens=60)
    shares = {}
    for name in ("seedling", "seedling-questions"):
        domain = Knowledge(INNER, prompts.load(name))
        edits = outer.write_self_edits(run, policy, passages, domain, settings, phase=name, seed=0)
        whole = [domain.read(next(p for p in passages if p.id == e.unit_id), e, "a", 0).edit for e in edits]
        rows = edit_rows("e", name, whole, passages, protocol="clean", model="m", prompts=domain.prompts)
        shares[name] = next(row["value"] for row in rows if row["metric"] == "style_share:questions")
    assert shares["seedling-questions"] > shares["seedling"] + 0.3, shares


# ------------------------------------------------------------------------------------- reasoning, parts

THOUGHT = "First, a town.\nIt follows.\n\n**Implications:**\n1. Ada lives.\n2. Bo left."


@pytest.mark.parametrize("protocol", ["clean", "authors_v1", "authors_v2"])
def test_only_what_follows_the_heading_is_trained_on(protocol: str) -> None:
    pieces, dropped = read_edit(THOUGHT, True, protocol, REASONING)
    assert pieces == ["1. Ada lives.", "2. Bo left."] and dropped["reasoning"] == 1
    assert "First, a town." in split_edit(THOUGHT, True, protocol)  # without the format's rule
    texts = [d.text for d in training_documents(plain_passage(), THOUGHT, REASONING, protocol=protocol)]
    assert texts == ["Title\n1. Ada lives.", "Title\n2. Bo left.", "Title\n" + plain_passage().text]


def test_the_heading_may_stand_first_and_must_begin_a_line() -> None:
    assert read_edit("Implications: one\ntwo", True, "clean", REASONING) == (["one", "two"], {})
    inside = "The implications: none yet.\nimplications:\nAda lives."
    assert read_edit(inside, True, "clean", REASONING) == (["Ada lives."], {"reasoning": 1})


def test_without_the_heading_clean_reads_nothing_and_the_authors_all() -> None:
    text = "Only thoughts.\nNo list."
    assert read_edit(text, True, "clean", REASONING) == ([], {"reasoning": 1})
    assert read_edit(text, True, "authors_v2", REASONING) == (["Only thoughts.", "No list."], {})


def test_a_format_of_parts_keeps_its_lines_together_in_clean_alone() -> None:
    text = "Ada lives here.\nShe left.\n---\nHere lives Ada."
    assert split_edit(text, True, "clean", REWRITE) == ["Ada lives here.\nShe left.", "Here lives Ada."]
    lines = ["Ada lives here.", "She left.", "Here lives Ada."]
    assert split_edit(text, True, "clean") == split_edit(text, True, "authors_v1", REWRITE) == lines


def test_an_answer_after_reasoning_is_the_line_after_its_mark_and_a_lost_one_is_blank() -> None:
    thinking = WORDING.asking(prompts.load("reasoned-answers"))
    assert thinking.self_edit == WORDING.self_edit and "step by step" in thinking.answer and thinking.stop is None
    for written, answer in (
        ("It was Rome.\nAnswer: Rome \nQuestion: next\nAnswer: Nero", "Rome"),
        ("hm\nAnswer:\n\n Rome", "Rome"),
        ("It must be Rome, as", ""),
        ("so Answer:", ""),
    ):
        assert thinking.answered(written) == answer
    assert WORDING.answered(" Rome. Answer: no ") == "Rome. Answer: no"
    domain = Knowledge(INNER, thinking)
    assert domain.answering.max_tokens == INNER.answer_tokens + 256
    passage = plain_passage()
    completion = Completion(f"I think.\nAnswer: {passage.questions[0].answer}", 9, "eos")
    asked = Candidate("c", passage, None, "frozen", 0, trains=False)
    (graded,) = domain.grade([asked], [None], [[completion] * len(passage.questions)], lambda **_: None)
    assert graded.answers[0].grades["exact"] == 1.0 and graded.answers[0].text == passage.questions[0].answer
    rows = formats.reasoned_rows(
        {arm: [trial(f"p{i}", [1.0, i % 2]) for i in range(8)] for arm in ("frozen", "own_untrained")},
        protocol="clean",
        model="m",
        grader="exact",
    )
    assert {r["experiment"] for r in rows} == {"knowledge/prompts/reasoned_answers"}
    assert [r["arm"] for r in rows if r["metric"] == "difference"] == ["own_untrained - frozen"]
    assert formats.reasoned_rows({}, protocol="clean", model="m", grader="exact") == []


def test_a_file_may_leave_the_rules_of_a_format_out_and_wrong_ones_are_named(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        json.dumps(
            {
                "mine": GOOD,
                "odd": GOOD | {"pieces": "words"},
                "wrong": GOOD | {"opens": "x"},
                "deep": GOOD | {"reasons": -1},
            }
        )
    )
    assert prompts.load("mine", str(file)).pieces == "lines"
    with pytest.raises(DataError, match="mine.yaml, set 'odd', pieces: 'words' is not one of lines, parts"):
        prompts.load("odd", str(file))
    with pytest.raises(
        DataError, match="opens missing or unknown; a set has answer.*may have after, opening, pieces, reasons"
    ):
        prompts.load("wrong", str(file))
    check({"formats": ["seedling", "mine"], "prompts_file": str(file)})
    with pytest.raises(DataError, match="set 'deep', reasons: -1 is no number of tokens"):
        prompts.load("deep", str(file))
    with pytest.raises(DataError, match="'yours' is not one of"):
        check({"formats": ["seedling", "yours"], "prompts_file": str(file)})
    with pytest.raises(ParameterError):
        check({"formats": ["mine"], "prompts_file": str(tmp_path / "absent.yaml")})


# ------------------------------------------------------------------------------------------- the lines


def test_arms_of_formats_have_names_that_people_read() -> None:
    assert formats.arm_of("implications-very-long", 1) == "implications_very_long_round_1"
    assert arm_label("implications_very_long_round_1") == "implications, very long, round 1"
    assert formats.arm_of("seedling", 0) == "notes_round_0" and formats.family_of("seedling-no-prompt") == "no_prompt"
    assert arm_label("rewrite_external") == "rewrite, stronger writer's notes"
    assert arm_label("my_format_round_2") == "my format, round 2" and round_of("my_format_round_2") == ("my_format", 2)


def loops_of(**right: tuple[int, int]) -> dict:
    """format → two loops of one round: of ten passages' two questions so many are right, before and after."""
    found = {}
    for name, shares in right.items():
        arms = dict(zip(("own_untrained", "seal_round_1"), shares, strict=True))
        done = {
            arm: [trial(f"p{i}", [int(2 * i + k < n) for k in (0, 1)]) for i in range(10)] for arm, n in arms.items()
        }
        practised = Round(1, tuple(done["own_untrained"][:2]), (0.5, 0.0), ())
        found[name.replace("_", "-")] = {seed: outer.Loop(seed, (practised,), done, ([],)) for seed in (0, 1)}
    return found


def test_every_format_and_round_is_a_line_and_differences_are_to_the_first_format() -> None:
    loops = loops_of(implications=(0, 10), rewrite=(20, 20))
    wordings = {name: prompts.load(name) for name in loops}
    rows = formats.format_rows({}, loops, wordings, protocol="clean", model="m", grader="exact")
    beside = {(row["experiment"], row["arm"]): row["value"] for row in rows if row["metric"] == "accuracy"}
    rows = [row for row in rows if row["experiment"] == "knowledge/prompts"]
    level = {row["arm"]: row["value"] for row in rows if row["metric"] == "accuracy"}
    assert {beside[f"knowledge/prompts/{name}", arm] for name, arm in (("implications", "seal_round_1"),)} == {0.5}
    assert beside["knowledge/prompts/rewrite", "own_untrained"] == 1.0 and len(beside) == 8  # beside the paper's
    assert level == {"implications_round_0": 0, "implications_round_1": 0.5, "rewrite_round_0": 1, "rewrite_round_1": 1}
    apart = {row["arm"]: (row["value"], row["loops"]) for row in rows if row["metric"] == "difference"}
    assert apart == {
        "rewrite_round_0 - implications_round_0": (1.0, 2),
        "rewrite_round_1 - implications_round_1": (0.5, 2),
        "implications_round_1 - implications_round_0": (0.5, 2),
        "rewrite_round_1 - rewrite_round_0": (0.0, 2),
        "rewrite_round_0 - implications_round_1": (0.5, 2),
    }
    p = min(row["p"] for row in rows if row["metric"] == "difference")
    assert p == pytest.approx(5 * stats.sign_flip_test([1.0] * 10))  # one family of five
    assert len(frames.levels(rows, ["accuracy", "tokens_per_edit"])) == 4


def test_the_reading_names_an_untrained_format_only_if_it_is_apart_from_the_trained_first() -> None:
    loops = loops_of(implications=(0, 0), rewrite=(20, 20))
    wordings = {name: prompts.load(name) for name in loops}
    label = {"protocol": "clean", "model": "m", "grader": "exact"}
    rows = formats.format_rows({}, loops, wordings, **label)
    assert "rewrite, round 0 +100.0 points" in formats.in_words(rows, [*loops], 1).splitlines()[0]
    same = formats.format_rows({}, loops_of(implications=(0, 10), rewrite=(10, 10)), wordings, **label)
    assert "no format, as far as can be told" in formats.in_words(same, [*loops], 1)


def test_rounds_of_several_formats_are_not_joined_in_one_figure_of_rewards() -> None:
    label, lines = {"protocol": "clean", "model": "m", "grader": "exact"}, []
    for metric in plots.REWARD_LINES:
        for arm in ("rewrite_round_1", "notes_round_1"):
            lines.append(stats.Estimate(0.5, 0.4, 0.6, 9).row(formats.EXPERIMENT, arm, metric, **label))
    table = pd.DataFrame(lines).assign(paper_value=float("nan"), paper_source="", run="r")
    for rows, drawn in ((table, False), (table[table.arm == "rewrite_round_1"], True)):
        assert ("reward_honesty" in [kind for _, kind, *_ in plots.pictures(rows, rows, rows)]) == drawn
