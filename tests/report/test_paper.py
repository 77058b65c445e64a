"""The paper's numbered items beside ours, and two runs beside each other."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
from conftest import REPOSITORY
from fixtures_seal import real

from seal_lib import paths
from seal_lib.errors import DataError, RunError
from seal_lib.records import UNSCORED
from seal_lib.report import compare, paper, publish, tables
from seal_lib.report.paper_values import paper_values
from seal_lib.report.results import COLUMNS, with_paper_values
from seal_lib.report.stats import Estimate
from seal_lib.runs import journal, manifest, params

pd = pytest.importorskip("pandas")


def item(number: str) -> paper.Item:
    return next(found for found in paper.items() if number in (found.v2, found.v1))


def results(*rows: tuple[str, str, str, float]) -> "pd.DataFrame":
    """A results table of (experiment, arm, metric, value), each with an interval of 0.1 to both sides."""
    lines = [
        Estimate(value, value - 0.1, value + 0.1, 20, p=0.01 if metric == "difference" else math.nan).row(
            experiment, arm, metric, "clean", "seedling", "exact"
        )
        for experiment, arm, metric, value in rows
    ]
    return with_paper_values(pd.DataFrame(lines, columns=[*COLUMNS]).assign(run="x"))


def test_every_headline_of_the_paper_belongs_to_a_numbered_item() -> None:
    held = {part.experiment for one in paper.items() for part in one.parts}
    printed = {entry["experiment"] for entry in paper_values() if entry["headline"]}
    assert printed <= held
    for one in paper.items():
        assert not one.parts or any(paper.printed(part) for part in one.parts), one.number
        assert not one.notebook or one.notebook in params.names()
        assert one.parts or one.pictures or one.space or one.lacks
        for version in ("v1", "v2"):
            number = getattr(one, version)
            named = [e for part in one.parts for of in paper.printed(part).values() for e in of.values()]
            assert not number or re.fullmatch(r"(Figure|Table) \d+", number)
            assert version == "v1" or not number or not named or any(version in e["version"] for e in named) or one.v1


def test_numbers_are_those_of_both_versions() -> None:
    assert item("Table 10").number == "Table 6 (v1), Table 10 (v2)" and item("Table 9").number == "Table 9 (v2)"
    for version, last in (("v1", 6), ("v2", 10)):
        tabled = [getattr(one, version) for one in paper.items() if getattr(one, version).startswith("Table")]
        assert sorted(tabled, key=lambda name: int(name.split()[1])) == [f"Table {n}" for n in range(1, last + 1)]
    assert len({one.slug for one in paper.items()}) == len(paper.items())


def test_ours_stands_beside_both_versions_and_a_gap_is_a_gap() -> None:
    df = results(
        ("knowledge/prompts/implications_long", "seal_round_2", "accuracy", 0.6),
        ("knowledge/prompts/implications_long", "own_untrained", "accuracy", 0.2),
        ("knowledge/prompts/implications_long", "my_arm", "accuracy", 0.3),
        ("knowledge/prompts/implications_long", "seal_round_2 - own_untrained", "difference", 0.4),
    )
    frame = paper.beside(df, item("Table 10")).query("setting == 'implications, long'").set_index("arm")
    ours, untrained, mine = (frame.loc[name] for name in ("SEAL, round 2", "untrained self-edits", "my arm"))
    assert (ours["ours, %"], ours["v1"], ours["v2"]) == ("60.0 [50.0, 70.0]", "51.8", "54.4")
    assert ours["separable from untrained?"].startswith("yes, +40.0 [+30.0, +50.0]")
    assert untrained["separable from untrained?"] == "" and (mine["v1"], mine["v2"]) == ("", "")
    assert frame.loc["SEAL, round 1", "ours, %"] == "not run"
    assert frame.loc["stronger writer's notes", "v1"] == ""  # printed in v2 only
    assert paper.reproduced(df, item("Table 10")) == (2, 26)
    assert "GPT-4.1" in frame.attrs["notes"][0] or "GPT-4.1" in paper.beside(df, item("Table 10")).attrs["notes"][0]


def test_sizes_stand_beside_the_paper_s_and_say_which_model_each_is() -> None:
    sizes = {size: f"seedling-{size}" for size in ("smaller", "main", "larger")}
    df = pd.concat(
        [
            results((f"knowledge/model_size/{size}", "own_untrained", "accuracy", 0.2)).assign(model=model)
            for size, model in sizes.items()
        ]
    )
    (over_sizes,) = (one for one in paper.items() if one.number == "Table 6 (v2)")
    frame = paper.beside(df, over_sizes)
    ran = frame[frame["ours, %"] != "not run"]
    assert list(zip(ran["model"], ran["v2"], strict=True)) == [
        ("seedling-smaller", "31.9"),
        ("seedling-main", "39.7"),
        ("seedling-larger", ""),
    ]
    assert paper.reproduced(df, over_sizes) == (2, 6)
    one_model = paper.beside(results(("knowledge/model_size/main", "frozen", "accuracy", 0.1)), over_sizes)
    assert "model" not in one_model  # a column with one value is left out


def test_what_the_released_files_give_has_its_own_column() -> None:
    frame = paper.beside(results(("knowledge/restem", "seal_round_1", "accuracy", 0.5)), item("Figure 4"))
    line = frame.set_index("arm").loc["SEAL, round 1"]
    assert (line["v1"], line["v2"]) == ("43.7", "43.7")  # printed
    assert line["authors' files, 95 %"] == "42.7 [38.6, 47.0]"  # recomputed


def test_searched_settings_stand_beside_the_parameters() -> None:
    frame = paper.beside(results(), item("Table 3"), "seedling").set_index("setting")
    for scale in ("seedling", "paper"):
        used = params.resolve("12_restem_rounds", scale)
        assert frame.loc["lr", f"ours, scale {scale}"] == f"{used['lr']:g}"
    searched = {float(value) for value in frame.loc["lr", "searched by the authors"].split(", ")}
    assert params.resolve("12_restem_rounds", "paper")["lr"] in searched


@pytest.mark.parametrize("number", ["Table 1", "Table 2", "Table 5"])
def test_latex_has_no_bare_sign(number: str) -> None:
    one = item(number)
    text = paper.to_latex(
        paper.beside(results(("knowledge/single_passage", "a_b", "accuracy", 0.5)), one), "50 % & more", "x"
    )
    assert text.count(r"\begin{tabular}") == 1 and r"\toprule" in text
    for line in text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines():
        bare = re.sub(r"\\[&%$#_{}]|\$[^$]*\$|\\\\|\\(top|mid)rule", "", line)
        assert not re.search(r"[%$#_{}<>−×]", bare), line
    columns = text[text.index(r"\toprule") :].splitlines()[1].count(" & ")
    assert all(line.count(" & ") == columns for line in text.splitlines() if line.endswith(r"\\"))


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open, self.headings, self.loaded = [], [], []

    def handle_starttag(self, tag, attrs) -> None:
        self.open.append(tag) if tag not in ("meta", "img", "br") else None
        self.loaded += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_the_page_has_every_item_in_order_and_loads_nothing(tmp_path) -> None:
    (tmp_path / "continual_paper.png").write_bytes(b"png")
    reader = Reader()
    reader.feed(paper.page(results(("arc/few_shot", "icl", "success_rate", 0.1)), tmp_path, "<small>"))
    assert reader.open == [] and len(reader.loaded) == 2  # the loops, and the picture that exists
    assert all(value.startswith("data:image/") for value in reader.loaded)
    assert "".join(reader.headings).count(". ") == len(paper.items())
    assert reader.headings[0].startswith("Figure 1.")


def test_files_are_written_for_tables_only(tmp_path) -> None:
    written = paper.write(results(("arc/few_shot", "icl", "success_rate", 0.1)), tmp_path, "seedling")
    assert written == [one.slug for one in paper.items() if one.slug.startswith("table")]
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".tex"}
    frame = pd.read_csv(tmp_path / "table_1.csv")
    assert frame.set_index("arm").loc["in context only", "ours, %"] == "10.0 [0.0, 20.0]"


def test_the_list_of_what_is_reproduced_counts_each_scale() -> None:
    df = results(("arc/few_shot", "icl", "success_rate", 0.1))
    lines = paper.reproduction({"seedling": df, "paper": results()}).splitlines()
    (row,) = [line for line in lines if line.startswith("| Table 1 ")]
    assert "| 1 of 4 values | 0 of 4 values |" in row


def test_command_line_writes_the_page_or_says_what_is_missing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    assert publish.main(["page", "--scale", "seedling"]) == 2 and "make figures" in capsys.readouterr().err
    folder = paths.gallery("seedling")
    paths.write_text(folder / "results.csv", results(("arc/few_shot", "icl", "success_rate", 0.1)).to_csv(index=False))
    assert publish.main(["page", "--scale", "seedling"]) == 0
    assert "10.0 [0.0, 20.0]" in (folder / "paper.html").read_text(encoding="utf-8")


def test_the_committed_list_is_that_of_the_committed_results() -> None:
    published = {p.parent.name: publish.read_results(p) for p in sorted((REPOSITORY / "figures").glob("*/results.csv"))}
    assert (REPOSITORY / "REPRODUCTION.md").read_text(encoding="utf-8") == paper.reproduction(published)


def test_standard_errors_are_those_of_the_released_file() -> None:
    stored = json.loads(real("seal_released", "continual_overall.json").read_text())
    found = {e["metric"]: e for e in paper_values() if e["experiment"] == "continual/matrix"}
    assert len(found) == 8 + 36
    for metric, entry in found.items():
        edits, passage = (int(number) for number in re.findall(r"\d+", metric))
        error = stored["std_over_sequences"][edits][passage - 1] / math.sqrt(stored["n_sequences"])
        assert entry["value"] == pytest.approx(stored["mean_over_sequences"][edits][passage - 1], abs=6e-4)
        assert entry["high"] - entry["value"] == pytest.approx(1.96 * error, abs=2e-4)


# ------------------------------------------------------------------------------------------- two runs


def answered(unit: str, right: int, outcome: str = "ok") -> dict:
    answers = [
        {"question": "q", "gold": "g", "text": "t", "grades": {"exact": float(k < right)}, "blank": False}
        for k in range(4)
    ]
    return {
        "id": f"a/{unit}",
        "unit_id": unit,
        "arm": "a",
        "edit": None,
        "seed": 0,
        "grader": "exact",
        "reason": "",
        "steps": 1,
        "tokens": 1,
        "left_out": {},
        "first_loss": None,
        "last_loss": None,
        "answers": answers if outcome == "ok" else [],
        "outcome": outcome,
    }


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))

    def make(key: str, phases: dict[str, list[dict]], **parameters: object):
        folder = paths.runs() / "12_restem_rounds" / "seedling" / key
        folder.mkdir(parents=True)
        rows = journal.Journal(folder / "rows.jsonl")
        for phase, of in phases.items():
            rows.append([{"phase": phase, "unit": str(k), **row} for k, row in enumerate(of)])
        paths.write_json(folder / "parameters.json", {"parameters": parameters})
        record = {"end": "2026-01-01", "code": {}, "files": {}, "key": key, "parameters": parameters}
        paths.write_json(folder / "run.json", record)
        return folder

    return make


def test_two_runs_are_compared_passage_by_passage(made) -> None:
    names = [f"p{k}" for k in range(8)]
    better = [answered(name, 4 if k < 6 else 2) for k, name in enumerate(names)]
    worse = [answered(name, 1 if k < 6 else 2 + k % 2) for k, name in enumerate(names)]
    a = made("aaaaaaaaaaaa", {"seed_0/evaluate/own_untrained": better, "seed_0/score": worse}, lr=0.1, seeds=[0])
    b = made("bbbbbbbbbbbb", {"seed_0/evaluate/own_untrained": worse, "evaluate/frozen": worse}, lr=0.2, extra=1)
    differing = compare.parameters(a, b).set_index("parameter")
    assert differing.to_dict("index") == {
        "lr": {"first": "0.1", "second": "0.2"},
        "seeds": {"first": "[0]", "second": "–"},
        "extra": {"first": "–", "second": "1"},
    }
    (line,) = compare.differences(a, b).to_dict("records")
    assert (line["arm"], line["wins"], line["ties"], line["losses"]) == ("untrained self-edits", 6, 1, 1)
    mean = (6 * 0.75 - 0.25) / 8
    assert line["difference"].startswith(f"{100 * mean:+.1f}") and line["separable?"] == "yes"
    units = compare.by_unit(a, b, "own_untrained")
    assert units.index[0] == "p7" and units.loc["p0", "difference"] == 0.75 and len(units) == 8


def test_loops_are_paired_and_what_could_not_be_graded_is_no_zero(made) -> None:
    both = {f"seed_{s}/evaluate/a": [answered(f"p{k}", (k + s) % 5) for k in range(7)] for s in range(2)}
    lost = {phase: [dict(row) for row in rows] for phase, rows in both.items()}
    lost["seed_0/evaluate/a"][3] = answered("p3", 0, "diverged")
    a, b = made("aaaaaaaaaaaa", both), made("bbbbbbbbbbbb", lost)
    (line,) = compare.differences(a, b).to_dict("records")
    assert line["ties"] == 7 and "2 loops" in line["n"] and "dropped" in line["n"]
    assert math.isnan(compare.values(b)["a"]["seed_0"]["p3"])


def test_a_task_is_the_share_of_its_configurations_that_solve_it(made) -> None:
    rows = [
        {"unit_id": "t", "pass_2": passed, "outcome": outcome}
        for passed, outcome in ((True, "ok"), (False, "too_many_steps"), (False, UNSCORED[0]))
    ]
    folder = made("aaaaaaaaaaaa", {"evaluate/icl": rows})
    assert compare.values(folder) == {"icl": {"": {"t": 0.5}}}


def test_runs_that_cannot_be_compared_are_named(made) -> None:
    a = made("aaaaaaaaaaaa", {"evaluate/a": [answered("p", 1)]})
    b = made("bbbbbbbbbbbb", {"evaluate/b": [answered("p", 1)]})
    with pytest.raises(DataError, match="no arm on common units"):
        compare.differences(a, b)
    with pytest.raises(DataError, match="has not evaluated arm 'b'; it has a"):
        compare.by_unit(a, b, "b")
    with pytest.raises(RunError, match="no finished run.*make status"):
        compare.run_folder("12_restem_round", "seedling")
    assert compare.run_folder("12_restem_rounds/seedling/aaaaaaaaaaaa", "seedling") == a
    assert compare.run_folder(str(b), "seedling") == b
    assert compare.run_folder("12_restem_rounds", "seedling") == manifest.newest("12_restem_rounds", "seedling")
    assert tables.units(Estimate(0.5, 0.4, 0.6, 7, "unit")) == "7 units"
