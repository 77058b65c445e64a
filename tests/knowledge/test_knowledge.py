"""Passages, prompts and the document rules, on hand-made cases."""

import gzip
import json
import random
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from fixtures_seal import WORDING, plain_passage
from hypothesis import given
from hypothesis import strategies as st

from seal_lib.errors import DataError, ParameterError
from seal_lib.generation.thoughts import without_thoughts
from seal_lib.knowledge import data, prompts
from seal_lib.knowledge.documents import PROTOCOLS, read_edit, split_edit, training_documents
from seal_lib.records import Question

# ------------------------------------------------------------------------------------------- documents


AUTHORS = ("authors_v1", "authors_v2")
LONG = "\n".join(f"line {i}" for i in range(50))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (" \n\t\n", []),
        ("one", ["one"]),
        ("one\n\n \ntwo\n", ["one", "two"]),  # blank lines are no documents
        ("one\r\ntwo\u2028three\x0cfour\r", ["one", "two", "three", "four"]),  # whatever ends a line
        ("  padded  \n\tindented", ["padded", "indented"]),
        ("**bold**\n- a\n# b", ["**bold**", "- a", "# b"]),  # marks of lists and headings stay
        # a heading before a numbered list is dropped: the second line decides
        ("Implications:\n1. a\n2. b", ["1. a", "2. b"]),
        ("Implications:\n\n1. a\n2. b", ["1. a", "2. b"]),
        ("1. a\n2. b", ["1. a", "2. b"]),
        ("Heading\n- a\n1. b", ["Heading", "- a", "1. b"]),
        ("1. a\n1. b", ["1. b"]),  # the rule looks at nothing but the second line
        ("Only\n10. ten", ["Only", "10. ten"]),
        # --- separates parts, wherever it stands
        ("a\n---\nb", ["a", "b"]),
        ("a --- b\n---c", ["a", "b", "c"]),
        # question blocks stay together over lines
        (
            "Question 1: q?\nAnswer: a\nQuestion 2: r?\nAnswer: b",
            ["Question 1: q?\nAnswer: a", "Question 2: r?\nAnswer: b"],
        ),
        (
            "Question  10: q?\nAnswer : a\nmore\nQuestion 11: r?\nAnswer: b",
            ["Question  10: q?\nAnswer : a\nmore", "Question 11: r?\nAnswer: b"],
        ),
        ("q?\nAnswer: a\nQuestion 2: r?\nAnswer: b", ["Question 1: q?\nAnswer: a", "Question 2: r?\nAnswer: b"]),
        # both marks are needed for blocks
        ("Question 1: q?\nQuestion 2: r?", ["Question 1: q?", "Question 2: r?"]),
        ("Q1 2023: up\nA: a", ["Q1 2023: up", "A: a"]),
    ],
)
def test_pieces_of_a_self_edit_that_all_protocols_agree_on(text: str, pieces: list[str], protocol: str) -> None:
    assert split_edit(text, protocol=protocol) == pieces


@pytest.mark.parametrize(
    ("text", "clean", "authors"),
    [
        # the authors look for one heading and for questions in the whole text, not in each part
        ("First:\n1. a\n---\nSecond:\n1. b", ["1. a", "1. b"], ["1. a", "Second:", "1. b"]),
        ("Note\n---\n1. a", ["Note", "1. a"], ["1. a"]),
        ("---\n---", [], ["---", "---"]),  # nothing but marks is a text
        (
            "Question 1: q?\nAnswer: a\n---\nQuestion 2: r?\nAnswer: b",
            ["Question 1: q?\nAnswer: a", "Question 2: r?\nAnswer: b"],
            ["Question 1: q?\nAnswer: a\n---", "Question 2: r?\nAnswer: b"],
        ),
        (
            "Notes\n1. a\n---\nQuestion 2: r?\nAnswer: b",
            ["1. a", "Question 2: r?\nAnswer: b"],
            ["Question 1: Notes\n1. a\n---", "Question 2: r?\nAnswer: b"],
        ),
        ("Question 1: q?\n---\nAnswer: a", ["Question 1: q?", "Answer: a"], ["Question 1: q?\n---\nAnswer: a"]),
        # a blank line before a question stays with the one before it; a question inside a line begins nothing
        (
            "Question 1: q?\nAnswer: a\n\nQuestion 2: r?\nAnswer: b",
            ["Question 1: q?\nAnswer: a", "Question 2: r?\nAnswer: b"],
            ["Question 1: q?\nAnswer: a\n", "Question 2: r?\nAnswer: b"],
        ),
        (
            "Question 1: q?\nAnswer: a Question 2: r?\n  Question 3: s?",
            ["Question 1: q?\nAnswer: a", "Question 2: r?", "Question 3: s?"],
            ["Question 1: q?\nAnswer: a Question 2: r?\n  Question 3: s?"],
        ),
        (
            "Questions:\nQuestion 1: q?\nAnswer: a",
            ["Questions:", "Question 1: q?\nAnswer: a"],
            ["Questions:", "Question 1: q?\nAnswer: a"],
        ),
        # the authors know three dashes, and one way to mark a question
        ("a\n-----\n----c", ["a", "c"], ["a", "--", "-c"]),
        ("Question: q?\nAnswer: a", ["Question: q?\nAnswer: a"], ["Question: q?", "Answer: a"]),
        ("Q1: q?\nA: a", ["Q1: q?\nA: a"], ["Q1: q?", "A: a"]),
    ],
)
def test_pieces_where_the_authors_look_at_the_whole_text(text: str, clean: list[str], authors: list[str]) -> None:
    assert split_edit(text, protocol="clean") == clean
    for protocol in AUTHORS:
        assert split_edit(text, protocol=protocol) == authors


