"""The report joins, refuses and shows gaps. Run: pytest tests/report/test_report.py"""

import json
import math
import re
import shutil

import pytest
from conftest import REPOSITORY

from seal_lib.runs import manifest

pytest.importorskip("pandas")
from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.report import publish as publishing
from seal_lib.report import results, tables
from seal_lib.report.arms import arm_label, arm_rank, round_of
from seal_lib.report.paper_values import paper_index, paper_values

HEADER = ",".join(results.COLUMNS)


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
        kept = {"results.csv": manifest.content_hash(folder / "results.csv")}
        about = {"git": {"sha": "abc"}, "wall_seconds": 90, "end": when, "code": {}, "files": kept, "key": name}
        (folder / "run.json").write_text(json.dumps(about))
    return folder


def line(
    arm,
    value,
    metric="accuracy",
    experiment="knowledge/single_passage",
    low="",
    high="",
    n=20,
    loops=1,
    dropped=0,
    p="",
    grader="exact",
):
    counts = f"{n},passage,{loops},{dropped}"
    return f"{experiment},{arm},{metric},{value},{low},{high},{counts},BCa,{p},{grader},clean,seedling,x"


def test_joins_the_paper_and_keeps_the_numbers():
    make_run("11_single_passage", [line("frozen", 0.0412345678, low=0.01, high=0.08), line("my_arm", 0.5)])
    frame = results.collect("seedling").set_index("arm")
    assert frame.loc["frozen", "paper_value"] == 0.327
    assert "Table 2" in frame.loc["frozen", "paper_source"] and "Qwen2.5-7B" in frame.loc["frozen", "paper_source"]
    assert frame.loc["frozen", "value"] == 0.041235
    assert math.isnan(frame.loc["my_arm", "paper_value"]) and math.isnan(frame.loc["my_arm", "low"])
    written = (paths.gallery("seedling") / "results.csv").read_text()
    assert written.splitlines()[0] == (
        "experiment,arm,metric,value,low,high,n,unit,loops,dropped,interval,p,grader,protocol,model,"
        "paper_value,paper_source,run"
    )
    again = results.read_results(paths.gallery("seedling") / "results.csv").set_index("arm")
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
    manifest = json.loads((paths.gallery("seedling") / "manifest.json").read_text())
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


def test_p_values_of_one_experiment_from_two_runs_are_refused():
    """Each run adjusts its own: two families under one name."""
    difference = {"metric": "difference", "low": 0.1, "high": 0.3}
    make_run("11_single_passage", [line("a - b", 0.2, p=0.01, **difference)])
    make_run("12_restem_rounds", [line("c", 0.4), line("c - b", 0.2, **difference)])
    assert len(results.collect("seedling")) == 3
    make_run("12_restem_rounds", [line("c - b", 0.2, p=0.01, **difference)], name="newer", when=3000)
    with pytest.raises(DataError, match="knowledge/single_passage has p-values of 11_.* and 12_"):
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
    assert len(frame) == 0 and list(frame.columns) == results.TABLE_COLUMNS
    assert "not run" in publishing.results_block(frame)


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
    shown = tables.table(example(), "knowledge/single_passage")
    by_arm = shown.set_index("arm")
    assert list(shown["arm"]) == [
        "frozen model",
        "passage only",
        "untrained self-edits",
        "SEAL, round 2",
        "stronger writer's notes",
    ]
    assert by_arm.loc["stronger writer's notes", "accuracy, %"] == "not run"
    assert by_arm.loc["stronger writer's notes", "paper, %"] == "46.3"
    assert by_arm.loc["frozen model", "accuracy, %"] == "0.0 [0.0, 0.0]"  # a measured zero is not a gap
    assert by_arm.loc["SEAL, round 2", "accuracy, %"] == "70.0 [60.0, 80.0]"
    assert by_arm.loc["SEAL, round 2", "separable from untrained?"] == "yes, +50.0 [+40.0, +60.0]"
    assert by_arm.loc["SEAL, round 2", "separable from frozen?"].startswith("no")
    assert by_arm.loc["SEAL, round 2", "blank, %"] == "5.0"


