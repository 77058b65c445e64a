"""Notebooks 13 and 14 with the paper's parameters on a random Qwen2 in bfloat16.

Run: pytest tests/continual/test_continual_paper.py
"""

import csv
import json

import pytest
from conftest import at_paper_scale
from test_paper_scale import PASSAGES, qwen  # noqa: F401 - qwen is a fixture

SMALLER = {
    "13_continual_edits": ["n_own=1"],
    "14_continual_mitigations": [],
}


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("notebook", SMALLER)
def test_the_papers_parameters_run_to_the_end(notebook, qwen, tmp_path) -> None:  # noqa: F811
    data = tmp_path / "rivers.json"
    data.write_text(json.dumps(PASSAGES))
    known = tmp_path / "known.json"
    others = [passage | {"context": f"{n}. {passage['context']}"} for n, passage in enumerate(PASSAGES)]
    known.write_text(json.dumps(others))  # prior questions come from passages of no stream
    changes = [f"model={qwen}", f"passages={data}", f"prior={known}", "sequences=disjoint", "n_sequences=2", "length=2"]
    changes += ["n_prior=2", "prior_skip=0", "edit_tokens=24", "answer_tokens=8", "anchors=4", "epochs=1"]
    changes += SMALLER[notebook]
    folder = at_paper_scale(notebook, changes, tmp_path)
    run = json.loads((folder / "run.json").read_text())
    assert run["parameters"]["dtype"] == "bfloat16" and run["parameters"]["targets"] == "qv"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert all(row["outcome"] == "ok" for row in rows if "outcome" in row)
    results = list(csv.DictReader(open(folder / "results.csv")))
    assert {"AA_2", "LA", "BWT", "prior_kept", "blank_rate"} <= {row["metric"] for row in results}