@pytest.mark.parametrize(
    ("text", "first", "later"),
    [
        ("Well.\nImplications:\n1. a\n2. b", ["Well.", "Implications:", "1. a", "2. b"], ["1. a", "2. b"]),
        (
            "x\nImplications: \n\n a\nImplications:\nb",
            ["x", "Implications:", "a", "Implications:", "b"],
            ["a", "Implications:", "b"],
        ),  # the first one counts
        ("Implications:\na", ["Implications:", "a"], ["Implications:", "a"]),  # a heading has something before it
        ("x\n Implications:\na", ["x", "Implications:", "a"], ["x", "Implications:", "a"]),
        ("x\nImplications:\n", ["x", "Implications:"], []),
        ("Question 1: q?\nAnswer: a\nImplications: b", ["Question 1: q?\nAnswer: a\nImplications: b"], ["b"]),
        (LONG, LONG.split("\n"), LONG.split("\n")[:30]),
    ],
)
def test_the_later_code_has_a_heading_rule_and_a_cap(text: str, first: list[str], later: list[str]) -> None:
    assert split_edit(text, protocol="authors_v1") == first
    assert split_edit(text, protocol="authors_v2") == later


def test_without_line_splitting_only_the_rule_cuts() -> None:
    text = "Heading\n1. a\n2. b\n---\nQuestion 1: q?\nAnswer: a\nQuestion 2: r?"
    for protocol in PROTOCOLS:
        assert split_edit(text, False, protocol) == [
            "Heading\n1. a\n2. b",
            "Question 1: q?\nAnswer: a\nQuestion 2: r?",
        ]
    # the authors' first code makes a document of an empty text, their later one drops blank ones
    assert [split_edit(" \n", False, protocol) for protocol in PROTOCOLS] == [[], [""], []]
    assert split_edit("\n---\n".join("ab" * 20), False, "authors_v2") == list("ab" * 15)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(DataError, match="authors_v2"):
        split_edit("a", protocol="authors")


FRAGMENTS = [
    "---",
    "--",
    "Question 1:",
    "Question 12:",
    "Question\n3:",
    "Question",
    "Answer:",
    "Answer :",
    "answer:",
    "# heading",
    "1.",
    "1. one",
    "2. two",
    "**bold**",
    "\n",
    "\n\n",
    "\r\n",
    " ",
    "\t",
    "\u2028",
    "Implications:",
    "\nImplications:\n",
    "Q:",
    "A:",
    "text",
    "ünïcode",
]


def by_hand(text: str, split_newlines: bool, later: bool) -> list[str]:
    """The authors' rules once more, character by character, to compare with."""

    def skip(at: int, kind) -> int:
        while at < len(text) and kind(text[at]):
            at += 1
        return at

    def question(at: int) -> bool:
        if not text.startswith("Question", at):
            return False
        number = skip(at + 8, str.isspace)
        end = skip(number, str.isdecimal)
        return at + 8 < number < end and text.startswith(":", end)

    def answer(at: int) -> bool:
        return text.startswith("Answer", at) and text.startswith(":", skip(at + 6, str.isspace))

    if later and "\nImplications:" in text:
        text = text.split("\nImplications:", 1)[1]
    text = text.strip()
    everywhere = range(len(text))
    if split_newlines and any(map(question, everywhere)) and any(map(answer, everywhere)):
        starts = [0, *(at + 1 for at in everywhere if text[at] == "\n" and question(at + 1))]
        ends = [*(at - 1 for at in starts[1:]), len(text)]
        pieces = [text[a:b] for a, b in zip(starts, ends, strict=True)]
        if not pieces[0].startswith("Question"):
            pieces[0] = f"Question 1: {pieces[0].strip()}"
    else:
        pieces = [part.strip() for part in text.split("---")]
        pieces = [part for part in pieces if part] or [text]
        if split_newlines:
            pieces = [line.strip() for part in pieces for line in part.splitlines()]
            pieces = [line for line in pieces if line]
            if [line[:2] for line in pieces[1:2]] == ["1."]:
                del pieces[0]
    return [piece for piece in pieces[:30] if piece.strip()] if later else pieces


