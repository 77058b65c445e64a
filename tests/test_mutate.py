"""The mutation run on a toy: what is killed, what survives, what is listed; the checkout stays as it is.

Run: pytest tests/test_mutate.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import mutate
import pytest
from conftest import REPOSITORY

TOY = '''"""A toy."""
import time

LIMIT = 3


def fits(n: int, limit: int = LIMIT) -> bool:
    """Whether n is small."""
    return n <= limit


def pause() -> None:
    time.sleep(min(0, 60))


def store(kept: list, more) -> None:
    kept.append(more)


def unseen(a: float, b: float) -> float:
    return a / b
'''
TESTS = """from toy import fits, pause, store, unseen


def test_toy() -> None:
    assert fits(2) and not fits(4) and pause() is None
    kept: list = []
    store(kept, 1)
    assert kept == [1] and unseen(1, 1) == 1
"""
TABLE = """
preload: [pytest]
tests: {toy.py: [tests/test_toy.py]}
no_fault:
- {file: toy.py, old: "return n <= limit", new: "return n > limit", why: "not so: 2 fits"}
- {file: toy.py, old: "return n <= limit", new: "return n < limit", why: "nobody asks for 3"}
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    for name, text in {"toy.py": TOY, "tests/test_toy.py": TESTS, mutate.TESTS: TABLE, ".gitignore": "/runs/"}.items():
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def run(toy: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "tests" / "mutate.py"), "--root", str(toy), *arguments]
    bare = {"PYTHONPATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | bare)


def test_mutants_of_a_toy_are_killed_reported_and_listed(toy: Path) -> None:
    before = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file() and ".git" not in path.parts}
    done = run(toy, "--count", "0", "--patience", "3")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (toy / "runs/mutation/results.jsonl").read_text().splitlines()]
    found = {(x["old"], x["new"]): x["outcome"] for x in lines if "file" in x}
    assert found["return n <= limit", "return n > limit"] == "killed"
    assert found["time.sleep(min(0, 60))", "time.sleep(max(0, 60))"] == "timed out"
    assert found["return n <= limit", "return n < limit"] == found["return a / b", "return a * b"] == "survived"
    assert found["kept.append(more)", "return"] == "killed" and not any("LIMIT" in old for old, _ in found)
    report = (toy / "runs/mutation/report.md").read_text()
    assert "`return a / b` → `return a * b`" in report.split("## Survived: ")[1].split("## ")[0]
    assert "nobody asks for 3" in report.split("## Survived and listed: 1")[1].split("## ")[0]
    assert "not so: 2 fits" in report.split("## Listed but killed")[1]
    killed = sum(outcome != "survived" for outcome in found.values())
    assert f"**{killed} of {len(found) - 1}, " in report
    assert {path: path.read_bytes() for path in before} == before
    assert {p.name for p in toy.iterdir()} == {".git", ".gitignore", "runs", "tests", "toy.py"}

    assert run(toy, "--count", "0").stdout.startswith("\n# Mutants")  # all is known: nothing runs

    (toy / "tests" / "test_toy.py").write_text(TESTS.replace("unseen(1, 1) == 1", "unseen(1, 2) == 0.5"))
    again = run(toy, "--count", "0", "--patience", "3").stdout
    (line,) = [line for line in again.splitlines() if line.endswith("return a / b → return a * b")]
    assert line.startswith("killed ")


def test_tests_that_fail_without_a_change_and_names_of_nothing_are_refused(toy: Path) -> None:
    (toy / "tests" / "test_toy.py").write_text("def test_toy():\n    assert False\n")
    done = run(toy)
    assert done.returncode == 2 and "fail without any change: tests/test_toy.py" in done.stderr
    assert run(toy, "--only", "elsewhere").returncode == 2


def test_a_draw_is_of_the_seed_and_does_not_move_when_other_lines_come(toy: Path) -> None:
    table = mutate.read_table(toy)

    def drawn(seed: int) -> list:
        return [m.key for m in mutate.chosen(toy, table, [], 3, seed, False)]

    one, other = drawn(0), drawn(1)
    assert one != other
    (toy / "toy.py").write_text("'''Longer.'''\n\n\n" + TOY.replace('"""A toy."""\n', ""))
    assert drawn(0) == one and drawn(1) == other


def test_one_token_is_changed_and_what_is_no_behaviour_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "x: int | None = 3\n"
        "def f(a: int | None = 4, *, b=(1, 2)) -> int | None:\n"
        "    if a is not None and not b.any(axis=0):\n"
        "        raise ValueError(f'{a + 1} {b - 1}')\n"
        "    return max(a, -1) or é[0] < len('a' + b)\n"
    )
    found = {(m.kind, m.new) for m in mutate.mutants(tmp_path, "a.py")}
    test, value = "if a is not None and not b.any(axis=0):", "return max(a, -1) or é[0] < len('a' + b)"
    assert found == {
        *(
            (kind, test.replace(old, new))
            for kind, old, new in (
                ("comparison", "is not", "is"),
                ("boolean", "and", "or"),
                ("not", "not b", "b"),
                ("swapped call", "any", "all"),
                ("axis", "0", "1"),
                ("axis", "0", "-1"),
            )
        ),
        *(
            (kind, value.replace(old, new))
            for kind, old, new in (
                ("swapped call", "max", "min"),
                ("sign", "-1", "1"),
                ("constant", "-1", "-2"),
                ("constant", "-1", "-0"),
                ("boolean", "or", "and"),
                ("constant", "[0]", "[1]"),
                ("constant", "[0]", "[-1]"),
                ("comparison", "<", "<="),
                ("comparison", "<", ">="),
            )
        ),
    }
    settings = {m.new for m in mutate.mutants(tmp_path, "a.py", settings=True)} - {new for _, new in found}
    assert {"x: int | None = 4", "def f(a: int | None = 3, *, b=(1, 2)) -> int | None:"} < settings


def test_what_is_listed_is_still_there() -> None:
    table = mutate.read_table(REPOSITORY)
    files = {entry["file"] for entry in table["no_fault"]}
    there = {m.key for file in files for m in mutate.mutants(REPOSITORY, file)}
    gone = [entry for entry in table["no_fault"] if mutate.key_of(entry) not in there]
    assert not gone, gone
    assert all(len(entry["why"]) > 10 for entry in table["no_fault"])
    for tests in table["tests"].values():
        assert all((REPOSITORY / name).is_file() for name in tests), tests
