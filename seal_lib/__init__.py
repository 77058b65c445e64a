"""SEAL (Self-Adapting Language Models) as a notebook suite: the thin library under the notebooks.

The way of the arrows: notebooks → ``evaluate``, ``restem`` (loops) → ``inner_loop`` → ``bank``, ``generate``,
``knowledge`` (core) → ``records``, ``runs``, ``params`` (ground). Importing this package imports no torch; a name
below loads its module when first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "start": "runs.lifecycle",
    "pick": "runs.params",
    "load_passages": "knowledge.data",
    "InnerLoop": "knowledge.inner",
    "OuterLoop": "loops.restem",
    "Policy": "loops.policy",
    "Source": "loops.policy",
    "restem_round": "loops.restem",
    "write_self_edits": "loops.restem",
    "ARMS": "knowledge.evaluate",
    "evaluate_arm": "knowledge.evaluate",
    "derive_seed": "seeds",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"seal_lib has no name {name!r}; it offers {', '.join(__all__)} and its modules.")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