FENCED = "Here you are:\n```markdown\n- a\n- b\n```\n"
TABLE = "| Name | Born |\n|---|:--:|\n| Ada | 1815 |\n+------+------+"


@pytest.mark.parametrize(
    ("text", "pieces", "dropped"),
    [
        # thoughts
        ("<think>\nHm.\n- x\n</think>\n\n- a\n- b", ["- a", "- b"], {"thoughts": 1}),
        ("Hm.\n</think>\n- a", ["- a"], {"thoughts": 1}),
        ("- a\n<think>Hm. And then", ["- a"], {"thoughts": 1}),
        ("<think>Hm.</think>", [], {"thoughts": 1}),
        # lines of layout alone
        (FENCED, ["- a", "- b"], {"marks": 2, "headings": 1}),
        ("~~~\na\n~~~", ["a"], {"marks": 2}),
        (TABLE, ["| Name | Born |", "| Ada | 1815 |"], {"marks": 2}),
        ("a\n-----\nb\n***\nc\n* * *\nd\n___\n===\n##\n—\n•\ne", list("abcde"), {"marks": 8}),
        ("<notes>\na\n</notes>\n<|im_end|>", ["a"], {"marks": 2}),
        ("a < b\n<b>bold</b> c\n`x`\n...\n-.", ["a < b", "<b>bold</b> c", "`x`", "...", "-."], {}),
        ("北京\n∞\n1", ["北京", "1"], {"marks": 1}),
        ("Implications:\n1. a", ["1. a"], {"headings": 1}),
        ("Title\n1. a\n2. b\n3.", ["1. a", "2. b"], {"headings": 1, "marks": 1}),  # cut after a number
        ("````md\na\n````", ["a"], {"marks": 2}),
        ("\ufeff\nAda\u200b was\x00 born.\x1b[0m\n\u2060", ["Ada was born."], {}),
        # headings, and lines that introduce a list
        ("Sure! Here are some implications:\n\n- a\n- b", ["- a", "- b"], {"headings": 1}),
        ("Sure!\nHere you are:\n(1) a\n(2) b", ["(1) a", "(2) b"], {"headings": 2}),
        ("**Implications:**\n\n**1. a**\n**2. b**", ["**1. a**", "**2. b**"], {"headings": 1}),
        ("# Notes\n\n## On Ada\na\n### 1. b\n# Ada was born.", ["a", "### 1. b", "# Ada was born."], {"headings": 2}),
        ("a\nAda's books:\nb\nc\n- d", ["a", "Ada's books:", "b", "c", "- d"], {}),  # introduces no list, or too late
        # structure
        ('["a b", "c"]', ["a b", "c"], {}),
        ('```json\n{"notes": [{"text": "a\\nb"}, {"text": "c"}]}\n```', ["a b", "c"], {}),
        (
            '[{"question": "q?", "answer": "a"}, {"question": "r?", "answer": "b"}]',
            ["question: q?\nanswer: a", "question: r?\nanswer: b"],
            {},
        ),
        ('["a", "b', ['["a", "b'], {}),  # cut: as it is
        ("[1, 2]", ["[1, 2]"], {}),
        ("<list>\n<item>a</item>\n<item>b</item>\n</list>", ["a", "b"], {"marks": 2}),
        ("<question>q?</question>\n<answer>a</answer>", ["question: q?\nanswer: a"], {}),
        # text outside the model's turn
        ("- a\n- b<|im_end|>\n<|im_start|>user\nMore?", ["- a", "- b"], {"thoughts": 1}),
        ("- a<|eot_id|>", ["- a"], {}),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n- a</s>", ["- a"], {}),
        # questions, however they are marked
        (
            "**Question 1:** q?\n**Answer:** a\n\n**Question 2:** r?\n**Answer:** b",
            ["**Question 1:** q?\n**Answer:** a", "**Question 2:** r?\n**Answer:** b"],
            {},
        ),
        ("**Question 1**: q?\n\n**Answer**: a", ["**Question 1**: q?\n\n**Answer**: a"], {}),
        (
            "**Question 1:** q? **Answer:** a **Question 2:** r? **Answer:** b",
            ["**Question 1:** q? **Answer:** a", "**Question 2:** r? **Answer:** b"],
            {},
        ),
        ("Q1: q?\nA1: a\nQ2: r?\nA2: b", ["Q1: q?\nA1: a", "Q2: r?\nA2: b"], {}),
        ("Q1: q? A1: a Q2: r? A2: b", ["Q1: q? A1: a", "Q2: r? A2: b"], {}),
        ("**Q:** q?\n**A:** a\n\n---\n\n**Q:** r?\n**A:** b", ["**Q:** q?\n**A:** a", "**Q:** r?\n**A:** b"], {}),
        (
            "1. **Q:** q?\n   **A:** a\n2. **Q:** r?\n   **A:** b",
            ["1. **Q:** q?\n   **A:** a", "2. **Q:** r?\n   **A:** b"],
            {},
        ),
        (
            "### Question 1\nq?\n### Answer\na\nmore\n### Question 2\nr?\n### Answer\nb",
            ["### Question 1\nq?\n### Answer\na\nmore", "### Question 2\nr?\n### Answer\nb"],
            {},
        ),
        ("> Notes\n- Question: q?\n  - Answer: a", ["> Notes", "- Question: q?\n  - Answer: a"], {}),
        ("Q1. q?\nA1. a", ["Q1. q?\nA1. a"], {}),
        ("QUESTION 1: q?\nANSWER: a", ["QUESTION 1: q?\nANSWER: a"], {}),
        ("Q1：是什么？\nA1：北京", ["Q1：是什么？\nA1：北京"], {}),
        ("Facts.\nQ: q? A: a\nA fact.\nQ: r? A: b", ["Facts.", "Q: q? A: a", "A fact.", "Q: r? A: b"], {}),
        ("<think>Hm.</think>\n```\nQ1: q?\nA1: a\n```", ["Q1: q?\nA1: a"], {"thoughts": 1, "marks": 2}),
        ("1. What?\n   Answer: a\n2. Who?\n   Answer: b", ["1. What?\n   Answer: a", "2. Who?\n   Answer: b"], {}),
        ("问题1：q？\n答案：a\n问题2：r？\n答案：b", ["问题1：q？\n答案：a", "问题2：r？\n答案：b"], {}),
        (
            "Pregunta 1: q\nRespuesta: a\nPregunta 2: r\nRespuesta: b",
            ["Pregunta 1: q\nRespuesta: a", "Pregunta 2: r\nRespuesta: b"],
            {},
        ),
        ("What is a?\nWho knows.", ["What is a?", "Who knows."], {}),
        ("Q. Fabius was consul.\nA. Lincoln was not.", ["Q. Fabius was consul.", "A. Lincoln was not."], {}),
    ],
)
def test_protocol_clean_reads_what_models_write_and_counts_what_it_drops(text, pieces, dropped) -> None:
    assert read_edit(text, protocol="clean") == (pieces, dropped)
    for protocol in AUTHORS:  # theirs stays theirs
        for split in (True, False):
            whole = by_hand(text, split, protocol == "authors_v2")
            assert read_edit(text, split, protocol) == (whole, {})


