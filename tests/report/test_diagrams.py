"""The paper's method diagrams, filled with an example from a run; a run that is absent is a gap.

Run: pytest tests/report/test_diagrams.py
"""

from dataclasses import replace
from pathlib import Path

import pytest
from fixtures_seal import trial

from seal_lib import paths
from seal_lib.arc import diagrams as arc_diagrams
from seal_lib.arc import world
from seal_lib.arc.domain import Attempt
from seal_lib.arc.self_edits import Config
from seal_lib.knowledge import diagrams as knowledge_diagrams
from seal_lib.knowledge.data import load_passages
from seal_lib.records import Answer, PassageTrial, SelfEdit, to_dict
from seal_lib.report import diagrams, figures, paper
from seal_lib.report.results import TABLE_COLUMNS
from seal_lib.runs import journal

pd = pytest.importorskip("pandas")
TEXTS = {
    "passages": "world:heldout",
    "n_passages": 3,
    "passages_seed": 0,
    "practice": "world:learning",
    "n_practice": 2,
    "practice_seed": 0,
}
BOTH = {"model": "m", "protocol": "clean", "grader": "exact", "rank": 8}
PASSAGES = {**BOTH, **TEXTS, "epochs": 2, "split_newlines": True, "add_passage": True}
PUZZLES = {**BOTH, "tasks": "world:heldout:3", "solutions": None, "ids": None, "tasks_seed": 0}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Phase → records, parameters → a finished run's folder, and a table of results that are its."""
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))

    def make(experiment: str, phases: dict[str, list], parameters: dict) -> tuple[Path, "pd.DataFrame"]:
        folder = paths.runs() / "12_some" / "seedling" / "abc"
        for phase, records in phases.items():
            folder.mkdir(parents=True, exist_ok=True)
            lines = [{"phase": phase, "unit": str(k), **to_dict(record)} for k, record in enumerate(records)]
            journal.Journal(folder / "rows.jsonl").append(lines)
        paths.write_json(folder / "run.json", {"end": "", "code": {}, "parameters": parameters})
        row = dict.fromkeys(TABLE_COLUMNS, "") | {"experiment": experiment, "run": "12_some/seedling/abc"}
        return folder, pd.DataFrame([row])

    return make


def tried(name: str, right: list[int], text: str, ident: str = "") -> PassageTrial:
    answers = tuple(
        Answer(f"question {k}?", f"gold {k}", f"said {k}" if grade else "", {"exact": float(grade)}, not grade)
        for k, grade in enumerate(right)
    )
    edit = SelfEdit(ident or f"{name}/0", name, text, "policy")
    done = replace(trial(name, [0.0], edit=edit, name=ident or f"{name}/0"), answers=answers)
    return replace(done, steps=7, tokens=99, first_loss=2.0, last_loss=0.5)


