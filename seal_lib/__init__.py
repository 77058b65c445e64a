"""The library behind the notebooks that reproduce SEAL (Self-Adapting Language Models).

`seal_lib.loops` holds the loops, readable from top to bottom; the tasks that they run on are domains
(`seal_lib.knowledge`, `seal_lib.arc`). Importing this package does not import torch; each name below loads its module
on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

LAZY = {
    "start": "runs.opening",
    "pick": "runs.params",
    "Policy": "loops.policy",
    "Source": "loops.policy",
    "OuterLoop": "loops.settings",
    "Pretraining": "loops.settings",
    "several_rounds": "loops.outer",
    "restem_round": "loops.outer",
    "run_loop": "loops.outer",
    "score_edits": "loops.inner",
    "write_self_edits": "loops.outer",
    "Knowledge": "knowledge.domain",
    "InnerLoop": "knowledge.domain",
    "load_passages": "knowledge.data",
    "judge_of": "grading.judge",
    "Puzzles": "arc.domain",
    "TestTimeTraining": "arc.domain",
    "load_tasks": "arc.data",
    "derive_seed": "seeds",
}
__all__ = sorted(LAZY)


def __getattr__(name: str):
    if name not in LAZY:
        raise AttributeError(f"seal_lib has no name {name!r}; it offers {', '.join(__all__)} and its modules.")
    return getattr(import_module(f"{__name__}.{LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
