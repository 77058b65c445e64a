"""What a notebook refuses before anything starts: names that only a domain knows, values that do not agree."""

import pytest

from seal_lib import paths
from seal_lib.__main__ import main


@pytest.mark.parametrize(
    ("notebook", "setting", "says"),
    [
        ("11", "arms=[frozen, passage-only]", "'passage-only' is not one of frozen"),
        ("11", "arms=[frozen, passage-only]", "did you mean 'passage_only'?"),
        ("11", "arms=[]", "is an empty list"),
        ("11", "arms=[frozen, frozen]", "stands twice"),
        ("12", "controls=[forzen]", "did you mean 'frozen'?"),
        ("12", "temperature=0", "set temperature > 0 or n=1"),
        ("12", "rounds=0", "give a number from 1"),
        ("12", "seeds=[-1]", "give a number from 0"),
        ("12", "filter=random_one", "did you mean 'random'?"),
        ("13", "arms=[sequentail_own]", "did you mean 'sequential'?"),
        ("14", "arms=[frozen, rag]", "none of these edits the weights"),
        ("13", "own_arms=[sequential_life]", "is not one of frozen"),
        ("13", "knobs_file=/dev/zero", "neither a file nor a folder"),
        ("13", "grader=f1", "is not one of exact, contains"),
        ("15", "lengths=[4, 2]", "do not rise to 4"),
        ("15", "lengths=[2, 8]", "do not rise to 4"),
        ("16", "arms=[sequential_live]", "write 'sequential'"),
        ("21", "protocol=authors", "is not the authors' way"),
        ("21", "cap=0", "give a number from 1"),
        ("21", "copies=-1", "give a number from 0"),
        ("21", "prompts=chatty", "'chatty' is not one of base, chat, seedling"),
        ("01", "pad_loss=full", "does not belong to protocol 'clean'"),
        ("01", "alpha=0", "give a number above 0"),
        ("10", "prompts_file=/dev/zero", "neither a file nor a folder"),
        ("10", "prompts_file=nowhere.yaml", "nowhere.yaml does not exist"),
        ("10", "prompts=best", "'best' is not one of"),
        ("11", "passages=nowhere.json", "passages: there is no "),
        ("11", "passages=~nobody-has-this-name/squad.json", "passages: there is no "),
        ("12", "practice=nowhere", "practice: there is no "),
        ("20", "tasks=data/nowhere", "tasks: there is no "),
        ("20", "solutions=nowhere.json", "solutions: there is no "),
        ("11", "model=nowhere", "'nowhere' is neither a shipped seedling"),
        ("11", "model=seedling-nothing", "'seedling-nothing' does not ship"),
        ("11", "model=tests", "config.json is missing"),
    ],
)
def test_refused_before_anything_starts(tmp_path, monkeypatch, capsys, notebook: str, setting: str, says: str) -> None:
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    monkeypatch.delenv("SET", raising=False)
    assert main(["run", notebook, "--scale", "smoke", "--set", setting]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not paths.runs().exists()


def test_the_committed_values_agree(capsys) -> None:
    assert main(["check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("notebook", "settings", "says"),
    [
        ("11", ["grader=judge"], "name a model, or MODEL@URL, in the parameter judge"),
        ("11", ["judge=m@http://host/v1"], "set grader to judge"),
        ("12", ["grader=judge", "judge=m@http://"], "write MODEL@https://HOST/v1"),
        ("12", ["grader=judge", "judge=m@http://host/v1", "judge_env=sk-s3cr3t"], "never a key itself"),
        ("11", ["external=m@http://host/v1", "arms=[frozen]"], "add external to the arms"),
        ("11", ["external=nowhere.json"], "external: there is no file nowhere.json"),
        ("11", ["grader=judge", "judge=nowhere.json"], "judge: there is no file nowhere.json"),
        ("11", ["endpoint_calls=0"], "give a number from 1"),
        ("18", ["judge=m@ftp://host@http://"], "write MODEL@https://HOST/v1"),
    ],
)
def test_a_judge_and_a_writer_elsewhere_are_looked_at_first(tmp_path, monkeypatch, capsys, notebook, settings, says):
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    monkeypatch.delenv("SET", raising=False)
    given = [word for setting in settings for word in ("--set", setting)]
    assert main(["run", notebook, "--scale", "smoke", *given]) == 2
    said = capsys.readouterr().err
    assert says in said and "s3cr3t" not in said and said.count("\n") == 1 and not paths.runs().exists()