def test_without_line_splitting_the_same_is_dropped() -> None:
    assert read_edit(f"<think>Hm.</think>{FENCED}---\n-----\nc", False, "clean") == (
        ["Here you are:\n- a\n- b", "c"],
        {"thoughts": 1, "marks": 3},
    )


MODERN = [
    *FRAGMENTS,
    "<think>",
    "</think>",
    "```",
    "```json",
    "-----",
    "|---|",
    "**Question 1:**",
    "**Answer:**",
    "Q1:",
    "A1:",
    "Q:",
    "### Question",
    "a b",
    "c.",
    "…",
]


@given(st.lists(st.sampled_from(MODERN) | st.text(max_size=5), max_size=40), st.sampled_from(("", " ", "\n")))
def test_clean_invents_nothing_and_loses_no_word(parts: list[str], between: str) -> None:
    text = between.join(parts)
    pieces, dropped = read_edit(text, protocol="clean")
    assert all(piece == piece.strip() != "" for piece in pieces) and all(n > 0 for n in dropped.values())
    said = without_thoughts(text)[0]
    left = iter(said)
    for piece in pieces:  # in order, and nothing that was not there, but the number that the prompt ended in
        own = piece.removeprefix("Question 1: ") if pieces.index(piece) == 0 else piece
        assert all(character in left for character in "".join(own.split())), (text, pieces)
    if not dropped.get("headings"):
        said = re.sub(r"(`{3,}|~{3,})[\w+#.-]*", "", said)  # the language of a fence
        words = ["".join(filter(str.isalpha, t)) for t in (said, "".join(pieces))]
        assert len(words[1]) >= len(words[0])


@pytest.mark.parametrize(
    "filler", [" ", "*", "-", "\t", "#", "Q", "A:", "Q1:", "<a", "<think>", "Question 1", "| ", "`"]
)
def test_no_text_takes_long_to_read(filler: str) -> None:
    text = f"Q1: q?{filler * 60_000}x\nA1: a"
    begun = time.monotonic()
    read_edit(text, protocol="clean")
    assert time.monotonic() - begun < 5


