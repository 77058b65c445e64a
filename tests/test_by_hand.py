"""The flat twin: notebook 02 in plain code gives what the loop of the library gives."""

import json

import pytest
from conftest import REPOSITORY
from fixtures_seal import MemoryRun, seedling

from seal_lib.knowledge import prompts
from seal_lib.knowledge.data import load_passages
from seal_lib.knowledge.domain import InnerLoop, Knowledge
from seal_lib.loops.outer import evaluate, restem_round
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop


def test_the_cell_gives_what_the_loop_gives(tmp_path) -> None:
    notebook = json.loads((REPOSITORY / "notebooks" / "02_restem_by_hand.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    settings: dict = {}
    exec(cells[0], settings)
    imports = "\n".join(line for line in cells[1].splitlines() if line.startswith(("import ", "from ")))
    exec(imports, settings)
    (method,) = [cell for cell in cells if "train_alone(" in cell and "import" not in cell]
    held_out, practised = load_passages("world:heldout", 3, 0), load_passages("world:learning", 3, 0)
    model, tokenizer = seedling()
    settings |= {"samples": 3, "held_out": held_out, "practised": practised, "policy": model, "tokenizer": tokenizer}
    settings["wording"] = prompts.load("seedling")
    exec(method, settings)

    inner = InnerLoop(
        settings["lr"],
        settings["epochs"],
        settings["rank"],
        settings["alpha"],
        "all-linear",
        answer_tokens=settings["answer_tokens"],
    )
    names = "samples temperature top_p edit_tokens sft_rank sft_alpha sft_lr sft_epochs sft_batch".split()
    outer = OuterLoop(**{name: settings[name] for name in names})
    domain, run, base = (
        Knowledge(inner, settings["wording"]),
        MemoryRun(tmp_path),
        Policy("untrained", model, tokenizer),
    )
    before = evaluate(run, base, held_out, domain, outer, arm="before", seed=0)
    taught, record = restem_round(run, base, practised, domain, outer, index=1, name="round", seed=0)
    after = evaluate(run, taught, held_out, domain, outer, arm="after", seed=0)
    assert settings["accuracy"]["before"] == [[trial.accuracy] for trial in before]
    assert sum(settings["accuracy"]["practice"], []) == pytest.approx(list(record.rewards))
    assert settings["accuracy"]["after"] == [[trial.accuracy] for trial in after]
    assert len(set(record.rewards)) > 2  # so that equal is no accident
