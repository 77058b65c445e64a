"""SEAL (Self-Adapting Language Models) as a notebook suite: the thin library under the notebooks.

The way of the arrows: notebooks → ``evaluate``, ``restem`` (loops) → ``inner_loop`` → ``bank``, ``generate``,
``knowledge`` (core) → ``records``, ``runs``, ``params`` (ground). Importing this package imports no torch; a name
below loads its module when first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "start": "runs",
    "load_passages": "knowledge.data",
    "InnerLoop": "inner_loop",
    "OuterLoop": "restem",
    "Policy": "restem",
    "restem_round": "restem",
    "write_self_edits": "restem",
    "ARMS": "evaluate",
    "evaluate_arm": "evaluate",
    "pick": "params",
    "derive_seed": "seeds",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"seal_lib has no name {name!r}; it offers {', '.join(__all__)} and its modules.")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