def test_the_rules_hold_for_texts_of_any_make() -> None:
    draw = random.Random(0)
    seen = {"questions": 0, "headings": 0, "capped": 0}
    for _ in range(3_000):
        few = draw.sample(FRAGMENTS, draw.randrange(1, 12))  # so that some texts have no questions and many lines
        text = "".join(draw.choice(few) + draw.choice(("", "", " ", "\n")) for _ in range(draw.randrange(120)))
        for protocol in AUTHORS:
            for split in (True, False):
                later = protocol == "authors_v2"
                assert split_edit(text, split, protocol) == by_hand(text, split, later), (text, protocol, split)
        both = [split_edit(text, protocol=protocol) for protocol in AUTHORS]
        seen["questions"] += any("Answer" in piece and "\n" in piece for piece in both[0])
        seen["capped"] += len(both[1]) == 30
        seen["headings"] += len(both[1]) < min(len(both[0]), 30)
    assert all(count > 100 for count in seen.values()), seen  # the texts do reach every rule


def test_a_question_self_edit_gets_back_the_prefix_its_prompt_ended_with() -> None:
    # the self-qa prompt ends in "Question 1: ", so the completion starts inside the first question
    assert prompts.load("self-qa").write(plain_passage()).endswith("Question 1: ")
    assert split_edit("q?\nAnswer: a\nQuestion 2: r?\nAnswer: b")[0] == "Question 1: q?\nAnswer: a"


def test_every_document_has_the_title_and_the_passage_comes_last() -> None:
    passage = plain_passage("The passage.", "The Title")
    documents = training_documents(passage, "one\ntwo", WORDING)
    assert [(d.text, d.kind) for d in documents] == [
        ("The Title\none", "edit"),
        ("The Title\ntwo", "edit"),
        ("The Title\nThe passage.", "passage"),
    ]
    for nothing in (None, "", "  \n"):
        assert [d.text for d in training_documents(passage, nothing, WORDING)] == ["The Title\nThe passage."]
    assert [d.kind for d in training_documents(passage, "one", WORDING, add_passage=False)] == ["edit"]
    assert training_documents(plain_passage(" \n Text. \n"), None, WORDING)[0].text == "Title\nText."


def test_the_limit_counts_pieces_of_the_edit_not_the_passage() -> None:
    edit = "\n".join(f"line {i}" for i in range(50))
    documents = training_documents(plain_passage(), edit, WORDING, limit=30)
    assert len(documents) == 31 and documents[-1].kind == "passage" and documents[29].text == "Title\nline 29"


# --------------------------------------------------------------------------------------------- prompts


def test_slots_are_filled_once_and_values_are_never_read_as_templates() -> None:
    passage = plain_passage("Braces {title} {question} {0} stay.", "A {passage} title")
    text = WORDING.ask(passage, Question("What is {title}?", "x"), in_context=True)
    assert "Topic: A {passage} title\n" in text
    assert "Passage: Braces {title} {question} {0} stay.\n" in text
    assert text.endswith("Question: What is {title}?\nAnswer:")


def test_the_passage_is_in_view_only_when_asked_in_context() -> None:
    passage = plain_passage("Secret text.")
    for name in ("seedling", "implications", "self-qa", "no-prompt", "rewrite"):
        chosen = prompts.load(name)
        assert "Secret text." not in chosen.ask(passage, passage.questions[0])
        assert "Secret text." in chosen.ask(passage, passage.questions[0], in_context=True)
        assert "Secret text." in chosen.write(passage) and "Title" in chosen.write(passage)
        assert "somebody" not in chosen.ask(passage, passage.questions[0], in_context=True)  # the gold answer


def test_the_paper_sets_stop_at_end_of_text_only() -> None:
    assert prompts.load("implications").stop is None and prompts.load("seedling").stop == "\n"
    assert prompts.load("implications").write(plain_passage()).endswith("Implications:\n")


