"""A dry run looks and tells: nothing is fetched or run, what lacks is named with the way out."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from seal_lib import models
from seal_lib.__main__ import enough
from seal_lib.errors import ParameterError
from seal_lib.knowledge import data
from seal_lib.models import budget
from seal_lib.plan import __main__ as plan
from seal_lib.plan import cells, costs, needs
from seal_lib.runs import params, runner

H200, L4 = costs.device("h200"), costs.device("l4")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """No cache and no run on this machine."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    monkeypatch.delenv("SET", raising=False)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return tmp_path


@pytest.mark.parametrize("scale", ["seedling", "smoke", "small", "paper"])
def test_every_scale_is_planned_to_the_end(empty, capsys, scale: str) -> None:
    assert plan.main(["--scale", scale, "--device", "h200"]) == 0
    told = capsys.readouterr().out
    for notebook in params.names():
        assert (notebook in told) == (scale in params.scales(notebook)), notebook  # 02 is for reading: seedling only
    assert "Nothing is run or downloaded" in told and "GPU-hours" in told and "(assumed)" in told
    assert not (empty / "runs").exists() and not (empty / "hf").exists()


def test_a_laptop_hears_what_is_missing_for_the_paper(empty, capsys) -> None:
    for flags, code in (([], 0), (["--strict"], 1)):
        assert plan.main(["--scale", "paper", "--only", "11,21,22", "--device", "h200", *flags]) == code
        told = capsys.readouterr().out
        for text in (
            "11: model Qwen/Qwen2.5-7B@d1497293 is not in the cache (15.2 GB to download)",
            "11: data hub:rajpurkar/squad@7b6d24c4 is not in the cache (2 MB to download)",
            "it is gated: accept its licence there",
            "git clone https://github.com/fchollet/ARC-AGI data/ARC-AGI",
        ):
            assert text in told, text
    assert plan.main(["--scale", "paper", "--only", "22", "--device", "h200", "--strict"]) == 1
    assert "22: reads the run of 21_arc_self_edits at scale paper, which is not finished" in capsys.readouterr().out


def test_the_shipped_models_need_nothing(empty, capsys) -> None:
    assert plan.main(["--scale", "seedling", "--strict", "--device", "cpu"]) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_what_is_in_the_cache_is_found_there(empty, monkeypatch) -> None:
    name, size = "Qwen/Qwen2.5-7B", 15.2e9
    told, missing = needs.need_model(name)
    assert told and missing == pytest.approx(size, rel=0.01)
    home = empty / "hf" / "hub" / "models--Qwen--Qwen2.5-7B"
    commit = home / "snapshots" / models.REVISIONS[name]
    commit.mkdir(parents=True)
    (home / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(empty / "hf" / "hub"))
    for file in ("config.json", "model-1.safetensors"):
        (commit / file).write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (commit / "model.safetensors.index.json").write_text(json.dumps(index))
    assert needs.need_model(name)[0]  # half a download is none
    (commit / "model-2.safetensors").write_text("")
    assert needs.need_model(name) == ("", 0.0)
    assert needs.need_model("seedling-knowledge", "float32") == ("", 0.0)
    assert "no pinned revision" in needs.need_model("nobody/model", "float32")[0]
    assert needs.need_data("world:heldout") == ("", 0.0)
    prepared = empty / "hf" / "datasets" / "rajpurkar___squad" / "plain_text" / "0.0.0"
    (prepared / data.SQUAD_REVISION).mkdir(parents=True)
    assert needs.need_data("hub:rajpurkar/squad") == ("", 0.0)


def test_what_does_not_fit_is_refused_with_a_sentence(empty, capsys) -> None:
    assert plan.main(["--scale", "paper", "--only", "11", "--device", "l4", "--strict"]) == 1
    told = capsys.readouterr().out
    assert "11: Qwen/Qwen2.5-7B, bank and vllm on one device:" in told and "there are 24.0 GB" in told
    p = params.resolve("12_restem_rounds", "paper")
    work, shape = cells.of("12_restem_rounds", p), budget.shape_of(p["model"])
    training, learning = needs.budgets(p, work, shape, H200)
    assert training.parts["earlier policies of the loop (2)"] == pytest.approx(2 * 15.2e9, rel=0.01)
    assert "M-step" in learning.title and training.fits and learning.fits
    more = needs.budgets({**p, "slots": 64}, cells.of("12_restem_rounds", {**p, "slots": 64}), shape, H200)
    assert more[0].needed > training.needed


def test_memory_is_told_or_refused_before_a_notebook_starts(empty, monkeypatch, capsys) -> None:
    monkeypatch.setattr(costs, "this_device", lambda: L4)
    monkeypatch.setattr(runner, "_execute", lambda *_: 0)
    with pytest.raises(ParameterError, match=r"24\.0 GB; the largest part is .*Use fewer slots"):
        runner.run("11_single_passage", "paper", check=enough)
    monkeypatch.setattr(costs, "this_device", lambda: H200)
    assert runner.run("11_single_passage", "paper", check=enough) == 0
    told = capsys.readouterr().out
    assert "weights (bfloat16)" in told and "vLLM's own copy of the weights" in told
    assert (
        runner.run("11_single_passage", "paper", {"device": "cpu"}, check=enough) == 0 and capsys.readouterr().out == ""
    )
    by_hf = needs.check("11_single_passage", {**params.resolve("11_single_passage", "paper"), "engine": "hf"}, H200)
    assert "own copy" not in by_hf and "weights (bfloat16)" in by_hf


def test_prices_follow_device_and_work() -> None:
    p = params.resolve("11_single_passage", "paper")
    shape = budget.shape_of(p["model"])

    def hours(device, **changes) -> float:
        work = cells.of("11_single_passage", {**p, **changes})
        return sum(plan.price(w, shape, device, "bfloat16") for w in work) / 3600

    assert hours(L4) > 3 * hours(H200) and hours(H200, pad_loss="full") > 5 * hours(H200)
    assert 0.02 < hours(H200) < 0.5  # the authors: 200 self-edits x 30 s, on two cards
    assert hours(H200, slots=1) > 1.5 * hours(H200)


def test_overlays_are_respected_and_wrong_names_refused(empty, monkeypatch, capsys) -> None:
    assert plan.main(["--scale", "paper", "--only", "11", "--device", "h200"]) == 0
    usual = capsys.readouterr().out
    monkeypatch.setenv("SET", "clean")
    assert plan.main(["--scale", "paper", "--only", "11", "--device", "h200"]) == 0
    assert capsys.readouterr().out != usual  # fewer tokens without the pads
    assert plan.main(["--scale", "paper", "--only", "11", "--device", "h300"]) == 2
    assert "DEVICE=h300 is not known" in capsys.readouterr().err
    assert plan.main(["--scale", "huge"]) == 2


def test_planning_opens_no_connection_and_loads_no_torch_but_for_update_rules(empty) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from seal_lib.plan import __main__ as plan\n"
        "code = plan.main(['--scale', 'paper', '--device', 'h200', '--only', '11,12,21,91'])\n"
        "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'datasets'} & set(sys.modules)\n"
        "sys.exit(code or plan.main(['--scale', 'paper', '--device', 'h200']) or int(bool(heavy)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