def words(function, table: "pd.DataFrame", folder: Path) -> str:
    """What stands in the figure; all of it lies inside."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = figures.draw(function, table, "drawn", folder, title="A title")
    renderer, whole = FigureCanvasAgg(figure).get_renderer(), figure.bbox
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    for text in shown:
        box = text.get_window_extent(renderer)
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= whole.x1 + 1 and box.y1 <= whole.y1 + 1, text.get_text()
    assert (folder / "drawn.png").stat().st_size > 8000
    return "\n".join(text.get_text() for text in shown)


def test_one_self_edit_is_the_middle_one_of_the_last_round(run, tmp_path: Path) -> None:
    names = [p.id for p in load_passages("world:heldout", 3)]
    last = [tried(n, r, f"- notes on {n}") for n, r in zip(names, ([1, 1], [0, 0], [1, 0]), strict=True)]
    phases = {
        "evaluate/frozen": [tried(names[2], [0, 1], "")],
        "seed_4/evaluate/seal_round_1": [tried(names[0], [0, 1], "- of an earlier round")],
        "seed_4/evaluate/seal_round_2": last,
        "seed_5/evaluate/seal_round_2": [tried(names[0], [1, 0], "- of another loop")],
    }
    folder, results = run("knowledge/restem", phases, PASSAGES)
    ((function, kind, table, _),) = knowledge_diagrams.pictures(results, results, results)
    assert function is knowledge_diagrams.one_self_edit and kind == "one_self_edit"
    said = words(function, table, tmp_path)
    passage = load_passages("world:heldout", 3)[2]
    assert f"- notes on {names[2]}" in said and passage.title in said and passage.text.split()[0] in said
    assert "said 0 ✓" in said and "(blank) ✗" in said and "said 1 ✓" in said  # after, after, before
    assert "1 of 2 right with the adapter" in said and "loss 2.00 → 0.50" in said and "12_some/abc" in said
    long = [replace(t, edit=replace(t.edit, text="- a very long line of notes\n" * 400)) for t in last]
    folder.joinpath("rows.jsonl").unlink()
    run("knowledge/restem", {"seed_4/evaluate/seal_round_2": long}, {**PASSAGES, "passages": "no/such/file.json"})
    said = words(function, knowledge_diagrams.edit_example(folder), tmp_path)
    assert "…" in said and "not at hand" in said  # neither the text nor an answer before


def test_the_two_loops_show_the_passage_whose_rewards_differ_most(run, tmp_path: Path) -> None:
    names = [p.id for p in load_passages("world:learning", 4, 4)[2:]]  # of the second loop's first round
    same = [tried(names[0], [1, 1], "- same", f"{names[0]}/{k}") for k in range(2)]
    apart = [tried(names[1], [k, 0], f"- text {k}", f"{names[1]}/{k}") for k in range(2)]
    phases = {"seed_4/seal_round_1/score": same + apart, "seed_4/seal_round_1/fresh_seed": [same[0], apart[1]]}
    _, results = run("knowledge/restem", phases, {**PASSAGES, "n_practice": 4})
    ((function, _, table, _),) = knowledge_diagrams.pictures(results, results, results)
    said = words(function, table, tmp_path)
    assert "- text 0" in said and "- text 1" in said and "- same" not in said
    assert "0 %" in said.splitlines() and "50 %  kept" in said
    assert "finetuned on the 2 kept self-edits of 2 passages" in said
    passage = next(p for p in load_passages("world:learning", 4, 4) if p.id == names[1])
    assert passage.title in said and passage.text.split()[0] in said


def test_one_configuration_is_of_the_first_puzzle_that_was_solved(run, tmp_path: Path) -> None:
    one, two, _ = world.tasks("heldout", 3, seed=0)
    chosen = Config(("use_chain_augmentations",), "train_using_output_tokens", 0.003, 4)
    wrong = tuple(tuple(0 for _ in row) for row in two.solutions[0])
    about = {"outcome": "ok", "config": chosen, "steps": 32, "first_loss": 1.0, "last_loss": 0.25}
    missed = Attempt("a", one.id, attempts=((wrong,),), **about)
    solved = Attempt("b", two.id, attempts=((wrong, two.solutions[0]),), pass_2=True, **about)
    folder, results = run("arc/few_shot", {"seed_0/evaluate/seal_round_1": [missed, solved]}, PUZZLES)
    ((function, kind, table, _),) = arc_diagrams.pictures(results, results, results)
    assert kind == "one_configuration"
    said = words(function, table, tmp_path)
    assert "chain augmentations: yes" in said and "size augmentations: no" in said and "learning rate: 0.003" in said
    assert "✗" in said and "✓" in said and "loss 1.00 → 0.25" in said and "of 2 different configurations" in said
    assert [row["head"] for row in diagrams.parts(table, "example")] == ["as it is", "chain"]
    folder.joinpath("rows.jsonl").unlink()
    run("arc/few_shot", {"seed_0/evaluate/seal_round_1": [missed]}, PUZZLES)
    assert arc_diagrams.pictures(results, results, results) == []  # nothing was solved


@pytest.mark.parametrize("domain", [knowledge_diagrams, arc_diagrams])
def test_without_the_run_or_its_rounds_there_is_no_diagram(run, domain) -> None:
    folder, results = run(domain.EXPERIMENT, {"evaluate/icl": []}, {**PASSAGES, **PUZZLES})
    assert domain.pictures(results, results, results) == []  # nothing was evaluated
    (folder / "run.json").unlink()
    assert domain.pictures(results, results, results) == []
    other = results.assign(experiment="continual/mitigations")
    assert domain.pictures(other, other, other) == []


def test_the_papers_figures_find_them(tmp_path: Path) -> None:
    wanted = {
        "Figure 1": "knowledge_restem_two_loops",
        "Figure 2": "knowledge_restem_one_self_edit",
        "Figure 3": "arc_few_shot_one_configuration",
    }
    for name in wanted.values():
        (tmp_path / f"{name}.png").write_bytes(b"png")
    shown = {item.number: [path.stem for path in paper.item_pictures(item, tmp_path)] for item in paper.items()}
    assert all(name in shown[number] for number, name in wanted.items())
    assert not any(item.lacks for item in paper.items() if item.number in wanted)