def test_a_file_of_the_user_adds_to_the_sets_and_wins(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    own = {
        "self_edit": "{title} {passage} write",
        "answer": "{title} {question}",
        "document": "{title}: {text}",
        "answer_in_context": "{title} {passage} {question}",
        "stop": None,
    }
    file.write_text(json.dumps({"mine": own, "seedling": own}))
    assert prompts.load("mine", str(file)).training_text("T", "x") == "T: x"
    assert prompts.load("seedling", str(file)).self_edit == own["self_edit"]
    assert prompts.load("implications", str(file)) == prompts.load("implications")


def test_a_broken_prompt_file_is_named_in_one_sentence(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    good = {
        "self_edit": "{title} {passage}",
        "answer": "{title} {question}",
        "document": "{title} {text}",
        "answer_in_context": "{title} {passage} {question}",
        "stop": None,
    }

    def message(content, name="mine") -> str:
        file.write_text(json.dumps(content))
        with pytest.raises(DataError) as caught:
            prompts.load(name, str(file))
        return str(caught.value)

    assert "{question}" in message({"mine": good | {"answer": "{title}"}})
    assert "anser" in message({"mine": good | {"anser": "x"}})
    assert "stop" in message({"mine": {key: good[key] for key in good if key != "stop"}})
    assert "mine.yaml" in message([good])
    for key, value in {"stop": 5, "opening": None, "after": ["x"], "self_edit": [good["self_edit"]]}.items():
        assert f"{key}: {value!r} is not a text" in message({"mine": good | {key: value}})
    assert "stop: '' is not a text or null" in message({"mine": good | {"stop": ""}})
    file.write_text("1: {}\n")
    with pytest.raises(DataError, match="'mine' is not one of 1, implications"):
        prompts.load("mine", str(file))
    file.write_text(f"mine: {json.dumps(good)[:-1]}, 5: x}}\n")
    with pytest.raises(DataError, match="5 missing or unknown"):
        prompts.load("mine", str(file))
    assert "'yours'" in message({"mine": good}, "yours")
    with pytest.raises(ParameterError, match="absent.yaml"):
        prompts.load("mine", str(tmp_path / "absent.yaml"))


def test_a_prompt_file_that_is_no_yaml_is_named(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine: {self_edit: 'x")
    with pytest.raises(ParameterError, match="mine.yaml"):
        prompts.load("mine", str(file))


# ------------------------------------------------------------------------------------------------ data

GOOD = {"title": "T", "context": "Text.", "questions": [{"question": "Q?", "answer": "A"}]}


def broken(tmp_path, entry, raw: str | None = None) -> str:
    """The message for a file whose second entry is ``entry``."""
    file = tmp_path / "set.json"
    file.write_text(json.dumps([GOOD, entry]) if raw is None else raw)
    with pytest.raises(DataError) as caught:
        data.load_passages(str(file), None)
    text = str(caught.value)
    assert "\n" not in text and "set.json" in text
    return text


def test_a_malformed_entry_is_named_by_file_entry_and_key(tmp_path) -> None:
    for key in ("title", "context", "questions"):
        text = broken(tmp_path, {k: v for k, v in GOOD.items() if k != key})
        assert "entry 1" in text and repr(key) in text
    assert "entry 1" in broken(tmp_path, "text")
    text = broken(tmp_path, GOOD | {"context": " \n"})
    assert "entry 1" in text and "'context'" in text and "empty" in text
    text = broken(tmp_path, GOOD | {"questions": [GOOD["questions"][0], {"question": "Q?", "answer": " "}]})
    assert "entry 1, question 1" in text and "answer" in text
    text = broken(tmp_path, GOOD | {"questions": [{"answer": "A"}]})
    assert "entry 1, question 0" in text and "question is empty" in text
    assert "no question" in broken(tmp_path, GOOD | {"questions": []})


@pytest.mark.parametrize(
    "change",
    [
        {"questions": [{"question": "Q?", "answer": None}]},  # a null answer is no answer
        {"questions": None},
        {"questions": ["Q?"]},
        {"questions": {"question": "Q?", "answer": "A"}},
        {"context": None},
        {"context": 3},
        {"title": None},
        {"title": 3},
        {"completions": "text"},
        {"completions": [None]},
        {"context": "half a \ud83d"},  # JSON can hold half a character; no tokenizer and no file can
    ],
    ids=json.dumps,
)
def test_values_of_the_wrong_kind_are_refused_not_turned_into_text(tmp_path, change: dict) -> None:
    assert "entry 1" in broken(tmp_path, GOOD | change)


def test_a_file_that_is_no_list_of_passages_is_named(tmp_path) -> None:
    assert "not JSON" in broken(tmp_path, None, "{")
    assert "dict" in broken(tmp_path, None, json.dumps({"data": []}))
    (tmp_path / "set.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="set.json is not JSON"):
        data.load_passages(str(tmp_path / "set.json"), None)
    with pytest.raises(DataError, match="nowhere.json"):
        data.load_passages(str(tmp_path / "nowhere.json"), 1)


#: the same two passages in every layout that people have
OURS = [
    {
        "title": "Super Bowl",
        "context": "One.",
        "questions": [{"question": "a?", "answer": "x"}, {"question": "b?", "answer": "y"}],
    },
    {"title": "Other", "context": "Two.", "questions": [{"question": "c?", "answer": "z"}]},
]
SPANS = {
    "x": [{"text": "x", "answer_start": 0}, {"text": "xx", "answer_start": 3}],
    "y": [{"text": "y"}],
    "z": [{"text": "z"}],
}


def squad_raw(v2: bool = False) -> dict:
    articles = []
    for passage in OURS:
        qas = [
            {"id": q["answer"], "question": q["question"], "answers": SPANS[q["answer"]]} for q in passage["questions"]
        ]
        if v2:
            qas = [qa | {"is_impossible": False} for qa in qas] + [
                {"question": "?", "answers": [], "is_impossible": True}
            ]
        paragraphs = [{"context": passage["context"], "qas": qas}]
        articles.append({"title": passage["title"].replace(" ", "_"), "paragraphs": paragraphs})
    return {"version": "2.0", "data": articles}


def squad_rows(golds) -> list[dict]:
    return [
        {"title": p["title"], "context": p["context"], "question": q["question"], **golds(q["answer"])}
        for p in OURS
        for q in p["questions"]
    ]


def each(golds) -> list[dict]:
    return [
        p | {"questions": [{"question": q["question"], **golds(q["answer"])} for q in p["questions"]]} for p in OURS
    ]


def lines(entries: list[dict]) -> str:
    return "\n".join(map(json.dumps, entries)) + "\n\n"


def columns(rows: list[dict]) -> dict[str, list]:
    return {key: [row[key] for row in rows] for key in rows[0]}


LAYOUTS = {
    "ours": json.dumps(OURS),
    "a list of answers": json.dumps(each(lambda gold: {"answer": [gold, "other"]})),
    "answers": json.dumps(each(lambda gold: {"answers": [gold, "other"]})),
    "answers: {text}": json.dumps(each(lambda gold: {"answers": {"text": [gold, "other"], "answer_start": [0, 1]}})),
    "answers: {text} of one": json.dumps(each(lambda gold: {"answers": {"text": gold}})),
    "spans": json.dumps(each(lambda gold: {"answers": SPANS[gold]})),
    "under data": json.dumps({"data": OURS}),
    "raw SQuAD": json.dumps(squad_raw()),
    "articles alone": json.dumps(squad_raw()["data"]),
    "rows": json.dumps(squad_rows(lambda gold: {"answers": {"text": [gold], "answer_start": [0]}})),
    "rows of JSON lines": lines(squad_rows(lambda gold: {"answers": {"text": [gold], "answer_start": [0]}})),
    "rows with one answer": lines(squad_rows(lambda gold: {"answer": gold})),
    "JSON lines": lines(OURS),
    "JSON lines of articles": lines(squad_raw()["data"]),
    "columns": json.dumps(columns(squad_rows(lambda gold: {"answers": {"text": [gold], "answer_start": [0]}}))),
    "columns as pandas writes them": json.dumps(
        {key: dict(enumerate(column)) for key, column in columns(squad_rows(lambda gold: {"answer": gold})).items()}
    ),
    "rows of the Hub's viewer": json.dumps(
        {"rows": [{"row_idx": 0, "row": row} for row in squad_rows(lambda gold: {"answer": {"value": gold}})]}
    ),
    "byte order mark": "\ufeff" + json.dumps(OURS),
}


@pytest.mark.parametrize(
    "pack", [str.encode, lambda text: text.encode("utf-16"), lambda text: gzip.compress(text.encode())]
)
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_passages_are_read_in_every_layout_that_people_have(tmp_path, name: str, pack) -> None:
    if name == "byte order mark" and pack is not str.encode:
        pytest.skip("has its own")
    file = tmp_path / "set.jsonl"
    file.write_bytes(pack(LAYOUTS[name]))
    (tmp_path / "ours.json").write_text(json.dumps(OURS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passages = data.from_json(file)
    assert [(p.title, p.text, p.questions) for p in passages] == [
        (p.title, p.text, p.questions) for p in data.from_json(tmp_path / "ours.json")
    ]
    assert [p.id for p in passages] == ["set-00000", "set-00001"]


def test_questions_without_an_answer_are_left_out_and_counted(tmp_path) -> None:
    file = tmp_path / "v2.json"
    file.write_text(json.dumps(squad_raw(v2=True)))
    with pytest.warns(UserWarning, match="v2.json: 2 questions without an answer are left out, and 0 passages"):
        passages = data.load_passages(str(file), None)
    assert sorted(len(p.questions) for p in passages) == [1, 2]
    empty = {"title": "T", "context": "Three.", "question": "d?", "answers": {"text": [], "answer_start": []}}
    rows = [*squad_rows(lambda gold: {"answers": {"text": [gold]}}), empty]
    with pytest.warns(UserWarning, match="1 questions without an answer are left out, and 1 passages"):
        assert len(data.passages_of(rows, "squad", "squad")) == 2
    with pytest.raises(DataError, match="no question has an answer"):
        data.passages_of([empty], "squad", "squad")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b broken", "set.json cannot be read"),
        (gzip.compress(b"[1]" * 50)[:20], "set.json cannot be read"),
        (b"PK\x03\x04", "zip archive; unpack"),
        (b"PAR1\x15", "is a Parquet file; write its rows as JSON lines"),
        (b"ARROW1\0\0", "is an Arrow file"),
        (b"BZh9", "not by gzip; unpack it"),
        (b"\x28\xb5\x2f\xfd", "not by gzip; unpack it"),
        (b'[{"title": "T", "title": "U"}]', "the key 'title' occurs twice"),
        (json.dumps([*OURS, OURS[0]]).encode(), "is set-00000 again"),
        (b'{"title": ["T"], "context": ["c", "d"], "question": ["q?"], "answer": ["a"]}', "columns differ in length"),
        (b'[{"title": "T", "context": "c", "question": "q?", "answers": "{\'text\': [\'a\']}"}]', "written as text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"[" * 100_000, "not JSON"),
        (b"[" + b"1" * 5_000 + b"]", "not JSON"),
        ('["Müller"]'.encode("latin-1"), "not JSON"),
        (lines(OURS).encode() + b"{", "not JSON"),
        (b'{"data": [{"title": "T", "paragraphs": [{"context": "c"}]}]}', "article 0, paragraph 0: the key 'qas'"),
        (b'{"data": [{"title": "T", "paragraphs": [{"qas": []}]}]}', "entry 0: the key 'context'"),
        (b'[{"title": "T", "paragraphs": []}, {"title": "U"}]', "article 1: the key 'paragraphs'"),
        (b'[{"question": "q?", "context": "c"}]', "row 0: a row has title"),
        (b'[{"title": "T", "context": "c", "question": "q?", "answer": {"text": [" "]}}]', "the answer is empty"),
        (b'[{"title": "T", "context": "c", "question": "q?", "answer": {"text": [3]}}]', "answer is 3, not text"),
        (b'{"title": "T"}', "holds a dict; expected a list of passages, or SQuAD's"),
        (b"null", "holds a NoneType"),
    ],
)
def test_another_layout_is_refused_in_one_sentence(tmp_path, content: bytes, words: str) -> None:
    (tmp_path / "set.json").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        data.from_json(tmp_path / "set.json")
    assert "set.json" in str(caught.value) and "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "data",
                    "title",
                    "context",
                    "question",
                    "questions",
                    "answer",
                    "answers",
                    "text",
                    "paragraphs",
                    "qas",
                    "is_impossible",
                    "completions",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_passages_or_one_sentence(value) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "set.json"
        file.write_text(json.dumps(value))
        try:
            passages = data.from_json(file)
        except DataError as error:
            assert "set.json" in str(error) and "\n" not in str(error)
        else:
            assert all(
                p.text.strip() and p.questions and all(q.question and q.answer for q in p.questions) for p in passages
            )


def test_a_source_is_shuffled_by_its_seed_and_cut_after_that(tmp_path) -> None:
    file = tmp_path / "set.json"
    file.write_text(json.dumps([GOOD | {"title": f"T{i}", "completions": ["a", "b"]} for i in range(20)]))
    load = data.load_passages
    everything = load(str(file), None, seed=42)
    assert sorted(p.title for p in everything) == sorted(f"T{i}" for i in range(20))
    assert [p.title for p in everything] != [f"T{i}" for i in range(20)]
    assert load(str(file), 5, seed=42, start=3) == everything[3:8]
    assert load(str(file), 5, seed=43) != everything[:5]
    assert {p.id: p.title for p in everything} == {f"set-{i:05d}": f"T{i}" for i in range(20)}  # ids: place in the file
    assert everything[0].references == {"external": "a", "external_1": "b"}
    with pytest.raises(DataError, match=r"set.json.* 20 passages"):
        load(str(file), 3, start=18)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(DataError, match="heldout"):
        data.load_passages("world:nowhere", 3)
    with pytest.raises(DataError, match="needs a number"):
        data.load_passages("world:heldout", None)
    with pytest.raises(DataError, match="has no pinned revision"):
        data.load_passages("hub:someone/else", 3)


def test_more_passages_than_the_world_has_people_is_one_clear_sentence() -> None:
    with pytest.raises(DataError, match="heldout"):
        data.load_passages("world:heldout", 5000)


def row(context: str, question: str, *gold: str, title: str = "Super_Bowl_50") -> dict:
    return {"title": title, "context": context, "question": question, "answers": {"text": list(gold)}}


ROWS = [
    row("One.", "a? ", "first", "second"),
    row("Two.", "b?", "third", title="Other"),
    row("One.", "c?", "fourth"),
]


def test_hub_rows_become_one_passage_per_context_with_the_first_gold_answer() -> None:
    passages = data.passages_of(ROWS, "squad", "squad")
    assert [(p.id, p.title, p.text) for p in passages] == [
        ("squad-00000", "Super Bowl 50", "One."),
        ("squad-00001", "Other", "Two."),
    ]
    assert passages[0].questions == (Question("a?", "first"), Question("c?", "fourth"))


def test_the_hub_is_asked_for_a_pinned_revision(monkeypatch) -> None:
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return ROWS

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(data.load_passages("hub:rajpurkar/squad", None)) == 2
    assert len(data.load_passages("hub:rajpurkar/squad:train", 1)) == 1
    assert [name for name, _ in asked] == ["rajpurkar/squad"] * 2
    assert [options["split"] for _, options in asked] == ["validation", "train"]
    assert all(len(options["revision"]) == 40 and int(options["revision"], 16) for _, options in asked)
