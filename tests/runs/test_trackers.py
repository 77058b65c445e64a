"""Trackers hear what a run does and decide nothing about it. Run: pytest tests/runs/test_trackers.py

The clients themselves are optional (extras tensorboard, mlflow, wandb); their tests skip where they are absent.
"""

import importlib.util

import pytest
from conftest import Suite

from seal_lib import __main__, paths
from seal_lib.errors import ParameterError
from seal_lib.runs import lifecycle, manifest, opening, trackers

NAME = "11_tracked"
CELL = 'lr: float = 0.1  # rate\nhub_token: str = "s3cret"  # of somebody\nn: int = 4  # units'
SUMMARY = {"AA": {"replay": 0.75, "joint": float("nan")}, "best": 3, "said": "text", "ok": True}


def opened(suite: Suite) -> lifecycle.Run:
    suite.params(NAME)
    suite.notebook(NAME, CELL, "run = 0")
    return opening.start(NAME, {"lr": 0.1, "hub_token": "s3cret", "n": 4})


def work(run: lifecycle.Run, fails_at: str = "") -> None:
    def rows(part: list[str]) -> list[dict]:
        if fails_at in part:
            raise KeyboardInterrupt
        run.count(trained=10 * len(part), asked=1)
        return [{"text": "a secret of the passage"} for _ in part]

    run.map("first", ["a", "b", "c", "d"], rows, chunk=2)
    run.map("second", ["a"], rows)
    run.finish([], SUMMARY)


class Fake:
    """A client that hears everything; ``fails``: what it cannot do."""

    heard: list["Fake"] = []
    fails = ""

    def __init__(self, about: trackers.About) -> None:
        self.about, self.lines, self.summary = about, [], "open"
        self.do("open")
        Fake.heard.append(self)

    def do(self, what: str) -> None:
        if what == Fake.fails:
            raise OSError(f"no {what}\nhere")

    def log(self, numbers, step: int) -> None:
        self.do("log")
        self.lines.append((step, dict(numbers)))

    def close(self, summary, step: int) -> None:
        self.do("close")
        self.summary = summary


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setitem(trackers.TRACKERS, "json", Fake)  # a package that is there
    monkeypatch.setenv(trackers.NAMED_BY, "json")
    monkeypatch.setattr(Fake, "heard", [])
    return Fake


def test_a_tracker_hears_parameters_counts_and_the_last_numbers_and_no_secret(suite: Suite, fake: type[Fake]) -> None:
    run = opened(suite)
    work(run)
    (heard,) = fake.heard
    assert heard.about.parameters == {"lr": 0.1, "hub_token": manifest.REDACTED, "n": 4}
    assert heard.about.place == f"{NAME}/seedling" and heard.about.id.startswith(run.key)
    first, second, third = [numbers for _, numbers in heard.lines]
    assert (first["rows"], second["rows"], third["rows"]) == (2, 4, 5)
    assert (first["units/first"], second["units/first"], third["units/second"]) == (2, 4, 1)
    assert (second["trained"], third["trained"], third["asked"]) == (40, 50, 3)
    assert third["seconds"] >= second["seconds"] >= 0 and "seconds/second" in third
    steps = [step for step, _ in heard.lines]
    assert steps == sorted(set(steps))
    assert heard.summary == {"AA/replay": 0.75, "best": 3.0}
    said = repr([heard.about, heard.lines, heard.summary])
    assert "s3cret" not in said and "passage" not in said


