"""Tasks of lm-evaluation-harness in the guard: refused by its limit; run on the shipped model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures_seal import DOMAIN, digest, seedling
from test_own_documents import home  # noqa: F401  a fixture
from test_store_use import LIMITS, policy, updated, written

from seal_lib import paths
from seal_lib.__main__ import main
from seal_lib.errors import DataError, ParameterError
from seal_lib.store import guard, harness
from seal_lib.store.database import Store
from seal_lib.store.harness import Tasks
from seal_lib.training.adapters import Adapter

CHOICES = """
task: own_choice
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {data}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
WRITTEN = """
task: own_writing
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {data}}}
validation_split: validation
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["\\n", "."], max_gen_toks: 8}}
filter_list:
  - {{name: stripped, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
LOST = (
    "task: own_loss\n"
    + CHOICES.split("output_type")[0].split("\n", 2)[2]
    + (
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{{{question}}}}"\n'
        "metric_list:\n  - {{metric: word_perplexity}}\n"
    )
)


def wild(size: float) -> Adapter:
    """An adapter of that size on every query projection: 0 changes nothing, a large one destroys the model."""
    model, _ = seedling()
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: (torch.randn(2, m.in_features, generator=draw), size * torch.randn(m.out_features, 2, generator=draw))
        for name, m in model.named_modules()
        if name.endswith("q_proj")
    }
    return Adapter(2, 40.0, ("q_proj",), weights)


@pytest.fixture
def scored(monkeypatch) -> list[float]:
    """The next scores that tasks have, in place of the harness."""
    scores: list[float] = []
    monkeypatch.setattr(harness, "find_spec", lambda name: True)
    monkeypatch.setattr(Tasks, "score", lambda self, policy, adapter: scores.pop(0))
    return scores


def test_the_guard_refuses_what_loses_too_much_of_a_task(scored) -> None:
    limits = replace(LIMITS, tasks=Tasks(["some_task"]))
    scored += [0.8, 0.75, 0.6]
    mild, hard = guard.before_after(policy(), DOMAIN, limits, [wild(0.0), wild(0.0)])  # the base is scored once
    assert (mild["general_before"], mild["general_after"], hard["general_after"]) == (0.8, 0.75, 0.6)
    known = {"was": 0.0, "now": 1.0}
    assert guard.broken(mild | known, limits, "was", "now") == ""
    says = "tasks of lm-evaluation-harness: 60% right, 80% before; at most 10% may be lost"
    assert guard.broken(hard | known, limits, "was", "now") == says
    assert guard.broken(hard | known, replace(limits, general=0.3), "was", "now") == ""
    (plain,) = guard.before_after(policy(), DOMAIN, LIMITS, [wild(0.0)])
    assert "general_before" not in plain and guard.broken(plain | known, LIMITS, "was", "now") == ""


def test_an_update_says_what_its_tasks_lost(scored, tmp_path: Path) -> None:
    written(tmp_path / "good.json", 0, 1)
    scored += [0.8, 0.1]
    with Store(tmp_path / "store") as store:
        store.enqueue(tmp_path / "good.json")
        done = updated(store, limits=replace(LIMITS, prior=1.0, reading=1.0, tasks=Tasks(["some_task"], None, 7)))
        assert store.edits("active") == [] and "tasks of lm-evaluation-harness: 10% right" in store.edit(1).reason
        assert done.report["limits"]["tasks"]["guard_limit"] == 7
        report = (store.folder / "updates" / "update-0001.md").read_text()
        assert "| general before → after |" in report and "80% → 10%" in report
        assert "10% of tasks of lm-evaluation-harness" in report


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"guard_limit": 0}, "guard_limit: 0 is not at least 1"),
        ({"guard_tasks_folder": "no/where"}, "there is no folder no/where"),
    ],
)
def test_wrong_settings_are_one_sentence(settings, says) -> None:
    with pytest.raises(ParameterError, match=says):
        Tasks(**settings)


def test_without_the_extra_one_sentence_says_how_to_get_it(home: Path, monkeypatch, capsys) -> None:  # noqa: F811
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    assert main(["update", "--set", "guard_tasks=[arc_easy]"]) == 2
    told = capsys.readouterr().err.strip()
    assert 'pip install -e ".[lm-eval]"' in told and "\n" not in told


# ---------------------------------------------------------------------------------------------- with the extra


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of tasks about the made world: the guard's own prior questions."""
    pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")
    tmp_path = tmp_path_factory.mktemp("own")
    passages = guard.questions_of(str(paths.PACKAGE / "store" / "guard_world.json"))["prior"][:6]
    others = [p.questions[0].answer for p in passages]
    lines = [
        {"question": DOMAIN.prompts.ask(p, p.questions[0]), "choices": [others[i], others[i - 1]]}
        for i, p in enumerate(passages)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    for name, text in {"choices": CHOICES, "written": WRITTEN, "lost": LOST}.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.format(data=tmp_path / "rows.jsonl"))
    return tmp_path / "tasks"


def test_tasks_hear_what_an_adapter_destroys_and_leave_the_model_as_it_is(folder: Path) -> None:
    before = digest(seedling()[0])
    choice, writing = (Tasks([name], str(folder)) for name in ("own_choice", "own_writing"))
    assert choice.score(policy(), None) == writing.score(policy(), None) == 1.0
    assert choice.score(policy(), wild(0.0)) == writing.score(policy(), wild(0.0)) == 1.0
    assert choice.score(policy(), wild(1.0)) < 1.0 and writing.score(policy(), wild(1.0)) == 0.0
    both = Tasks(["own_choice", "own_writing"], str(folder))
    assert both.score(policy(), wild(1.0)) == choice.score(policy(), wild(1.0)) / 2
    assert replace(both, guard_limit=1).score(policy(), None) == 1.0
    assert digest(seedling()[0]) == before and not seedling()[0].training


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("no_such_task", "guard_tasks: no_such_task cannot be run by lm-eval .*no_such_task.* mend the names"),
        ("arc_easy", "guard_tasks: arc_easy cannot be run by lm-eval .*; .* fetch the data where there is a network"),
        ("own_loss", "guard_tasks: own_loss counts no share of which more is better"),
    ],
)
def test_a_task_that_cannot_be_used_is_one_sentence(folder: Path, task: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as told:
        Tasks([task], str(folder), 2).score(policy(), None)
    assert "\n" not in str(told.value)