def test_a_table_says_loops_graders_failures_and_p():
    rows = [
        line("frozen", 0.1, low=0.05, high=0.2, n=100),
        line("own_untrained", 0.3, low=0.2, high=0.4, n=100, loops=3),
        line("seal_round_2", 0.7, low=0.6, high=0.8, n=98, loops=3, dropped=6),
        line("seal_round_2", 0.02, "failed_rate", grader=""),
        line("seal_round_2 - own_untrained", 0.4, "difference", low=0.3, high=0.5, loops=3, p=0.0002),
        line("own_untrained - frozen", 0.2, "difference", low=0.1, high=0.3, loops=3, p=0.09),
        line("passage_only", "", n=0, dropped=100),
    ]
    make_run("11_single_passage", rows)
    shown = tables.table(results.collect("seedling"), "knowledge/single_passage")
    by_arm = shown.set_index("arm")
    assert by_arm["n"].to_dict() == {
        "frozen model": "100 passages",
        "passage only": "",
        "untrained self-edits": "100 passages × 3 loops",
        "SEAL, round 2": "98 passages × 3 loops (6 dropped)",
        "stronger writer's notes": "",
    }
    assert by_arm.loc["passage only", "accuracy, %"] == "none: 100 dropped"  # ran, and every trial failed
    assert by_arm.loc["SEAL, round 2", "failed, %"] == "2.0"
    assert by_arm.loc["SEAL, round 2", "separable from untrained?"] == "yes, +40.0 [+30.0, +50.0], p < 0.001"
    # the interval excludes zero, Holm's p does not: the one definition says no
    assert by_arm.loc["untrained self-edits", "separable from frozen?"] == "no, +20.0 [+10.0, +30.0], p = 0.090"
    said = " ".join(shown.attrs["notes"])
    assert "Grader: exact." in said and "grader" not in shown
    assert "Rows that name no loops were run once" in said
    assert "20.0, 28.8, 33.0, 36.3 where GPT-4.1 gives 32.7, 39.7, 46.3, 47.0" in said
    for page in (tables.to_markdown(shown), tables.to_html(shown)):
        assert "Rows that name no loops were run once" in page
    mixed = [line("frozen", 0.1), line("own_untrained", 0.3, grader="contains")]
    make_run("11_single_passage", mixed, name="abc", when=3000)
    shown = tables.table(results.collect("seedling"), "knowledge/single_passage")
    assert shown.set_index("arm").loc["untrained self-edits", "grader"] == "contains" and "failed, %" not in shown
    assert any("One loop: the spread between loops is unknown." in note for note in shown.attrs["notes"])


def test_a_note_stands_where_the_papers_value_is():
    make_run("12_restem_rounds", [line("seal_round_1", 0.5, experiment="knowledge/restem")])
    shown = tables.table(results.collect("seedling"), "knowledge/restem")
    cell = shown.set_index("arm").loc["SEAL, round 1", "paper, %"]
    assert cell == "43.7 (note 1)"
    (note,) = [text for text in shown.attrs["notes"] if text.startswith("Note 1:")]
    assert "42.7" in note and note in tables.to_markdown(shown)


def test_a_difference_of_other_trials_than_the_rows_shown_is_not_passed_off_as_theirs():
    """62.1 − 41.6 is not 22.1: the difference was taken against an untrained arm of other seeds."""
    rows = [
        line("own_untrained", 0.416),
        line("seal_round_2", 0.621),
        line("frozen", 0.1),
        line("seal_round_2 - own_untrained", 0.221, "difference", low=0.18, high=0.26),
        line("seal_round_2 - frozen", 0.521, "difference", low=0.45, high=0.6),
    ]
    make_run("11_single_passage", rows)
    shown = tables.table(results.collect("seedling"), "knowledge/single_passage").set_index("arm")
    assert shown.loc["SEAL, round 2", "separable from untrained?"] == f"{tables.OTHER_TRIALS} (+22.1)"
    assert shown.loc["SEAL, round 2", "separable from frozen?"].startswith("yes, +52.1")


def test_a_difference_that_was_computed_the_other_way_round_is_turned():
    rows = [line("passage_only", 0.2), line("frozen", 0.1)]
    rows.append(line("frozen - passage_only", -0.1, "difference", low=-0.2, high=-0.05))
    make_run("11_single_passage", rows)
    shown = tables.table(results.collect("seedling"), "knowledge/single_passage").set_index("arm")
    assert shown.loc["passage only", "separable from frozen?"] == "yes, +10.0 [+5.0, +20.0]"


def test_two_protocols_in_one_table_say_so():
    rows = [line("frozen", 0.1), line("frozen", 0.2).replace("clean", "authors_v1")]
    make_run("11_single_passage", rows)
    shown = tables.table(results.collect("seedling"), "knowledge/single_passage")
    assert set(shown["protocol"]) >= {"clean", "authors_v1"}


