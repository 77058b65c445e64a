"""What a run took, stage by stage and arm by arm, and what it costs by a price list."""

from pathlib import Path

import pytest
from conftest import Suite

from seal_lib.__main__ import main
from seal_lib.errors import DataError
from seal_lib.report import spending, stats
from seal_lib.runs import opening

PHASES = {  # phase → (seconds, counters)
    "evaluate/frozen": (1.0, {"scored": 10}),
    "seed_0/evaluate/own_untrained/write": (2.0, {"generated": 100}),
    "seed_0/evaluate/own_untrained": (30.0, {"trained": 1000, "scored": 10}),
    "seed_0/seal_round_1/sample": (4.0, {"generated": 300, "other_prompt_tokens": 2_000_000}),
    "seed_0/seal_round_1/score": (50.0, {"trained": 5000, "scored": 50}),
    "artifact:policies/seed_0/seal_round_1": (6.0, {}),
    "seed_0/seal_round_2/score": (70.0, {"trained": 6000, "scored": 50}),
    "seed_0/random_round_1/sample": (8.0, {"generated": 300}),
    "seed_0/evaluate/seal_round_1": (10.0, {"trained": 900, "scored": 10}),
    "seed_0/evaluate/seal_round_2": (11.0, {"trained": 900, "scored": 10}),
    "seed_0/evaluate/random_edit_sft": (12.0, {"trained": 900, "scored": 10}),
}
GAINS = {"own_untrained": (0.2, 0.1, 0.3), "seal_round_1": (0.4, 0.3, 0.5), "seal_round_2": (0.1, -0.1, 0.3)}
PRICES = spending.Prices("EUR", hour=36.0, million_read=1.5, million_written=100.0)


@pytest.fixture
def folder(suite: Suite) -> Path:
    suite.params("11_spent")
    suite.notebook("11_spent", "x: int = 1  # anything", "run = 0")
    run = opening.start("11_spent", {"x": 1})
    for phase, (seconds, counts) in PHASES.items():
        run._costs.append([{"phase": phase, "chunk": 0, "units": 5, "seconds": seconds, "counts": counts}])
    rows = [
        stats.Estimate(0.5, 0.4, 0.6, 9).row("knowledge/restem", arm, "accuracy", "clean", "m", "exact")
        for arm in ("frozen", "own_untrained", "seal_round_1", "seal_round_2", "random_edit_sft")
    ]
    rows += [
        stats.Estimate(*gain, 9).row("knowledge/restem", f"{arm} - frozen", "difference", "clean", "m", "exact")
        for arm, gain in GAINS.items()
    ]
    run.finish(rows, {})
    run.close()
    return run.folder


def test_stages_add_up_whatever_seed_round_and_arm(folder: Path) -> None:
    table = spending.stages(folder, PRICES)
    assert table.loc["all", "seconds"] == sum(seconds for seconds, _ in PHASES.values())
    assert table.loc["score", ["phases", "seconds", "tokens trained"]].tolist() == [2, 120, 11000]
    assert table.loc["evaluate", ["phases", "seconds", "questions asked"]].tolist() == [5, 64, 50]
    assert table.loc["evaluate, write", "tokens written"] == 100 and table.loc["policies", "seconds"] == 6
    assert list(table.index)[0] == "score" and list(table.index)[-1] == "all"
    assert "calls elsewhere" not in table  # none were made
    assert table.loc["sample", "EUR"] == pytest.approx(36 * 12 / 3600 + 1.5 * 2)
    assert "EUR" not in spending.stages(folder)


def test_an_arm_takes_its_policy_s_rounds_and_a_point_is_priced_where_the_gain_is_certain(folder: Path) -> None:
    table = spending.by_arm(folder, PRICES)
    assert table["seconds"].to_dict() == {
        "frozen model": 1,
        "untrained self-edits": 32,
        "SEAL, round 1": 4 + 50 + 6 + 10,
        "SEAL, round 2": 4 + 50 + 6 + 70 + 11,
        "random self-edit kept": 8 + 12,
    }
    assert table.loc["untrained self-edits", "seconds a point"] == 32 / 20 == 1.6
    assert table.loc["SEAL, round 1", "EUR a point"] == pytest.approx((36 * 70 / 3600 + 3) / 40)
    assert table.loc["SEAL, round 2", "seconds a point"] == "no certain gain"
    assert table.loc["SEAL, round 2", "EUR a point"] != table.loc["SEAL, round 2", "EUR a point"]  # NaN


def test_the_command_tells_it_of_a_notebook(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\nhour: 36\nmillion_read: 1.5\n")
    assert main(["spent", "11", "--prices", str(prices)]) == 0
    said = capsys.readouterr().out
    assert "EUR a point" in said and "SEAL, round 1" in said and "score" in said
    assert main(["spent", "11"]) == 0 and "EUR" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hour: -1", "hour: -1 is no price; write a number from 0"),
        ("hour: .inf", "hour: inf is no price"),
        ("hour: yes", "hour: 'yes' is no price"),
        ("hour: true", "hour: True is no price"),
        ("hours: 3", "hours is no price; a list has currency, hour"),
        ("- 3", "is no price; a list has currency"),
    ],
)
def test_a_bad_price_list_gets_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(DataError, match=says):
        spending.Prices.read(tmp_path / "prices.yaml")
    with pytest.raises(DataError, match="no file .*none.yaml; write currency"):
        spending.Prices.read(tmp_path / "none.yaml")


def test_the_plan_prices_its_hours(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from seal_lib.plan.__main__ import main as plan

    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\nhour: 1000\n")
    said = []
    for more in ([], ["--prices", str(prices)]):
        assert plan(["--scale", "paper", "--only", "11", "--device", "h100", *more]) == 0
        said.append(capsys.readouterr().out)
    hours = float(said[0].partition("total: ")[2].split()[0])
    money = float(said[1].partition("EUR an hour: ")[2].split()[0])
    assert "EUR" not in said[0] and money == pytest.approx(1000 * hours, abs=51)  # hours are printed with one digit
