"""The report joins, refuses and shows gaps. Run: pytest tests/test_report.py"""

import json
import math

import pytest

pytest.importorskip("pandas")
from seal_lib import paths, report, results
from seal_lib.arms import arm_label, arm_rank, round_of
from seal_lib.errors import DataError
from seal_lib.paper_values import paper_index, paper_values

HEADER = ",".join(results.OWN_COLUMNS)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    monkeypatch.setenv("SEAL_SOURCE", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def make_run(notebook, lines, name="123456789012", finished=True, when=1000):
    folder = paths.runs() / notebook / "seedling" / name
    folder.mkdir(parents=True)
    (folder / "results.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    if finished:
        (folder / "run.json").write_text(json.dumps({"git": {"sha": "abc"}, "wall_seconds": 90, "end": when}))
    return folder


def line(arm, value, metric="accuracy", experiment="knowledge/single_passage", low="", high="", n=20):
    return f"{experiment},{arm},{metric},{value},{low},{high},{n},passage,1,0,,,exact,clean,seedling,x"


def test_joins_the_paper_and_keeps_the_numbers():
    make_run("11_single_passage", [line("frozen", 0.0412345678, low=0.01, high=0.08), line("my_arm", 0.5)])
    frame = results.collect("seedling").set_index("arm")
    assert frame.loc["frozen", "paper_value"] == 0.327
    assert "Table 2" in frame.loc["frozen", "paper_source"] and "Qwen2.5-7B" in frame.loc["frozen", "paper_source"]
    assert frame.loc["frozen", "value"] == 0.041235
    assert math.isnan(frame.loc["my_arm", "paper_value"]) and math.isnan(frame.loc["my_arm", "low"])
    written = (paths.figures() / "seedling" / "results.csv").read_text()
    assert written.splitlines()[0] == (
        "experiment,arm,metric,value,low,high,n,unit,loops,dropped,interval,p,grader,protocol,model,"
        "paper_value,paper_source,run"
    )
    again = results.read_results(paths.figures() / "seedling" / "results.csv").set_index("arm")
    assert again.loc["my_arm", "run"] == "11_single_passage/seedling/123456789012"
    assert again["value"].tolist() == frame["value"].tolist()


def test_only_the_newest_finished_run_counts():
    make_run("11_single_passage", [line("frozen", 0.2)], name="aaa", when=2000)
    make_run("11_single_passage", [line("frozen", 0.1)], name="bbb", when=1000)  # written later, ended earlier
    make_run("11_single_passage", [line("frozen", 0.3)], name="ccc", finished=False)
    assert results.collect("seedling")["value"].tolist() == [0.2]


def test_manifest_names_runs_used_and_notebooks_not_run(home):
    (home / "notebooks" / "12_restem_rounds.ipynb").write_text("{}")
    make_run("11_single_passage", [line("frozen", 0.1)])
    results.collect("seedling")
    manifest = json.loads((paths.figures() / "seedling" / "manifest.json").read_text())
    assert manifest["not_run"] == ["12_restem_rounds"]
    assert manifest["runs"][0]["git"]["sha"] == "abc"
    assert (manifest["runs"][0]["minutes"], manifest["runs"][0]["rows"]) == (1.5, 1)


def test_two_runs_that_disagree_are_refused_and_two_that_agree_are_one():
    make_run("11_single_passage", [line("frozen", 0.1)])
    make_run("12_restem_rounds", [line("frozen", 0.1)])
    assert len(results.collect("seedling")) == 1
    make_run("13_more", [line("frozen", 0.2)])
    with pytest.raises(DataError, match="frozen.*11_single_passage.*13_more"):
        results.collect("seedling")


def test_one_run_that_holds_a_row_twice_is_refused():
    make_run("11_single_passage", [line("frozen", 0.1), line("frozen", 0.1)])
    with pytest.raises(DataError, match="2 times"):
        results.collect("seedling")


def test_text_where_a_number_belongs_is_refused():
    make_run("11_single_passage", [line("frozen", "oops")])
    with pytest.raises(DataError, match="column 'value' holds text"):
        results.collect("seedling")


def test_nothing_run_gives_an_empty_table_with_its_columns():
    frame = results.collect("seedling")
    assert len(frame) == 0 and list(frame.columns) == results.COLUMNS
    assert "not run" in report.readme_block(frame)


def example():
    rows = [
        line("frozen", 0.0, low=0, high=0),
        line("seal_round_2", 0.7, low=0.6, high=0.8),
        line("own_untrained", 0.2, low=0.1, high=0.3),
        line("seal_round_2 - own_untrained", 0.5, "difference", low=0.4, high=0.6),
        line("seal_round_2 - frozen", 0.7, "difference", low=-0.1, high=0.9),
        line("seal_round_2", 0.05, "blank_rate"),
    ]
    make_run("11_single_passage", rows)
    return results.collect("seedling")


def test_table_orders_arms_judges_differences_and_shows_gaps():
    shown = report.table(example(), "knowledge/single_passage")
    by_arm = shown.set_index("arm")
    assert list(shown["arm"]) == [
        "frozen model", "passage only", "untrained self-edits", "SEAL, round 2", "stronger writer's notes",
    ]  # fmt: skip
    assert by_arm.loc["stronger writer's notes", "accuracy, %"] == "not run"
    assert by_arm.loc["stronger writer's notes", "paper, %"] == "46.3"
    assert by_arm.loc["frozen model", "accuracy, %"] == "0.0 [0.0, 0.0]"  # a measured zero is not a gap
    assert by_arm.loc["SEAL, round 2", "accuracy, %"] == "70.0 [60.0, 80.0]"
    assert by_arm.loc["SEAL, round 2", "separable from untrained?"] == "yes, +50.0 [+40.0, +60.0]"
    assert by_arm.loc["SEAL, round 2", "separable from frozen?"].startswith("no")
    assert by_arm.loc["SEAL, round 2", "blank, %"] == "5.0"


def test_a_difference_that_was_computed_the_other_way_round_is_turned():
    rows = [line("passage_only", 0.2), line("frozen", 0.1)]
    rows.append(line("frozen - passage_only", -0.1, "difference", low=-0.2, high=-0.05))
    make_run("11_single_passage", rows)
    shown = report.table(results.collect("seedling"), "knowledge/single_passage").set_index("arm")
    assert shown.loc["passage only", "separable from frozen?"] == "yes, +10.0 [+5.0, +20.0]"


def test_two_protocols_in_one_table_say_so():
    rows = [line("frozen", 0.1), line("frozen", 0.2).replace("clean", "authors_v1")]
    make_run("11_single_passage", rows)
    shown = report.table(results.collect("seedling"), "knowledge/single_passage")
    assert set(shown["protocol"]) >= {"clean", "authors_v1"}


def test_markdown_and_html_escape_what_they_show():
    import pandas as pd

    frame = pd.DataFrame({"arm": ["a|b", "<b>"], "accuracy, %": ["1.0", "not run"]})
    assert "a\\|b" in report.to_markdown(frame)
    page = report.to_html(frame, "cap & tion")
    assert "&lt;b&gt;" in page and "cap &amp; tion" in page and "<b>" not in page


def test_readme_is_rewritten_only_between_the_markers(home):
    example()
    readme = home / "README.md"
    readme.write_text(f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\ntail\n")
    report.write_readme("seedling", readme)
    once = readme.read_text()
    assert once.startswith("# Title\n") and once.endswith("tail\n") and "old" not in once
    assert "| SEAL, round 2 | 70.0 [60.0, 80.0] |" in once
    assert "`arc/few_shot`): not run." in once
    report.write_readme("seedling", readme)
    assert readme.read_text() == once
    readme.write_text("no markers")
    with pytest.raises(DataError, match="results:begin"):
        report.write_readme("seedling", readme)


def test_command_line_says_what_is_missing(capsys):
    assert report.main(["readme", "--scale", "seedling"]) == 2
    assert "collect --scale seedling" in capsys.readouterr().err


def test_paper_values_are_fractions_with_a_source_and_one_headline_each():
    index = paper_index()  # raises on two headlines for one cell
    for entry in paper_values():
        assert -1 <= entry["value"] <= 1 and entry["n"] > 0, entry
        for field in ("version", "table", "cell", "protocol", "model", "unit"):
            assert entry[field], (field, entry)
        if entry["low"] is not None:
            assert entry["low"] <= entry["value"] <= entry["high"], entry
    assert index["knowledge/single_passage", "seal_round_2", "accuracy"]["value"] == 0.470
    assert index["knowledge/restem", "seal_round_1", "accuracy"]["value"] == 0.437
    assert index["knowledge/cpt_200_lora", "seal_round_2", "accuracy"]["value"] == 0.438
    assert index["knowledge/cpt_200_full", "seal_round_2", "accuracy"]["value"] == 0.582
    grids = {arm: entry["value"] for (where, arm, metric), entry in index.items() if where == "arc/few_shot"}
    assert grids == {"icl": 0.0, "own_untrained": 0.2, "seal_round_1": 0.725, "oracle": 1.0}
    assert {metric for where, _, metric in index if where == "arc/few_shot"} == {"success_rate"}


def test_the_papers_continual_matrix_gives_its_own_headlines():
    index = paper_index()
    cell = {k[2]: e["value"] for k, e in index.items() if k[0] == "continual/matrix"}
    assert len(cell) == 8 + 36
    last = [cell[f"accuracy_after_8:passage_{k}"] for k in range(1, 9)]
    diagonal = [cell[f"accuracy_after_{k}:passage_{k}"] for k in range(1, 9)]
    transfer = sum(b - a for a, b in zip(diagonal[:7], last[:7], strict=True)) / 7
    headline = {k[2]: e["value"] for k, e in index.items() if k[:2] == ("continual/mitigations", "sequential")}
    assert sum(last) / 8 == pytest.approx(headline["accuracy"], abs=5e-4)
    assert sum(diagonal) / 8 == pytest.approx(headline["learning_accuracy"], abs=5e-4)
    assert transfer == pytest.approx(headline["backward_transfer"], abs=1e-3)


def test_arms_have_names_ranks_and_rounds():
    arms = ["external", "seal_round_2", "frozen", "random_round_1", "own_untrained", "seal_round_10"]
    assert sorted(arms, key=arm_rank) == [
        "frozen", "own_untrained", "random_round_1", "seal_round_2", "seal_round_10", "external",
    ]  # fmt: skip
    assert arm_label("seal_round_2 - own_untrained") == "SEAL, round 2 − untrained self-edits"
    assert arm_label("round_1") == "round 1"
    assert round_of("random_round_1") == ("random", 1) and round_of("frozen") is None
