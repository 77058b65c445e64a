"""What notebooks 13 to 16 say of their rows: only what can be told apart, with the rows' own numbers.

Run: pytest tests/continual/test_continual_findings.py
"""

import json
import math

import pandas as pd
import pytest
from test_continual_plots import study

from seal_lib.continual import findings, tables
from seal_lib.report import publish, stats, words
from seal_lib.report.results import with_paper_values

LABEL = {"model": "m", "grader": "exact"}


def lines(S: int) -> tuple[list[dict], list[dict]]:
    by_arm = study(S=S)
    return tables.result_rows(by_arm, **LABEL), tables.comparisons(by_arm, **LABEL)[0]


def test_a_comparison_is_told_with_its_own_numbers_if_it_is_separable() -> None:
    rows, compared = lines(16)
    text = findings.mitigations(rows + compared)
    told = {line["arm"]: line for line in compared}
    replay = told["replay - sequential"]
    low, high = (f"{100 * replay[end]:+.1f}" for end in ("low", "high"))
    assert f"**replay** ends above **sequential edits** by {100 * replay['value']:+.1f} points [{low}, {high}]" in text
    assert replay["p"] < 0.05 and "(16 streams, p" in text
    separable = [
        row
        for row in compared
        if stats.separable(stats.Estimate(row["value"], row["low"], row["high"], row["n"], p=row["p"]))
    ]
    assert text.count(" ends ") == len(separable)
    assert f"{len(separable)} of {len(compared)} comparisons can be told apart." in text
    kept = next(r for r in rows if (r["arm"], r["metric"]) == ("replay", "prior_kept"))
    assert f"replay {100 * kept['value']:.1f} %" in text


def test_an_adjusted_p_above_one_in_twenty_silences_an_interval_without_zero() -> None:
    """Replay + KL − joint had an interval without zero and p 0.090 after Holm, and was called separable."""
    row = stats.Estimate(-0.03, -0.055, -0.005, 16, "sequence", interval="t", p=0.09)
    texts = [
        findings.mitigations([e.row("continual/mitigations", "kl_replay - joint", "difference")])
        for e in (row, stats.Estimate(**{**row.__dict__, "p": 0.04}))
    ]
    assert texts[0] == "- 0 of 1 comparisons can be told apart."
    said = "**replay + KL** ends below **joint retraining** by −3.0 points [−5.5, −0.5] (16 streams, p = 0.040)"
    assert said in texts[1]


def test_few_streams_say_nothing() -> None:
    rows, compared = lines(3)
    assert findings.mitigations(rows + compared) == f"- 0 of {len(compared)} comparisons can be told apart."
    assert findings.edits(rows) == words.NOTHING_SEPARABLE
    assert findings.retention([]) == findings.mitigations([]) == words.NOTHING_SEPARABLE


def test_overwriting_is_told_of_arms_whose_backward_transfer_is_away_from_zero() -> None:
    rows, compared = lines(16)
    text = findings.edits(rows + compared)
    bwt = next(r for r in rows if (r["arm"], r["metric"]) == ("sequential", "BWT"))
    assert "**sequential edits**: later edits overwrite what was taught." in text
    assert f"backward transfer {100 * bwt['value']:+.1f} points".replace("-", "−") in text
    assert "Of what the model knew before any edit" in text
    assert "**frozen model**: later" not in text and "**isolation, oracle**: later" not in text


def test_retention_tells_changes_between_lengths() -> None:
    by_arm = study(K=4, S=10)
    rows = tables.length_rows(by_arm, [2, 4], **LABEL)
    change = {r["arm"]: r for r in rows if r["metric"] == "change_2_to_4"}
    assert set(change) == set(by_arm)
    ps = [change[arm]["p"] for arm in by_arm]
    assert min(ps) >= len(by_arm) * 2 / 2**10  # Holm over the arms: the smallest possible p of ten streams, times six
    text = findings.retention(rows)
    assert f"**sequential edits** loses {100 * change['sequential']['value']:+.1f} points".replace("-", "−") in text
    assert "Of the prior questions it answers" in text
    gone = [
        arm
        for arm, row in change.items()
        if not stats.separable(stats.Estimate(row["value"], row["low"], row["high"], row["n"], p=row["p"]))
    ]
    assert gone and all(f"**{arm}**" not in text for arm in gone)


def test_tuning_tells_its_price_and_what_was_cut_short() -> None:
    made = [
        ("sequential", {"lr_scale": 1.0}, False, ""),
        ("sequential", {"lr_scale": 0.5}, True, ""),
        ("ewc", {"strength": 30.0, "lr_scale": 1.0}, True, "unfinished, strength"),
        ("ewc", {}, False, ""),
    ]
    text = findings.tuning(
        [
            {
                "rule": rule,
                "knobs": json.dumps(knobs),
                "chosen": chosen,
                "edge": edge,
                "trainings": 48,
                "diverged": int(not knobs),
            }
            for rule, knobs, chosen, edge in made
        ]
    )
    assert "4 settings of 2 rules were tried, 192 trainings of one edit: 2 to 2 settings a rule." in text
    assert "No neighbour is better than the choice: sequential edits." in text
    assert "**online EWC** (strength = 30, lr_scale = 1): the settings were used up, and the values of stre" in text
    assert "1 settings made a stream diverge" in text


@pytest.mark.parametrize("arm", ["frozen", "isolation_oracle", "joint"])
def test_what_cannot_vary_is_marked_in_the_rows(arm: str) -> None:
    rows, _ = lines(8)
    fixed = {r["metric"] for r in rows if r["arm"] == arm and r["interval"] == "by construction"}
    wanted = {"frozen": {"recovery_joint"}, "isolation_oracle": {"recovery_isolated"}, "joint": {"recovery_joint"}}
    assert wanted[arm] <= fixed
    for row in rows:  # no sample says "100.0 [100.0, 100.0]"
        if row["low"] == row["high"] and not math.isnan(row["low"]):
            assert row["interval"] == "by construction", (row["arm"], row["metric"])


def test_the_readme_explains_shares_above_one_and_easy_routing() -> None:
    rows, compared = lines(8)
    table = pd.DataFrame([row | {"run": "r"} for row in rows + compared])
    table = table.assign(metric=table.metric.replace({"AA_4": "AA_8"}))
    block = publish.results_block(with_paper_values(table))
    assert "more than 100 % of its gain is possible" in block and "Routing is easy" in block