def test_a_tracker_makes_no_other_run(suite: Suite, fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened(suite)
    work(run)
    monkeypatch.delenv(trackers.NAMED_BY)
    again = opened(suite)
    assert again.folder == run.folder and again.resumed == 5 and not again.tracker
    assert trackers.NAMED_BY not in (run.folder / "parameters.json").read_text()


def test_a_resumed_run_is_the_same_there_and_steps_go_on(suite: Suite, fake: type[Fake]) -> None:
    run = opened(suite)
    with pytest.raises(KeyboardInterrupt):
        work(run, fails_at="c")
    run = opened(suite)  # the cell is run again
    work(run)
    before, after = fake.heard
    assert before.about == after.about and before.summary is None and after.summary["best"] == 3
    assert after.lines[0][0] > before.lines[-1][0] and after.lines[0][1]["units/first"] == 4


@pytest.mark.parametrize("what", ["open", "log", "close"])
def test_a_tracker_that_fails_is_one_warning(suite: Suite, fake: type[Fake], monkeypatch, capsys, what: str) -> None:
    monkeypatch.setattr(Fake, "fails", what)
    run = opened(suite)
    work(run)
    assert (run.folder / "run.json").exists()
    said = capsys.readouterr().out
    assert said.count("warning: SEAL_TRACKER is given up, the run goes on: OSError: no") == said.count("warning") == 1


def test_one_that_is_not_there_is_refused_at_once(suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    suite.params(NAME)
    suite.notebook(NAME, CELL, "run = 0")
    monkeypatch.setenv(trackers.NAMED_BY, "wandbb")
    assert __main__.main(["run", NAME]) == 2 and "did you mean 'wandb'?" in capsys.readouterr().err
    monkeypatch.setitem(trackers.TRACKERS, "no_such_client", Fake)
    monkeypatch.setenv(trackers.NAMED_BY, "no_such_client")
    assert (
        __main__.main(["all", "--only", NAME]) == 2 and 'pip install -e ".[no_such_client]"' in capsys.readouterr().err
    )
    with pytest.raises(ParameterError, match="no_such_client"):
        opened(suite)  # in JupyterLab
    assert not list(paths.runs().glob("*/*/*/rows.jsonl"))


# ------------------------------------------------------------------------------------------ the clients


def client(name: str):
    absent = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(absent, reason=f'{name} is not installed here: pip install -e ".[{name}]"')


@pytest.fixture
def real(suite: Suite, monkeypatch: pytest.MonkeyPatch):
    """name of a client → a run that was interrupted and taken up again under it, and the folder of all clients."""
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)

    def go(name: str) -> tuple[lifecycle.Run, str]:
        monkeypatch.setenv(trackers.NAMED_BY, name)
        run = opened(suite)
        with pytest.raises(KeyboardInterrupt):
            work(run, fails_at="c")
        run.close()
        run = opened(suite)
        assert run.tracker, "it was given up"
        work(run)
        for path in (paths.runs() / "trackers").rglob("*"):
            assert path.is_dir() or b"s3cret" not in path.read_bytes()
        return run, str(paths.runs() / "trackers")

    return go


@client("tensorboard")
def test_tensorboard_shows_the_run(real) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    run, folder = real("tensorboard")
    shown = EventMultiplexer().AddRunsFromDirectory(f"{folder}/tensorboard").Reload()
    (name,) = shown.Runs()  # the resumed run is no second one
    assert name.startswith(f"{NAME}/seedling/{run.key}")
    assert [event.value for event in shown.Scalars(name, "units/first")] == [2, 4]
    assert shown.Scalars(name, "summary/AA/replay")[0].value == 0.75
    (text,) = {event.tensor_proto.string_val[0].decode() for event in shown.Tensors(name, "parameters/text_summary")}
    assert "| lr | 0.1 |" in text and manifest.REDACTED in text


@client("mlflow")
def test_mlflow_shows_the_run(real) -> None:
    from mlflow import MlflowClient

    run, folder = real("mlflow")
    asked = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (shown,) = asked.search_runs([asked.get_experiment_by_name(trackers.PROJECT).experiment_id])
    assert shown.info.status == "FINISHED" and shown.info.run_name.startswith(f"{NAME}/seedling/{run.key}")
    assert shown.data.params == {"lr": "0.1", "hub_token": manifest.REDACTED, "n": "4"}
    assert shown.data.metrics["summary/AA/replay"] == 0.75
    assert [m.value for m in asked.get_metric_history(shown.info.run_id, "units/first")] == [2, 4]


@client("wandb")
def test_wandb_stays_offline_without_a_key_and_holds_the_run(real) -> None:
    from pathlib import Path

    run, folder = real("wandb")
    files = sorted(Path(folder).glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2  # of both sessions, with one id: `wandb sync` joins them
    assert {path.name for path in files} == {files[0].name} and files[0].name.startswith(f"run-{run.key}")
    last = files[-1].read_bytes()
    assert b"AA/replay" in last and b"0.75" in last and b"units/second" in last
    assert manifest.REDACTED.encode() in last
