"""Opens the run of a notebook: checks its parameters, chooses its folder, and moves an out-of-date one aside."""

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import RunError
from seal_lib.runs import manifest, params
from seal_lib.runs.lifecycle import Run

#: packages that every notebook needs; a kernel of another environment lacks some
NEEDED = ("torch", "transformers", "pandas", "matplotlib")
#: the run of each notebook that this kernel has open
_by_hand: dict[str, Run] = {}


def start(notebook: str, namespace: dict[str, Any], scale: str = "") -> Run:
    """Open the run of a notebook; equal parameters give the same folder, in which earlier work is continued.

    A person who runs the cells again, even after a kernel restart, finds the finished units done. With the parameters
    of a scale the folder is the one of ``make reproduce``.

    Args:
        notebook: the notebook's name, e.g. ``"11_single_passage"``.
        namespace: ``globals()``, from which the declared parameters are read.
        scale: take the parameters of this scale instead, and write them into ``namespace``; ignored in a batch run.

    Raises:
        RunError: the folder is in use, the kernel lacks a package, a parameter is missing or does not fit its
            declaration, or one was changed after the runner checked it.
        ParameterError: the parameters cell or the file of ``scale`` is wrong.
    """
    chosen = os.environ.get("SEAL_RUN_DIR", "")
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise RunError(
            f"this kernel, {sys.executable}, has no {', '.join(absent)}: start JupyterLab by `make lab`, or choose the "
            "kernel of the suite's own environment (.venv)."
        )
    if scale and not chosen:
        namespace.update(params.resolve(notebook, scale))
    values: dict[str, Any] = {}
    for parameter in params.declared(notebook):
        if parameter.name not in namespace:
            raise RunError(f"{notebook}: {parameter.name} is not defined; run the parameters cell first.")
        problem, values[parameter.name] = parameter.fit(namespace[parameter.name])
        if problem:
            raise RunError(f"{notebook}: {problem}")
    if chosen:
        identity = paths.read_json(Path(chosen) / "parameters.json")
        if identity["notebook"] != notebook:
            raise RunError(
                f"this is a run of {identity['notebook']}, but the cell says start({notebook!r}); correct it."
            )
        wrong = [name for name, value in manifest.redact(values).items() if identity["parameters"].get(name) != value]
        if wrong:
            raise RunError(f"{notebook}: {wrong[0]} was changed after the parameters cell; use another name for it.")
        return _reading(Run(Path(chosen), identity, interactive=False), values)
    scale = scale or str(namespace.get("scale", "seedling"))
    identity = manifest.identity_of(notebook, scale, values)
    folder = manifest.folder_of(notebook, scale, identity["key"])
    if earlier := _by_hand.pop(notebook, None):  # the cell was run before in this kernel
        earlier.close()
    if (folder / "run.json").exists() and (manifest.inputs_changed(folder) or _outdated(folder)):
        set_aside(folder)
    paths.write_json(folder / "parameters.json", identity)
    (folder / "failed.json").unlink(missing_ok=True)
    _by_hand[notebook] = Run(folder, identity, interactive=True)
    return _reading(_by_hand[notebook], values)


def _outdated(folder: Path) -> bool:
    try:
        return bool(manifest.code_changed(manifest.read(folder)))
    except RunError:
        return True


def set_aside(folder: Path) -> None:
    """Move a whole run folder into ``superseded/`` beside it."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = folder.parent / "superseded" / f"{folder.name}-{stamp}-{os.getpid()}"
    aside.parent.mkdir(exist_ok=True)
    os.replace(folder, aside)
    print(f"the earlier run moved to {paths.short(aside)}", flush=True)


def _reading(run: Run, values: dict[str, Any]) -> Run:
    """Record the runs named by the parameter ``reads: list[str]``; when one changes, this run is out of date."""
    if isinstance(values.get("reads"), list):
        run.inputs([params.find(name) for name in values["reads"]], values.get("scale"))
    return run
