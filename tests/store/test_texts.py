"""Files of many kinds become passages with titles and places, and questions find theirs."""

import json
from pathlib import Path

import pytest

from seal_lib.errors import DataError
from seal_lib.records import Passage, Question
from seal_lib.store import texts
from seal_lib.store.questions import found_in
from seal_lib.store.retrieval import rank

MARKDOWN = """\
Before any heading.
# One #

First line
of a paragraph.

- a list
- of two

## Two
```
# no heading

in a fence
```
"""


def read(tmp_path: Path, name: str, content: str | bytes, words: int = 150) -> texts.Document:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (document,) = texts.read(path, words)
    assert len({passage.id for passage in document.passages}) == len(document.passages) == len(document.places)
    return document


def seen(document: texts.Document) -> list[tuple[str, str, str]]:
    return [(p.title, p.text, place) for p, place in zip(document.passages, document.places, strict=True)]


def test_markdown_has_titles_and_lines(tmp_path) -> None:
    assert seen(read(tmp_path, "a.md", MARKDOWN)) == [
        ("a", "Before any heading.", "line 1"),
        ("One", "First line of a paragraph.\n- a list\n- of two", "lines 4–8"),
        ("Two", "# no heading\n\nin a fence", "lines 11–15"),
    ]


def test_markdown_as_people_write_it(tmp_path) -> None:
    page = """---
title: "My notes"
tags: [a]
---
Before.

One
===
| a | b |
|---|---|
| 1 | 2 |

***

    def f(x):
        return x

[//]: # (seen by nobody)
"""
    assert seen(read(tmp_path, "a.md", page)) == [
        ("My notes", "Before.", "line 5"),
        ("One", "| a | b |\n|---|---|\n| 1 | 2 |\ndef f(x):\n    return x\n[//]: # (seen by nobody)", "lines 9–18"),
    ]


def test_plain_text_has_no_headings_and_may_come_from_any_editor(tmp_path) -> None:
    assert seen(read(tmp_path, "a.txt", "# One\r\n\r\nTwo\r\n")) == [("a", "# One\nTwo", "lines 1–3")]
    for encoding in ("utf-8-sig", "utf-16"):
        assert read(tmp_path, "b.txt", "Käse".encode(encoding)).passages[0].text == "Käse"
    talk = "User: Who won,\nafter all?\nAssistant: Kale."
    assert read(tmp_path, "c.txt", talk).passages[0].text == "User: Who won, after all?\nAssistant: Kale."


def test_paragraphs_go_together_up_to_a_length_and_long_ones_are_cut_between_sentences(tmp_path) -> None:
    short = "\n\n".join(f"Word {i} here." for i in range(5))
    assert [p.text.count("Word") for p in read(tmp_path, "a.txt", short, words=6).passages] == [2, 2, 1]
    long = " ".join(f"Sentence number {i} ends." for i in range(10))
    pieces = read(tmp_path, "b.txt", long, words=9).passages
    assert [len(p.text.split()) for p in pieces] == [8] * 5 and " ".join(p.text for p in pieces) == long
    endless = read(tmp_path, "c.txt", " ".join(f"word{i}" for i in range(25)), words=10).passages
    assert [len(p.text.split()) for p in endless] == [10, 10, 5]
    unspaced = read(tmp_path, "d.txt", "莱茵河流过科隆。凯尔赢得比赛。他住在美拉。", words=9).passages
    assert [p.text for p in unspaced] == ["莱茵河流过科隆。", "凯尔赢得比赛。", "他住在美拉。"]
    assert [p.text for p in rank("凯尔住在哪里", unspaced)][0] == "他住在美拉。"
    one_word = read(tmp_path, "e.txt", "x" * 2000, words=10).passages
    assert {len(p.text) for p in one_word} == {640, 80}


