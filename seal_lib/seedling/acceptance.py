"""Acceptance of the shipped models: the required numbers, how they are measured, and the model card.

The models are measured on passages and tasks that no notebook evaluates first; the grid model with the settings of its
notebook. A model that misses one number is not shipped.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from seal_lib.seedling import growth
from seal_lib.seedling.grid_recipe import GridRecipe
from seal_lib.seedling.recipe import KnowledgeRecipe


@dataclass(frozen=True)
class Seedling:
    """One shipped model; ``accepted`` maps the name of a number to its (smallest, largest) accepted value."""

    recipe: growth.Recipe
    accepted: dict[str, tuple[float, float]]
    measure: Callable[[Path], dict[str, float]]
    card: str
    measured_on: str


def knowledge(folder: Path, passages: int = 40) -> dict[str, float]:
    """Measure the knowledge model and return each acceptance number, which are all mean accuracies."""
    from seal_lib import models
    from seal_lib.generation.contract import Request, Sampling
    from seal_lib.generation.hf import HFGenerator
    from seal_lib.grading.graders import exact_match
    from seal_lib.knowledge import evaluate, prompts, world
    from seal_lib.knowledge.domain import InnerLoop, Knowledge
    from seal_lib.loops.policy import Policy
    from seal_lib.loops.settings import OuterLoop
    from seal_lib.loops.wording import fill
    from seal_lib.runs.lifecycle import Scratch

    policy, wording = Policy("untrained", *models.load(str(folder))), prompts.load("seedling")
    inner = InnerLoop(lr=2e-3, epochs=10, rank=8, alpha=16, targets="all-linear", answer_tokens=8)
    outer = OuterLoop(edit_tokens=200)
    held_out = world.passages("heldout", passages, seed=7)
    asked = world.known_questions(200)
    requests = [Request(fill(wording.answer, title=title, question=q.question)) for title, q in asked]
    answers = HFGenerator(policy.model, policy.tokenizer).generate(requests, Sampling(8, stop=("\n",)))
    right = [exact_match(done.text, q.answer) for (done,), (_, q) in zip(answers, asked, strict=True)]
    numbers = {"known": sum(right) / len(right)}
    for arm in list(ACCEPTANCE["knowledge"].accepted)[1:]:
        trials = evaluate.evaluate_arm(Scratch(), policy, held_out, arm, Knowledge(inner, wording), outer, seed=0)
        numbers[arm] = sum(trial.accuracy for trial in trials) / len(trials)
    return numbers


def grids(folder: Path, tasks: int = 24, edits: int = 5) -> dict[str, float]:
    """Measure the grid model and return each acceptance number: a share of readable configurations and success rates.

    The success rates are on seen rules in context, and on unseen rules of the ``learning`` population.
    """
    from seal_lib import models
    from seal_lib.arc import experiment, prompts, self_edits, tables, world
    from seal_lib.arc.domain import Puzzles, TestTimeTraining
    from seal_lib.loops.outer import evaluate
    from seal_lib.loops.policy import Policy
    from seal_lib.loops.settings import OuterLoop
    from seal_lib.runs import params
    from seal_lib.runs.lifecycle import Scratch

    settings = params.resolve("21_arc_self_edits", "seedling")
    inner = params.pick(TestTimeTraining, settings)
    outer = params.pick(OuterLoop, settings)
    policy, wording = Policy("untrained", *models.load(str(folder))), prompts.load("seedling")
    domain = Puzzles(inner, wording)
    known = [experiment.FewShot([], world.tasks("seen", 8, seed=100 + k), domain, outer) for k in range(3)]
    unseen = experiment.FewShot([], world.tasks("learning", tasks, seed=7), domain, outer)
    by_hand = self_edits.read(settings["oracle"], inner.limits).config
    trials = evaluate(
        Scratch(), policy, unseen.held_out, domain, outer, arm="own_untrained", seed=0, group="seed_0/", samples=edits
    )
    arms = {
        "seen_rules_in_context": [a for study in known for a in study.fixed(Scratch(), policy, "icl", None)],
        "unseen_rules_in_context": unseen.fixed(Scratch(), policy, "icl", None),
        "oracle": unseen.fixed(Scratch(), policy, "oracle", by_hand),
        "own_untrained": [trial.attempt for trial in trials],
    }
    numbers = {arm: tables.rate({0: several}, lambda a: a.success).value for arm, several in arms.items()}
    readable = [self_edits.read(trial.edit.text).config is not None for trial in trials]
    return {"readable_configurations": sum(readable) / len(readable), **numbers}


def _card(about: str, value: str) -> str:
    """Return the model card of a seedling, to be filled from its measurement; ``value`` says what the numbers are."""
    return f"""---
