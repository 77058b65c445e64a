"""ARC files and grids: what is read, what is refused and how it is said; text out and strictly back in."""

import gzip
import json
import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_lib.arc import grids
from seal_lib.arc.data import load_tasks, tasks_by_id
from seal_lib.errors import DataError

PAIR = {"input": [[1, 2]], "output": [[2, 1]]}
CHALLENGES = {
    "aa": {"train": [PAIR, PAIR], "test": [{"input": [[3]]}, {"input": [[4]]}]},
    "bb": {"train": [PAIR], "test": [{"input": [[5, 0]]}]},
}
SOLUTIONS = {"bb": [[[0, 5]]], "aa": [[[6]], [[7]]]}


def write(folder, name: str, value: object) -> str:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_kaggle_files_give_whole_tasks_with_solutions_by_id(tmp_path) -> None:
    files = write(tmp_path, "c.json", CHALLENGES), write(tmp_path, "s.json", SOLUTIONS)
    first, second = load_tasks(*files)
    assert (first.id, first.tests, first.solutions) == ("aa", (((3,),), ((4,),)), (((6,),), ((7,),)))
    assert second.train[0].output == ((2, 1),) and second.solutions == (((0, 5),),)
    assert [t.id for t in load_tasks(*files, ids=["bb", "aa"])] == ["bb", "aa"]
    assert load_tasks(files[0])[0].solutions == ()
    assert "aa" in first._repr_html_() and "?" in load_tasks(files[0])[0]._repr_html_()


def test_original_files_are_read_one_by_one_and_by_folder(tmp_path) -> None:
    for name, colour in {"zz": 3, "aa": 4}.items():
        test = [{"input": [[colour]], "output": [[6]]}]
        write(tmp_path, f"{name}.json", {"train": [PAIR], "test": test})
    assert [t.id for t in load_tasks(tmp_path)] == ["aa", "zz"]
    (alone,) = load_tasks(tmp_path / "zz.json")
    assert alone.id == "zz" and alone.solutions == (((6,),),)