def test_html_is_what_a_reader_sees(tmp_path) -> None:
    rows = "<table><tr><th>Name</th><th>Age</th></tr><tr><td>Kale</td><td>30</td></tr></table>one<br>two"
    code = "<pre>if x:\n    y()</pre>"
    assert read(tmp_path, "b.html", rows + code).passages[0].text == ("Name | Age\nKale | 30\none two\nif x:\n    y()")
    page = """<html><head><title>t</title><style>p{}</style></head><body><!-- a note --><h2>Rivers &amp; seas</h2>
    <p>The <b>Rhine</b>
    flows.</p><p hidden>Ignore all of this.</p><p style="DISPLAY: none">And this.</p><script>x()</script>
    <ul><li>one</li><li>two</li></ul>loose</body></html>"""
    assert seen(read(tmp_path, "a.html", page)) == [
        ("Rivers & seas", "The Rhine flows.\none\ntwo\nloose", "paragraphs 2–5")
    ]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_has_passages_with_questions_or_none(tmp_path, name: str) -> None:
    rows = [
        {"title": "T", "context": "Text.", "questions": [{"question": "Who?", "answer": "Kale"}]},
        {"title": "T", "context": "More."},
        {"text": "Bare."},
    ]
    content = json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows))
    document = read(tmp_path, name, content)
    assert seen(document) == [("T", "Text.", "entry 1"), ("T", "More.", "entry 2"), ("a", "Bare.", "entry 3")]
    assert [p.questions for p in document.passages] == [(Question("Who?", "Kale"),), (), ()]
    assert seen(read(tmp_path, name, json.dumps(rows[2]))) == [("a", "Bare.", "entry 1")]


SAID = [("user", "Who won?"), ("assistant", "Kale.")]
TREE = {
    "root": {"message": None, "parent": None},
    "a": {
        "message": {"author": {"role": "user"}, "content": {"content_type": "text", "parts": ["Who won?"]}},
        "parent": "root",
    },
    "other": {"message": {"author": {"role": "assistant"}, "content": {"parts": ["Zo."]}}, "parent": "a"},
    "b": {"message": {"author": {"role": "assistant"}, "content": {"parts": ["Kale.", {"asset": 1}]}}, "parent": "a"},
}
TALKS = {
    "turns": [{"role": who, "content": what} for who, what in SAID],
    "messages": {"messages": [{"role": who, "content": what} for who, what in SAID]},
    "parts": [{"role": who, "content": [{"type": "text", "text": what}, {"type": "image"}]} for who, what in SAID],
    "from": {"conversations": [{"from": who, "value": what} for who, what in SAID]},
    "sender": {"name": "log", "chat_messages": [{"sender": who, "text": what} for who, what in SAID]},
    "a call without text": [{"role": who, "content": what} for who, what in [*SAID, ("assistant", None)]],
    "tree": {"title": "log", "mapping": TREE, "current_node": "b"},
    "a tree in circles": {"mapping": TREE | {"root": TREE["root"] | {"parent": "root"}}, "current_node": "b"},
}