def test_markdown_and_html_escape_what_they_show():
    import pandas as pd

    frame = pd.DataFrame({"arm": ["a|b", "<b>"], "accuracy, %": ["1.0", "not run"]})
    assert "a\\|b" in tables.to_markdown(frame)
    page = tables.to_html(frame, "cap & tion")
    assert "&lt;b&gt;" in page and "cap &amp; tion" in page and "<b>" not in page


def test_only_whole_sets_of_reference_runs_are_published(home, monkeypatch):
    (home / "README.md").write_text(f"{publishing.BEGIN}\n{publishing.END}\n")
    make_run("11_single_passage", [line("frozen", 0.1)])
    results.collect("seedling")
    assert not paths.figures().exists()  # a finished notebook alone changes nothing that is published
    monkeypatch.setattr(manifest, "reference", lambda notebook, scale: paths.runs() / notebook / scale / "other")
    with pytest.raises(DataError, match="has not the parameters of scale seedling; run `make reproduce ONLY=11_"):
        publishing.publish("seedling", home / "README.md")
    monkeypatch.setattr(manifest, "reference", lambda notebook, scale: paths.runs() / notebook / scale / "123456789012")
    (home / "notebooks" / "12_restem_rounds.ipynb").write_text("{}")
    monkeypatch.setattr(publishing.params, "at", lambda notebook, scale: True)
    results.collect("seedling")
    with pytest.raises(DataError, match="12_restem_rounds has not run at scale seedling"):
        publishing.publish("seedling", home / "README.md")
    assert not paths.figures().exists()
    stays = paths.figures() / "seedling" / "bench_arc.csv"
    for file in (stays, stays.with_name("gone.png")):
        paths.write_text(file, "x")
    publishing.publish("seedling", home / "README.md", incomplete=True)
    here = sorted(path.name for path in stays.parent.iterdir())
    assert here == ["bench_arc.csv", "manifest.json", "results.csv"]


def test_a_part_of_a_set_is_published_beside_what_is_published_of_the_rest(home, monkeypatch):
    (home / "README.md").write_text(f"{publishing.BEGIN}\n{publishing.END}\n")
    monkeypatch.setattr(publishing.params, "at", lambda notebook, scale: True)
    monkeypatch.setattr(manifest, "reference", lambda notebook, scale: paths.runs() / notebook / scale / "123456789012")
    folders = [make_run("11_single_passage", [line("frozen", 0.1)])]
    folders += [make_run("12_restem_rounds", [line("own_untrained", 0.4)])]
    executed = {"metadata": {}, "cells": []}
    for folder in folders:
        paths.write_json(folder / "notebook.ipynb", executed)
        paths.write_json(home / "notebooks" / f"{folder.parent.parent.name}.ipynb", executed)
    results.collect("seedling")
    publishing.publish("seedling", home / "README.md")
    published = paths.figures() / "seedling"
    before = results.read_results(published / "results.csv")
    shutil.rmtree(paths.runs())  # another day, another clone
    make_run("12_restem_rounds", [line("own_untrained", 0.5)])
    results.collect("seedling")
    with pytest.raises(DataError, match="11_single_passage has not run at scale seedling"):
        publishing.publish("seedling", home / "README.md")
    monkeypatch.setenv("SEAL_PUBLISHED", "1")
    results.collect("seedling")
    publishing.publish("seedling", home / "README.md")
    now = results.read_results(published / "results.csv")
    assert now[now["arm"] == "frozen"].equals(before[before["arm"] == "frozen"])  # with the run that it came from
    assert now.loc[now["arm"] == "own_untrained", "value"].tolist() == [0.5]
    runs = {
        run["notebook"]: run.get("published", False) for run in paths.read_json(published / "manifest.json")["runs"]
    }
    assert runs == {"11_single_passage": True, "12_restem_rounds": False}
    assert [path.stem for path in (published / "notebooks").iterdir()] == ["11_single_passage"]  # 12 ran by hand