def test_a_folder_is_read_as_people_have_it(tmp_path) -> None:
    def task(colour: int) -> dict:
        return {"train": [PAIR], "test": [{"input": [[colour]], "output": None}]}

    write(tmp_path, "aa.JSON", task(3))
    (tmp_path / "bb.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(task(4)).encode())
    (tmp_path / "cc.json.gz").write_bytes(gzip.compress(json.dumps(task(5)).encode()))
    (tmp_path / "._aa.json").write_bytes(b"\x00\x05\x16\x07")  # macOS
    write(tmp_path, "README.md", "tasks")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    write(tmp_path / ".ipynb_checkpoints", "aa.json", task(3))
    assert [(t.id, t.solutions) for t in load_tasks(tmp_path)] == [("aa", ()), ("bb", ()), ("cc", ())]
    (tmp_path / "__MACOSX").mkdir()  # of a zip
    (tmp_path / "__MACOSX" / "._aa.json").write_bytes(b"\x00\x05\x16\x07")
    assert len(load_tasks(tmp_path)) == 3
    (tmp_path / "dd.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(DataError, match="dd.json is a link to nothing"):
        load_tasks(tmp_path)
    (tmp_path / "dd.json").unlink()
    write(tmp_path, "aa (1).json", task(3))
    with pytest.raises(DataError, match=r"'aa' is the same task as 'aa \(1\)'"):
        load_tasks(tmp_path)
    write(tmp_path, "aa.json", task(3))
    with pytest.raises(DataError, match="'aa' occurs twice"):
        load_tasks(tmp_path)


def test_folders_in_a_folder_are_named_not_passed_over(tmp_path) -> None:
    for name in ("evaluation", "training"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "aa.json", {"train": [PAIR], "test": [PAIR]})
    with pytest.raises(DataError, match=r"folders of tasks \(evaluation, training\); give one of them"):
        load_tasks(tmp_path)
    write(tmp_path, "bb.json", {"train": [PAIR], "test": [PAIR]})
    with pytest.raises(DataError, match="tasks and folders of tasks"):
        load_tasks(tmp_path)
    assert [t.id for t in load_tasks(tmp_path / "training")] == ["aa"]


def test_a_list_of_tasks_is_read_and_a_list_of_pairs_is_refused_with_the_way_out(tmp_path) -> None:
    rows = [{"id": name, **task} for name, task in CHALLENGES.items()]
    whole = load_tasks(write(tmp_path, "c.json", CHALLENGES))
    assert load_tasks(write(tmp_path, "rows.json", rows)) == whole
    assert load_tasks(write(tmp_path, "rows.jsonl", "\n".join(map(json.dumps, rows)) + "\n")) == whole
    unnamed = load_tasks(write(tmp_path, "plain.json", list(CHALLENGES.values())))
    assert [t.id for t in unnamed] == ["plain-00000", "plain-00001"]
    hidden = {"aa": {"train": [PAIR], "test": [{"input": [[1]], "output": None}]}}
    assert load_tasks(write(tmp_path, "hidden.json", hidden))[0].solutions == ()
    for content in ([PAIR] * 5, {"aa": [PAIR] * 5}):  # RE-ARC
        with pytest.raises(DataError, match="a list of pairs, as RE-ARC has them.*'train': the first few"):
            load_tasks(write(tmp_path, "re.json", content))
    (tmp_path / "re").mkdir()
    write(tmp_path / "re", "aa.json", [PAIR] * 5)
    with pytest.raises(DataError, match="aa.json is not one task.*RE-ARC"):
        load_tasks(tmp_path / "re")
    with pytest.raises(DataError, match="s.json goes with a challenges file"):
        load_tasks(tmp_path / "rows.json", "s.json")


def broken(change) -> dict:
    value = json.loads(json.dumps(CHALLENGES))
    change(value)
    return value


@pytest.mark.parametrize(
    ("challenges", "words"),
    [
        ("not json", "JSON"),
        ("[1]", "list"),
        ("{}", "no task"),
        ("[" * 100_000, "JSON"),
        ('{"aa": {}, "aa": {}}', "aa.*twice"),
        ({"aa": 3, "bb": 3}, "task aa is a int"),
        (broken(lambda c: c["aa"].pop("train")), "aa: the key 'train'"),
        (broken(lambda c: c["aa"].update(train=[])), "'train' is empty"),
        (broken(lambda c: c["aa"].update(test=[])), "'test' is empty"),
        (broken(lambda c: c["bb"]["train"][0].pop("output")), r"bb, train\[0\]: the key 'output'"),
        (broken(lambda c: c["bb"]["train"][0].update(input=[[1], [2, 3]])), "differ in length"),
        (broken(lambda c: c["bb"]["train"][0].update(input=[[10]])), "not one of 0 to 9"),
        (broken(lambda c: c["bb"]["train"][0].update(input=[[True]])), "not one of 0 to 9"),
        (broken(lambda c: c["bb"]["train"][0].update(input=[[0] * 31])), "longer than 30"),
        (broken(lambda c: c["bb"]["train"][0].update(input=[[]])), "no cell"),
        (broken(lambda c: c["bb"]["train"][0].update(input="12")), "not rows of numbers"),
        (broken(lambda c: c["aa"]["test"][0].update(output=[[6]])), r"test\[1\] has no 'output'"),
        (broken(lambda c: c["bb"]["test"][0].update(output=[[1]])), "differ from the solutions"),
        (broken(lambda c: c["bb"]["test"].append({"input": [[1]]})), "2 test inputs but 1 solutions"),
        (broken(lambda c: c.pop("bb")), "'bb' is in only one"),
    ],
)
def test_a_malformed_file_is_named_in_one_sentence(tmp_path, challenges, words) -> None:
    file = write(tmp_path, "c.json", challenges)
    with pytest.raises(DataError, match=words) as caught:
        load_tasks(file, write(tmp_path, "s.json", SOLUTIONS))
    assert "c.json" in str(caught.value) and "\n" not in str(caught.value)


def test_other_mistakes_of_a_person(tmp_path) -> None:
    file = write(tmp_path, "c.json", CHALLENGES)
    with pytest.raises(DataError, match="no file"):
        load_tasks(tmp_path / "none.json")
    with pytest.raises(DataError, match="does not say how many"):
        load_tasks("world:heldout:²")
    with pytest.raises(DataError, match="by name, not in a folder"):
        load_tasks(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no .json"):
        load_tasks(tmp_path / "empty")
    with pytest.raises(DataError, match="'cc' is not in .*2 tasks"):
        load_tasks(file, ids=["cc"])
    with pytest.raises(DataError, match="'aa' is asked for twice"):
        tasks_by_id(load_tasks(file), ["aa", "aa"])


COMMIT = "0123456789abcdef" * 2 + "01234567"


def hub(monkeypatch, rows: list[dict]) -> list[tuple]:
    """Let the Hub answer with a real table of these rows; what it was asked for is in the list returned."""
    import datasets

    asked = []

    def load_dataset(name, split, revision):
        asked.append((name, split, revision))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_hub_dataset_gives_the_same_tasks_as_the_files(tmp_path, monkeypatch) -> None:
    files = load_tasks(write(tmp_path, "c.json", CHALLENGES), write(tmp_path, "s.json", SOLUTIONS))
    rows = []
    for name, task in CHALLENGES.items():
        outputs = SOLUTIONS[name]
        rows.append({**task, "test": [t | {"output": g} for t, g in zip(task["test"], outputs, strict=True)]})
    for column in ("id", "task_id"):
        asked = hub(monkeypatch, [{column: name} | row for name, row in zip(CHALLENGES, rows, strict=True)])
        assert load_tasks("hub:owner/name", revision=COMMIT) == files
        assert load_tasks("hub:owner/name:evaluation", ids=["bb"], revision=COMMIT) == files[1:]
        assert asked == [("owner/name", "training", COMMIT), ("owner/name", "evaluation", COMMIT)]
    hub(monkeypatch, rows)
    assert [t.id for t in load_tasks("hub:owner/name:trial", revision=COMMIT)] == ["trial-00000", "trial-00001"]
    hidden = [{**row, "test": [{"input": t["input"], "output": None} for t in row["test"]]} for row in rows]
    hub(monkeypatch, hidden)
    assert [t.solutions for t in load_tasks("hub:owner/name", revision=COMMIT)] == [(), ()]


def test_the_pinned_hub_dataset_needs_no_revision_and_any_other_does(monkeypatch) -> None:
    asked = hub(monkeypatch, [{"train": [PAIR], "test": [PAIR]}])
    load_tasks("hub:lordspline/arc-agi")
    load_tasks("hub:lordspline/arc-agi:evaluation", revision=COMMIT)
    (name, split, pinned), other = asked
    assert (name, split) == ("lordspline/arc-agi", "training") and len(pinned) == 40 and pinned != COMMIT
    assert other == ("lordspline/arc-agi", "evaluation", COMMIT)
    for source, revision, words in (
        ("hub:owner/name", None, "hub:owner/name has no pinned revision.*`revision`"),
        ("hub:owner/name", "main", "'main' is not a commit"),
        ("hub:owner/name", "bfd9b79", "'bfd9b79' is not a commit"),
        ("hub:name", COMMIT, "not of the form hub:owner/name"),
        ("hub:owner/", COMMIT, "not of the form"),
        ("c.json", COMMIT, "goes with a source hub:"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            load_tasks(source, revision=revision)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="s.json goes with a challenges file"):
        load_tasks("hub:lordspline/arc-agi", "s.json")
    assert len(asked) == 2  # nothing was fetched for any of these


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "holds no task"),
        ([{"id": "a", "train": [PAIR]}], "row 0: the key 'test'"),
        ([{"id": "a", "train": [PAIR], "test": None}], "row 0: the key 'test'"),
        ([{"id": "a", "question": "x"}], "row 0: the key 'train'"),
        ([{"id": "a", "train": [PAIR], "test": [PAIR]}] * 2, "row 1: task 'a' occurs twice"),
        ([{"id": "a", "train": PAIR, "test": [PAIR]}], "row 0, train is a dict"),
        ([{"id": "a", "train": [PAIR], "test": [{"input": [[1, 10]]}]}], r"row 0, test\[0\], input.*0 to 9"),
        ([{"id": "a", "train": [{"input": "[[1]]", "output": "[[1]]"}], "test": [PAIR]}], "not rows of numbers"),
    ],
)
def test_a_hub_dataset_of_another_shape_is_named_in_one_sentence(monkeypatch, rows, words) -> None:
    hub(monkeypatch, rows)
    with pytest.raises(DataError, match=words) as caught:
        load_tasks("hub:owner/name", revision=COMMIT)
    assert "hub:owner/name" in str(caught.value) and "\n" not in str(caught.value)


def test_the_text_is_what_numpy_prints_and_reads_back() -> None:
    draws = random.Random(0)
    for _ in range(200):
        rows, columns = draws.randint(1, 30), draws.randint(1, 30)
        grid = tuple(tuple(draws.randint(0, 9) for _ in range(columns)) for _ in range(rows))
        assert grids.to_text(grid) == str(np.array(grid))
        assert grids.parse(grids.answer_text(grid)).grid == grid


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[1 2]\n [3 4]]", ((1, 2), (3, 4))),
        ("[[1 2]\n [3 4]]#", ((1, 2), (3, 4))),
        ("1 2 3 4", ((1, 2, 3, 4),)),
        # rows on one line, which the released code makes 1 × 4; commas; fences; thoughts
        ("[[1 2]  [3 4]]", ((1, 2), (3, 4))),
        ("[[1 2] [3 4]]#", ((1, 2), (3, 4))),
        ("[[1 2][3 4]]", ((1, 2), (3, 4))),
        ("[[1, 2]]", ((1, 2),)),
        ("[[1, 2], [3, 4]]", ((1, 2), (3, 4))),
        ("[[1,2],[3,4]]", ((1, 2), (3, 4))),
        ("[[1, 2],\n [3, 4]]", ((1, 2), (3, 4))),
        ("[1, 2],\n[3, 4],", ((1, 2), (3, 4))),
        ("1, 2\n3, 4", ((1, 2), (3, 4))),
        ("1 2\n3 4", ((1, 2), (3, 4))),
        ("```\n[[1 2] [3 4]]\n```", ((1, 2), (3, 4))),
        ("```json\n[[1, 2], [3, 4]]\n```", ((1, 2), (3, 4))),
        ("so:\n```python\n[[7]]#", ((7,),)),  # the stop text came before the fence closed
        ("[[7]]\n```", ((7,),)),
        ("```[[7]]```", ((7,),)),
        ("<think>[[1]] or [[2]]</think>\n[[3]]", ((3,),)),
        ("[[3]] <think>or [[4]]", ((3,),)),
        # more than one grid, or brackets that say nothing clear
        ("[[1 2]] [[3 4]]", "not_a_grid"),
        ("[[1 2]]\n\n[[3 4]]", "not_a_grid"),
        ("[[1 2] 3 4]", "not_a_grid"),
        ("[1 2 [3 4]]", "not_a_grid"),
        ("[[1 2] -> [3 4]]", "not_a_grid"),
        ("1,,2", "not_a_grid"),
        (",1", "not_a_grid"),
        ("[[1 2], [3]]", "ragged"),
        ("1,000", "values"),
        ("```json\n```", "empty"),
        ("<think>[[1]]", "empty"),
        ("so:\n```\n[[7]]\n``` done", ((7,),)),
        ("[[1 2 3]\n [4]]", "ragged"),  # the released code makes this 2 × 2
        ("[[1 2]\n [3]]", "ragged"),
        ("[[1 2]\n\n [3 4]]", "ragged"),
        ("abc", "not_a_grid"),
        ("[[1 2]\n [3 4]] -> [[1]]", "not_a_grid"),
        ("[[1.0 2]]", "not_a_grid"),
        ("[[² 2]]", "not_a_grid"),
        ("[[1 2]\n [3 4]]<|im_end|>\n<|im_start|>user", ((1, 2), (3, 4))),
        ("<|channel|>analysis<|message|>[[5]]<|end|><|channel|>final<|message|>[[7]]", ((7,),)),
        ("", "empty"),  # … and this a vote
        (" \n[[]]#", "empty"),
        ("[[10 200]]", "values"),
        ("[[-1 0]]", "values"),
        ("[[" + "9" * 10_000 + "]]", "values"),
        ("[[" + " ".join("1" * 31) + "]]", "too_large"),
        ("\n".join("1" * 31), "too_large"),
        ("[" * 10**6, "empty"),
        ("1 " * 10**5, "too_large"),
    ],
)
def test_parsing_is_strict_and_says_why(text, expected) -> None:
    parsed = grids.parse(text)
    assert (parsed.grid, parsed.reason) == ((None, expected) if isinstance(expected, str) else (expected, ""))