license: mit
library_name: transformers
---
{about}* Weights sha256: `{{digest}}`

| measured on {{measured_on}} | {value} | accepted range |
|---|---|---|
{{table}}

```json
{{text}}
```
"""


_KNOWLEDGE = """# Knowledge seedling

A {parameters:,}-parameter Llama ({recipe.layers} layers, width {recipe.hidden}) grown from nothing on texts about
invented people (`seal_lib/knowledge/world.py`, `seal_lib/seedling/recipe.py`). It is a **model organism**: it shows the
whole of SEAL on a laptop within minutes. It is no evidence about Qwen, Llama or any model of real language, and answers
nothing about the real world. It cannot tell two people with the same attribute apart when asked about a passage in
view, so the passages of the notebooks name each attribute once.

A growth that misses a range of the table below is not shipped. So what the table says is **built in** and no finding:
good notes teach, the bare passage does not, the untrained policy lies between. What training the policy on its own
self-edits then does to it is not looked at when a model is accepted.

* Tokenizer: byte-level BPE, {vocabulary} entries; any text can be encoded, but only its own world makes sense to it.
* Training: {recipe.steps} steps, one thread, {minutes:.0f} minutes on one core where it was made; recipe below.
* Prior knowledge: 1 440 facts about 240 people. People of the evaluation passages occur nowhere in its training.
* Questions of evaluation and practice are worded as no note of its training is; it has met their wordings only where
  a question stands alone or follows a passage.
* Grown from seed {recipe.seed}; the models of the other seeds differ in initial weights and in what was drawn when.
"""

_GRIDS = """# Grid seedling

A {parameters:,}-parameter Llama ({recipe.layers} layers, width {recipe.hidden}) grown from nothing on made puzzles:
2 × 2 grids and eight rules that move their cells (`seal_lib/arc/world.py`, `grid_recipe.py`). It is a **model
organism**: it shows test-time training and learning to configure it on a laptop within minutes. It is no evidence
about Llama or any other model, and solves no real ARC task.

* Answers puzzles of the eight seen rules in context, of other rules only after finetuning on their demonstrations.
* Writes training configurations as valid JSON, every one equally likely: that is the untrained policy.
* Tokenizer: byte-level BPE, {vocabulary} entries; a cell is one token; any text can be encoded.
* Training: {recipe.steps} steps, one thread, {minutes:.0f} minutes on one core where it was made; recipe below.
"""

ACCEPTANCE = {
    "knowledge": Seedling(
        KnowledgeRecipe(),
        {
            "known": (0.90, 1.0),
            "frozen": (0.0, 0.10),
            "passage_in_context": (0.85, 1.0),
            "passage_only": (0.0, 0.15),
            "gold_notes": (0.85, 1.0),
            "own_untrained": (0.10, 0.50),
        },
        knowledge,
        _card(_KNOWLEDGE, "accuracy"),
        "40 held-out passages × 12 questions",
    ),
    "grids": Seedling(
        GridRecipe(),
        {
            "readable_configurations": (0.90, 1.0),
            "seen_rules_in_context": (0.90, 1.0),
            "unseen_rules_in_context": (0.0, 0.05),
            "oracle": (0.90, 1.0),
            "own_untrained": (0.05, 0.45),
        },
        grids,
        _card(_GRIDS, "share"),
        "24 tasks × 5 self-edits of rules that no evaluation uses",
    ),
}

#: Other sizes of a shipped model, all else equal. How much their own notes teach before training is a column of the
#: table over sizes, so a size is not selected by it: it must only lie between the passage alone and good notes.
SIZES = {
    f"knowledge-{size}": replace(
        ACCEPTANCE["knowledge"],
        recipe=replace(ACCEPTANCE["knowledge"].recipe, hidden=32 * heads, heads=heads, mlp=96 * heads),
        accepted=ACCEPTANCE["knowledge"].accepted | {"own_untrained": (0.10, 0.85)},
    )
    for size, heads in {"small": 3, "large": 6}.items()
}