def test_what_ends_after_the_figures_were_drawn_is_no_gap(home, monkeypatch):
    """`make reproduce`, then `make publish`: the notebook that collects has not ended when it collects."""
    (home / "README.md").write_text(f"{publishing.BEGIN}\n{publishing.END}\n")
    make_run("11_single_passage", [line("frozen", 0.1)])
    (home / "notebooks" / "91_figures.ipynb").write_text("{}")
    monkeypatch.setattr(publishing.params, "at", lambda notebook, scale: True)
    monkeypatch.setattr(manifest, "reference", lambda notebook, scale: paths.runs() / notebook / scale / "123456789012")
    results.collect("seedling")
    make_run("91_figures", [])
    publishing.publish("seedling", home / "README.md")
    assert (paths.figures() / "seedling" / "results.csv").is_file()
    make_run("12_restem_rounds", [line("own_untrained", 0.4)])  # but rows that no figure shows are one
    with pytest.raises(DataError, match="12_restem_rounds/.* is not in the figures yet; run `make figures"):
        publishing.publish("seedling", home / "README.md")


def test_an_experiment_does_not_take_the_place_of_the_reference_run(monkeypatch):
    reference = make_run("11_single_passage", [line("frozen", 0.1)], name="reference", when=1000)
    make_run("11_single_passage", [line("frozen", 0.9)], name="changed", when=2000)
    monkeypatch.setattr(manifest, "reference", lambda notebook, scale: reference)
    assert results.collect("seedling")["value"].tolist() == [0.1]


def test_readme_is_rewritten_only_between_the_markers(home, monkeypatch):
    example()
    make_run("12_restem_rounds", [line("seal_round_2", 0.7, low=0.6, high=0.8, experiment="knowledge/restem")])
    results.collect("seedling")
    monkeypatch.setattr(manifest, "reference", lambda notebook, scale: paths.runs() / notebook / scale / "123456789012")
    readme = home / "README.md"
    readme.write_text(f"# Title\n\n{publishing.BEGIN}\nold\n{publishing.END}\n\ntail\n")
    publishing.publish("seedling", readme)
    once, whole = readme.read_text(), (home / "RESULTS.md").read_text()
    assert once.startswith("# Title\n") and once.endswith("tail\n") and "old" not in once
    for text in (once, whole):
        assert "| SEAL, round 2 | 70.0 [60.0, 80.0] |" in text
        assert "`arc/few_shot`): not run." in text
    assert "paper source" in whole and "paper source" not in once and "passage only" not in once
    assert "| `11_single_passage` |" in whole
    publishing.publish("seedling", readme)
    assert readme.read_text() == once
    readme.write_text("no markers")
    with pytest.raises(DataError, match="results:begin"):
        publishing.publish("seedling", readme)


def test_the_numbers_of_the_readme_are_those_of_the_results_and_of_their_csv():
    readme, whole = ((REPOSITORY / name).read_text("utf-8") for name in ("README.md", "RESULTS.md"))
    df = results.read_results(REPOSITORY / "figures" / "seedling" / "results.csv")
    shown = readme[readme.index(publishing.BEGIN) : readme.index(publishing.END)]
    everything = whole[whole.index("\n# seedling\n") :].partition("\n# seedling-full\n")[0]
    checked = 0
    for part in shown.split("**")[2::2]:  # after each heading
        experiment = part.split("`")[1]
        rows = df[(df["experiment"] == experiment) & (df["metric"] == tables.shown(experiment).metric)]
        own = {arm_label(row["arm"]): row for row in rows.query("protocol == 'clean'").to_dict("records")}
        there = everything[everything.index(f"(`{experiment}`)") :]
        for line in re.findall(r"^\| (?!arm|---).*", part, re.MULTILINE):
            arm, value, n, verdict = [cell.strip() for cell in line.split("|")[1:5]]
            assert value == tables.percent_of_row(own[arm]), line
            found = next(other for other in there.splitlines() if other.startswith(f"| {arm} | "))
            assert {value, n, verdict} - {""} <= {cell.strip() for cell in found.split("|")}, line
            checked += 1
    assert checked >= 12


def test_command_line_says_what_is_missing(capsys):
    assert publishing.main(["publish", "--scale", "seedling"]) == 2
    assert "make figures SCALE=seedling" in capsys.readouterr().err


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
    assert "42.7" in index["knowledge/restem", "seal_round_1", "accuracy"]["note"]
    assert "53.6" in index["knowledge/prompts/rewrite", "external", "accuracy"]["note"]
    assert "reasoning" in index["knowledge/prompts/reasoned_answers", "frozen", "accuracy"]["note"]
    assert index["knowledge/cpt_200_lora", "seal_round_2", "accuracy"]["value"] == 0.438
    assert index["knowledge/cpt_200_full", "seal_round_2", "accuracy"]["value"] == 0.582
    grids = {arm: entry["value"] for (where, arm, metric), entry in index.items() if where == "arc/few_shot"}
    assert grids == {"icl": 0.0, "own_untrained": 0.2, "seal_round_1": 0.725, "oracle": 1.0}
    assert {metric for where, _, metric in index if where == "arc/few_shot"} == {"success_rate"}