CELLS = st.integers(0, 9)
SIDES = st.tuples(st.integers(1, 30), st.integers(1, 30))
ANY_GRID = SIDES.flatmap(
    lambda side: st.lists(st.lists(CELLS, min_size=side[1], max_size=side[1]), min_size=side[0], max_size=side[0])
).map(lambda rows: tuple(map(tuple, rows)))
#: ways in which models write a grid
WAYS = {
    "numpy": grids.to_text,
    "one line": lambda grid: grids.to_text(grid).replace("\n", ""),
    "json": lambda grid: json.dumps(grid),
    "json, indented": lambda grid: "[\n  " + ",\n  ".join(map(json.dumps, grid)) + "\n]",
    "plain": lambda grid: "\n".join(" ".join(map(str, row)) for row in grid),
    "csv": lambda grid: "\n".join(",".join(map(str, row)) for row in grid),
    "fence": lambda grid: f"```\n{grids.to_text(grid)}\n```",
    "json in a fence": lambda grid: f"Output:\n```json\n{json.dumps(grid)}\n```\nDone.",
    "thoughts": lambda grid: f"<think>{json.dumps(grid)}?</think>\n{grids.to_text(grid)}",
}


@given(ANY_GRID, st.sampled_from(list(WAYS)))
def test_every_way_to_write_a_grid_reads_back(grid, way) -> None:
    assert grids.parse(WAYS[way](grid) + "#") == grids.Parsed(grid)


