"""``python -m seal_lib.seedling``: grow the shipped knowledge model from nothing and check what it must be able to do.

About 20 minutes on one CPU core. Ends with the acceptance numbers, and with exit status 1 if one is missed.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from seal_lib.models import SEEDLINGS
from seal_lib.paths import write_text
from seal_lib.seedling.recipe import Recipe, grow

#: what the model must do on held-out passages: name → (smallest, largest) mean accuracy
ACCEPTANCE = {
    "known": (0.90, 1.0),
    "frozen": (0.0, 0.10),
    "passage_in_context": (0.85, 1.0),
    "passage_only": (0.0, 0.15),
    "gold_notes": (0.85, 1.0),
    "own_untrained": (0.10, 0.50),
}


def measure(folder: Path, passages: int) -> dict[str, float]:
    """Mean accuracy of each acceptance number, over ``passages`` held-out passages the notebooks do not use first."""
    from seal_lib import evaluate, models, restem
    from seal_lib.generate import HFGenerator, Request, Sampling
    from seal_lib.grade import exact_match
    from seal_lib.inner_loop import InnerLoop
    from seal_lib.knowledge import prompts
    from seal_lib.runs import Scratch
    from seal_lib.seedling import world

    model, tokenizer = models.load(str(folder))
    policy, wording = restem.Policy("untrained", model, tokenizer), prompts.load("seedling")
    inner = InnerLoop(lr=2e-3, epochs=10, rank=8, alpha=16, targets="all-linear", answer_tokens=8)
    outer = restem.OuterLoop(edit_tokens=200)
    held_out = world.passages("heldout", passages, seed=7)
    asked = world.known_questions(200)
    requests = [Request(prompts.fill(wording.answer, title=title, question=q.question)) for title, q in asked]
    answers = HFGenerator(model, tokenizer).generate(requests, Sampling(8, stop=("\n",)))
    right = [exact_match(done.text, q.answer) for (done,), (_, q) in zip(answers, asked, strict=True)]
    numbers = {"known": sum(right) / len(right)}
    for arm in list(ACCEPTANCE)[1:]:
        trials = evaluate.evaluate_arm(Scratch(), policy, held_out, arm, wording, inner, outer, seed=0)
        numbers[arm] = sum(trial.accuracy for trial in trials) / len(trials)
    return numbers


CARD = """---
license: mit
library_name: transformers
---
# Knowledge seedling

A {parameters:,}-parameter Llama ({recipe.layers} layers, width {recipe.hidden}) grown from nothing on texts about
invented people (`seal_lib/seedling/world.py`, `recipe.py`). It is a **model organism**: it shows the whole of
SEAL on a laptop within minutes. It is no evidence about Qwen, Llama or any model of real language, and answers nothing
about the real world. It cannot tell two people with the same attribute apart when asked about a passage in view, so the
passages of the notebooks name each attribute once.

* Tokenizer: byte-level BPE, {vocabulary} entries; any text can be encoded, but only its own world makes sense to it.
* Training: {recipe.steps} steps, one thread, {minutes:.0f} minutes on one core where it was made; recipe below.
* Prior knowledge: 1 440 facts about 240 people. People of the evaluation passages occur nowhere in its training.
* Weights sha256: `{digest}`

| measured on {passages} held-out passages × 12 questions | accuracy | accepted range |
|---|---|---|
{table}

```json
{text}
```
"""


def write_card(folder: Path, recipe: Recipe, numbers: dict[str, float], minutes: float, passages: int) -> None:
    """The model card, from what was measured."""
    from seal_lib import models

    model, tokenizer = models.load(str(folder))
    rows = [f"| {key} | {numbers[key]:.3f} | {low:.2f} – {high:.2f} |" for key, (low, high) in ACCEPTANCE.items()]
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=len(tokenizer),
        digest=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        table="\n".join(rows), text=json.dumps(asdict(recipe), indent=1),
        recipe=recipe, minutes=minutes, passages=passages,
    )  # fmt: skip
    write_text(folder / "README.md", card)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m seal_lib.seedling", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=SEEDLINGS / "knowledge", help="folder of the model")
    parser.add_argument("--steps", type=int, help="shorten the recipe (for a look; acceptance will fail)")
    parser.add_argument("--check", action="store_true", help="only measure the model in --out")
    options = parser.parse_args(arguments)
    recipe = replace(Recipe(), steps=options.steps) if options.steps else Recipe()
    os.environ.setdefault("OMP_NUM_THREADS", str(recipe.threads))
    folder, passages, start = options.out, 40, time.monotonic()
    if not options.check:
        folder = options.out.with_name(options.out.name + "-growing")  # takes the place of --out when accepted
        with tqdm(total=recipe.steps, desc="growing the seedling", unit="step", mininterval=2.0) as bar:

            def watch(step: int, losses: dict[str, float]) -> None:
                bar.n = step
                bar.set_postfix({kind: f"{loss:.2f}" for kind, loss in losses.items()}, refresh=False)
                bar.update(1)

            grow(recipe, folder, watch)
    minutes = (time.monotonic() - start) / 60
    numbers = measure(folder, passages)
    missed = [key for key, (low, high) in ACCEPTANCE.items() if not low <= numbers[key] <= high]
    for key, (low, high) in ACCEPTANCE.items():
        verdict = "MISSED" if key in missed else "ok"
        print(f"{verdict:>6}  {key:<20} {numbers[key]:.3f}   accepted {low:.2f} to {high:.2f}")
    if not options.check:
        write_card(folder, recipe, numbers, minutes, passages)
        if missed:
            print(f"not accepted: the new model stays in {folder}, {options.out} is as it was", file=sys.stderr)
        else:
            shutil.rmtree(options.out, ignore_errors=True)
            os.replace(folder, options.out)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