def released(name):
    """[(passage, [(answer by the base model, right?), ...], [(answer by the adapter, right?), ...])] of a file."""
    import json

    from fixtures_seal import real

    articles = json.loads(real("seal_released", f"{name}.json").read_text(encoding="utf-8"))["articles"]
    return {a["title"] + a["context"]: [q for done in a["completions"] for q in done["questions"]] for a in articles}


def test_the_papers_values_are_those_of_the_released_answers():
    from seal_lib.grading.graders import contains
    from seal_lib.report import stats

    files = {name: released(f"query_eval_{name}") for name in ("base", "iter2")}
    sides = {"frozen": ("base", "baseline"), "own_untrained": ("base", "adapter"), "seal_round_2": ("iter2", "adapter")}
    judged, index = {}, paper_index()
    for arm, (name, side) in sides.items():
        answers = {p: [(q[f"{side}_answer"], q) for q in asked] for p, asked in files[name].items()}
        judged[arm] = {0: {p: [float(q[f"{side}_correct"]) for _, q in given] for p, given in answers.items()}}
        held = {p: [contains(text, q["answer"]) for text, q in given] for p, given in answers.items()}
        for metric, values in (("accuracy", judged[arm][0]), ("contains", held)):
            found = stats.mean_over_units(values, stats.SHARE)
            assert found.value == pytest.approx(index["knowledge/single_passage", arm, metric]["value"], abs=6e-4)
        empty = {p: [float(not text.strip()) for text, _ in given] for p, given in answers.items()}
        printed = index["knowledge/single_passage", arm, "blank_rate"]["value"]
        assert stats.mean_over_units(empty, stats.SHARE).value == pytest.approx(printed, abs=2e-3)
    pairs = [("seal_round_2", "frozen"), ("seal_round_2", "own_untrained"), ("own_untrained", "frozen")]
    for (a, b), found in stats.compare(judged, pairs).items():
        where = "knowledge/restem" if a.startswith("seal") else "knowledge/single_passage"
        printed = index[where, f"{a} - {b}", "difference"]
        assert found.value == pytest.approx(printed["value"], abs=6e-4), (a, b)
        # theirs is a percentile bootstrap, ours a t interval: 200 passages, so they agree
        assert (found.low, found.high) == (
            pytest.approx(printed["low"], abs=3e-3),
            pytest.approx(printed["high"], abs=3e-3),
        )


def test_the_papers_continual_matrix_gives_its_own_headlines():
    index = paper_index()
    cell = {k[2]: e["value"] for k, e in index.items() if k[0] == "continual/matrix"}
    assert len(cell) == 8 + 36
    last = [cell[f"accuracy_after_8:passage_{k}"] for k in range(1, 9)]
    diagonal = [cell[f"accuracy_after_{k}:passage_{k}"] for k in range(1, 9)]
    transfer = sum(b - a for a, b in zip(diagonal[:7], last[:7], strict=True)) / 7
    headline = {
        k[2]: e["value"] for k, e in index.items() if k[:2] == ("continual/sequential", "sequential_authors_live")
    }
    assert sum(last) / 8 == pytest.approx(headline["accuracy"], abs=5e-4)
    assert sum(diagonal) / 8 == pytest.approx(headline["learning_accuracy"], abs=5e-4)
    assert transfer == pytest.approx(headline["backward_transfer"], abs=1e-3)


def test_arms_have_names_ranks_and_rounds():
    arms = ["external", "seal_round_2", "frozen", "random_round_1", "own_untrained", "seal_round_10"]
    assert sorted(arms, key=arm_rank) == [
        "frozen",
        "own_untrained",
        "random_round_1",
        "seal_round_2",
        "seal_round_10",
        "external",
    ]
    assert arm_label("seal_round_2 - own_untrained") == "SEAL, round 2 − untrained self-edits"
    assert arm_label("round_1") == "round 1"
    assert round_of("random_round_1") == ("random", 1) and round_of("frozen") is None