@given(ANY_GRID, st.integers(0, 2_000))
def test_a_grid_that_is_cut_is_never_another_grid_of_its_shape(grid, at) -> None:
    found = grids.parse(grids.to_text(grid)[:at]).grid
    assert found is None or found == grid or len(found) < len(grid) or len(found[0]) < len(grid[0])


@given(st.text(st.sampled_from("[]0123 ,\n#`-+xé") | st.characters(), max_size=80))
def test_parsing_never_raises_and_gives_a_grid_or_a_reason(text: str) -> None:
    parsed = grids.parse(text)
    assert (parsed.grid is None) == (parsed.reason in grids.UNREADABLE)
    assert parsed.grid is None or grids.problem(parsed.grid) == ""


@pytest.mark.parametrize("filler", [*" ,]`[\n\t1-", "] ", ", ", "],", "[ "])
def test_no_answer_takes_long_to_read(filler: str) -> None:
    begun = time.monotonic()
    for text in (f"[[1]{filler * 100_000}x", filler * 100_000):
        grids.parse(text)
    assert time.monotonic() - begun < 5


def test_reasons_are_counted_with_every_key() -> None:
    counted = grids.count_reasons(map(grids.parse, ("[[1]]", "", "x", "[[1 2]\n [3]]", "")))
    assert counted == {"ok": 1, "empty": 2, "ragged": 1, "values": 0, "too_large": 0, "not_a_grid": 1}