@pytest.mark.parametrize("name", TALKS)
def test_a_talk_is_a_document(tmp_path, name: str) -> None:
    talk = TALKS[name]
    (told,) = seen(read(tmp_path, "log.json", json.dumps(talk)))
    assert told == ("log", "user: Who won?\nassistant: Kale.", "entries 1–2")
    if isinstance(talk, dict):  # an export of several: chats stay apart, empty ones are skipped
        several = [talk, {"messages": []}, talk | {"title": "Second", "name": "Second"}]
        assert seen(read(tmp_path, "log.jsonl", "\n".join(map(json.dumps, several)))) == [
            (*told[:2], "entry 1"),
            ("Second", told[1], "entry 3"),
        ]


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page, written by hand."""
    count = len(pages)
    kids = " ".join(f"{3 + 2 * i} 0 R" for i in range(count))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {count} >>"]
    font = "<< /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    for i, text in enumerate(pages):
        drawn = f"BT /F 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources {font} /Contents {4 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n"
    )
    return f"{out}{end}startxref\n{len(out)}\n%%EOF\n".encode()


def test_pdf_has_pages(tmp_path, monkeypatch) -> None:
    document = read(tmp_path, "a.pdf", pdf("The Rhine flows.", "", "Kale won."), words=3)
    assert seen(document) == [("a", "The Rhine flows.", "page 1"), ("a", "Kale won.", "page 3")]
    with pytest.raises(DataError, match=r"a scan\?.*run text recognition"):
        read(tmp_path, "b.pdf", pdf(""))
    with pytest.raises(DataError, match="b.pdf cannot be read as PDF"):
        read(tmp_path, "b.pdf", b"no pdf")
    monkeypatch.setattr("pypdf.PageObject.extract_text", lambda page: 1 + "")  # as with some damaged files
    with pytest.raises(DataError, match="b.pdf cannot be read as PDF"):
        read(tmp_path, "b.pdf", pdf("The Rhine."))


def test_a_folder_is_its_documents_once_each(tmp_path) -> None:
    repeated = read(tmp_path, "twice.md", "# T\n\nOne.\n\n# T\n\nOne.\n")
    assert [p.text for p in repeated.passages] == ["One."] and repeated.places == ("line 3",)
    (tmp_path / "twice.md").unlink()
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    for name in ("b.md", "a.txt", "sub/c.txt", "sub/.hidden/d.txt", "e.exe"):
        (tmp_path / name).write_text("the same" if name in ("b.md", "sub/c.txt") else f"text of {name}")
    (tmp_path / "empty.md").write_text("")
    told: list[str] = []
    assert sorted(d.name for d in texts.read(tmp_path, tell=told.append)) == ["a.txt", "sub/c.txt"]
    assert told[0].endswith("1 files of other kinds are left out (.exe).")
    assert told[1].startswith("left out: ") and "empty.md holds no text" in told[1] and len(told) == 2
    with pytest.warns(UserWarning, match="left out"):
        texts.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.exe", b"x", "the ending '.exe' is none of .md,"),
        ("a.md", b"\n \n", "holds no text"),
        ("a.txt", b"\xff\xfe\xff", "is not UTF-8 text"),
        ("a.txt", b"caf\xe9 au lait", r"is not UTF-8 text \(byte 3\); save it"),
        ("a.json", b"[", "is not JSON text"),
        ("a.json", b'[{"context": ""}]', "'title' is missing"),
        ("a.json", b'[{"role": "user", "content": 3}]', "holds no text"),
        ("a.json", b'[{"role": "user", "content": "\\ud83d"}]', "holds half a character"),
        ("a.txt", "no mark".encode("utf-16-le"), r"is not text \(character 1 is zero\)"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says) as told:
        read(tmp_path, name, content)
    assert name in str(told.value) and "\n" not in str(told.value)


def test_what_is_not_there_is_one_sentence(tmp_path) -> None:
    with pytest.raises(DataError, match="There is no document .*give a file"):
        texts.read(tmp_path / "none.md")
    with pytest.raises(DataError, match="has no file that can be read"):
        texts.read(tmp_path)


# ---------------------------------------------------------------------------------------------- questions


def test_a_question_goes_to_the_passage_that_shares_its_rarer_words(tmp_path) -> None:
    document = read(tmp_path, "a.md", "# R\n\nThe Rhine is a river.\n\n# D\n\nThe Danube is a river too.\n")
    asked = texts.with_questions(document, [Question('Is the "Danube" a river?', ""), Question("rivers: Rhine", "yes")])
    assert [[q.question for q in p.questions] for p in asked.passages] == [
        ["rivers: Rhine"],
        ['Is the "Danube" a river?'],
    ]
    with pytest.raises(DataError, match="shares no word with a.md; say in it what it is about"):
        texts.with_questions(document, [Question("Warum?", "")])
    single = read(tmp_path, "b.md", "Only one.")
    assert texts.with_questions(single, [Question("Warum?", "")]).passages[0].questions  # what else could it be about


def test_ranking_takes_any_words_and_none() -> None:
    passages = [Passage("a", "NEAR", "OR AND NOT", ()), Passage("b", "", "Straße élan", ())]
    assert [p.id for p in rank("NOT near*", passages)] == ["a"]
    assert [p.id for p in rank('"STRASSE" Elan?', passages)] == ["b"]
    assert rank("?!", passages) == rank("unknown", passages) == rank("a", []) == []


def test_questions_are_found_however_a_model_marks_them() -> None:
    text = """<think>Why? Because.</think>
- What was the trade of Kale? baker.
Question 2: Who won?
Answer: Kale Teboran.
**Q3.** Where? **A:** In Sokumi
4) When?

A2: in 1900
- What was the trade of kale? surgeon.
Nobody asks here. And why?
"""
    assert found_in(text) == [
        Question("What was the trade of Kale?", "baker"),
        Question("Who won?", "Kale Teboran"),
        Question("Where?", "In Sokumi"),
        Question("When?", "in 1900"),
    ]
