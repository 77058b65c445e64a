"""The cost model gives the study's floors, says what binds, and never mistakes an assumption for a measurement."""

import json
import shutil

import pytest
from fixtures_seal import real_data

from seal_lib.errors import ParameterError
from seal_lib.models import budget
from seal_lib.plan import costs

QWEN = budget.SHAPES["Qwen/Qwen2.5-7B"]
H200 = costs.device("h200")
COSTS = costs.Costs(QWEN, H200)


def ms(lengths: list[float], targets: str = "qv", adapters: int = 1) -> float:
    """Floor of one adapter-step in milliseconds."""
    return 1e3 * costs.Costs(QWEN, H200, targets).train_step(lengths, adapters).floor / adapters


@pytest.mark.parametrize(
    ("targets", "padded", "sequential", "bank"), [("qv", 76.8, 6.67, 2.25), ("all-linear", 78.5, 7.33, 2.94)]
)
def test_the_floors_of_the_study_come_out(targets: str, padded: float, sequential: float, bank: float) -> None:
    assert ms([2048], targets) == pytest.approx(padded, rel=2e-3)
    assert ms([60], targets) == pytest.approx(sequential, rel=2e-3)
    for k in (4, 16, 64):
        assert ms([60] * k, targets, k) == pytest.approx(bank, rel=2e-3)


def test_the_numbers_behind_the_floors() -> None:
    assert COSTS.weights / 1e9 == pytest.approx(7.07, abs=5e-3)
    moved = 4 * COSTS.weights / H200.bandwidth  # twice, two bytes each
    assert 1e3 * moved == pytest.approx(6.58, abs=5e-3)
    assert 90 * ms([47]) / 1e3 == pytest.approx(0.60, abs=5e-3)  # a self-edit one after the other
    assert 90 * ms([47] * 8, adapters=8) / 1e3 == pytest.approx(0.16, abs=5e-3)  # and in the bank


def test_what_binds_changes_with_the_batch() -> None:
    few, many = (COSTS.train_step([60] * k, k) for k in (1, 16))
    assert few.moving > few.computing and many.computing > many.moving
    one, lots = (COSTS.decode_step(rows, 100) for rows in (1, 1024))
    assert one.moving > one.computing and lots.floor > one.floor
    tiny = costs.Costs(budget.shape_of("seedling-knowledge"), H200, "all-linear", 8).train_step([14])
    assert tiny.seconds == tiny.starting > tiny.floor and tiny.seconds == pytest.approx(3 * 225 * 7e-6)  # launching


def test_an_estimate_is_the_floor_over_the_efficiency_and_more_work_costs_more() -> None:
    step = COSTS.train_step([60] * 16, 16)
    assert step.seconds == pytest.approx(step.floor / costs.efficiency("train", "h200")[0])
    assert COSTS.training(160, 60, slots=16).seconds == pytest.approx(10 * step.seconds)
    read, written = COSTS.generation(512, 200, 64, rows=256)
    assert written.seconds == pytest.approx(128 * COSTS.decode_step(256, 232).seconds)
    assert read.computing > read.moving  # 51 200 prompt tokens a batch; one token a row is written at a time
    share, _ = costs.efficiency("answer", "h200")
    assert read.seconds == pytest.approx(2 * 256 * 200 * 2 * 7.07e9 / 790e12 / share, rel=0.02)


def test_a_measured_efficiency_replaces_the_assumed_one_on_its_own_device_only(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SEAL_HOME", str(tmp_path / "nothing"))
    assert costs.efficiency("train", "h200") == (0.12, "assumed") and costs.efficiency("train", "cpu")[0] == 0.4
    (tmp_path / "figures" / "gpu").mkdir(parents=True)
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    record = {"device_key": "h200", "device": "NVIDIA H200", "gpus": ["NVIDIA H200, 580, 143771 MiB"]}
    for name, date, share in (("bench_gpu", "2027-01-02T03", 0.55), ("bench_gpu_old", "2026-01-02T03", 0.2)):
        text = json.dumps({**record, "date": date, "efficiency": {"train": share}})
        (tmp_path / "figures" / "gpu" / f"{name}.json").write_text(text)
    assert costs.efficiency("train", "h200") == (0.55, "measured 2027-01-02 on 1 NVIDIA H200")  # the newest
    assert costs.efficiency("answer", "h200") == costs.efficiency("answer", "l4") == (0.07, "assumed")


def test_the_first_measurement_is_read_as_it_was_written(tmp_path, monkeypatch) -> None:
    folder = real_data()
    if folder is None:
        pytest.skip("SEAL_DATA is not set")
    (tmp_path / "figures").mkdir()
    shutil.copytree(folder / "gpu", tmp_path / "figures" / "gpu")
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    for kind, share in costs.ASSUMED["gpu"].items():
        measured, source = costs.efficiency(kind, "h200")
        assert measured == pytest.approx(share, abs=5e-3) and source == "measured 2026-11-26 on 1 NVIDIA H200"


def test_the_device_is_found_by_name_and_unknown_ones_keep_their_memory() -> None:
    known = costs.this_device({"gpus": ["NVIDIA H200, 575.57, 143771 MiB"]})
    assert (known.key, known.count, known.memory) == ("h200", 1, 143771 * 2**20)
    odd = costs.this_device({"gpus": ["Wonder 9, 1.0, 49152 MiB"] * 2})
    assert odd.memory == 49152 * 2**20 and odd.is_gpu and odd.bandwidth == costs.device("l4").bandwidth
    assert costs.this_device({"gpus": []}).key == "cpu" and not costs.this_device({"gpus": []}).is_gpu
    with pytest.raises(ParameterError, match="DEVICE=h300 is not known; write one of h200"):
        costs.device("h300")
    assert all(d.source and d.flops > d.bandwidth for d in costs.devices().values())
