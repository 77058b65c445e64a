"""Run notebooks unattended: one, or all that are not up to date, each in a process of its own.

The runner checks the parameters first. If a finished run has the same code cells, parameters and inputs, it says "up to
date" and starts nothing; otherwise it executes the notebook through papermill with the kernel of this Python. A run is
done only if its last cell called ``run.finish``; anything else leaves ``failed.json`` and exit code 1, and the next
call continues where it stopped. Does not know what a notebook computes.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import DataError, DiskError, ParameterError, RunError, SealError, way_out
from seal_lib.runs import journal, manifest, params
from seal_lib.runs.opening import set_aside
from seal_lib.runs.progress import clock

ADVICE = {
    "DeadKernelError": "the kernel died, probably out of memory: choose smaller batches or a smaller scale",
    "NoSuchKernel": "the kernel `python3` is missing: run `make env` (or pip install ipykernel)",
    "OutOfMemoryError": "the GPU has too little memory: choose smaller batches or a smaller scale",
    "MemoryError": "too little memory: choose smaller batches or a smaller scale",
    "KeyboardInterrupt": "stopped by hand: run again, finished units are kept",
    "BrokenPipeError": "who read its output is gone: run again, finished units are kept",
    "NotFinished": "the notebook ended without run.finish(...): it must be called in the last cell",
}
#: names of the errors whose message says what to do, and which are no fault of the notebook
TOLD = {SealError.__name__, *(kind.__name__ for kind in SealError.__subclasses__())}


def advice(kind: str, message: str, folder: Path) -> str:
    """Return what to do about a failure; it says to mend the notebook only if no other cause is known."""
    if kind in ADVICE:
        return ADVICE[kind]
    if kind in TOLD:
        return "run again when that is mended; finished units are kept"
    if way := way_out(message):
        return f"{way} and run again; finished units are kept"
    return f"see {paths.short(folder / 'notebook.ipynb')}, mend it and run again; finished units are kept"


def in_use(folder: Path) -> bool:
    """Return whether a living process holds the folder's lock."""
    for name in ("runner.lock", "lock"):
        if (folder / name).exists():
            try:
                journal.Lock(folder / name, shared=True).release()
            except RunError:
                return True
            except DiskError:  # none of our processes holds a file that cannot be read
                continue
    return False


def state(notebook: str, scale: str) -> dict[str, Any]:
    """Return the state of a notebook's run at a scale, as ``state``, ``when``, ``minutes``, ``folder`` and ``why``.

    ``state`` is one of ``done``, ``inputs changed``, ``code changed``, ``damaged``, ``running``, ``failed``,
    ``interrupted``, ``missing`` and ``bad parameters``.
    """
    found: dict[str, Any] = dict(notebook=notebook, scale=scale, when="", minutes=None, folder=None, why="")
    try:
        key, _ = manifest.run_key(notebook, params.resolve(notebook, scale))
    except SealError as error:
        return {**found, "state": "bad parameters", "why": str(error)}
    folder = manifest.folder_of(notebook, scale, key)
    found["folder"] = folder
    if (folder / "run.json").exists():
        if broken := manifest.damage(folder):
            return {**found, "state": "damaged", "why": broken}
        record = manifest.read(folder)
        changed = manifest.inputs_changed(folder)
        stale = manifest.code_changed(record)
        name = "inputs changed" if changed else "code changed" if stale else "done"
        minutes = sum(record.get("seconds", {}).values()) / 60
        return {**found, "state": name, "when": record["end"], "minutes": minutes, "why": ", ".join(changed or stale)}
    if in_use(folder):
        return {**found, "state": "running"}
    if (folder / "failed.json").exists():
        try:
            failed = paths.read_json(folder / "failed.json")
            why = f"{failed['exception']}: {failed['message']}"
            return {**found, "state": "failed", "when": str(failed["when"]), "why": why}
        except (DataError, KeyError):
            return {**found, "state": "failed", "why": "failed.json is damaged; run again"}
    if (folder / "rows.jsonl").exists():
        return {**found, "state": "interrupted"}
    older = manifest.newest(notebook, scale)
    return {**found, "state": "missing", "why": f"an older run is {older.name}" if older else ""}


# ---------------------------------------------------------------------------------------------- one notebook


def run(
    notebook: str,
    scale: str,
    overrides: dict[str, object] | None = None,
    force: bool = False,
    check: Callable[[str, dict], str] = lambda notebook, values: "",
) -> int:
    """Bring one run up to date; return 0 if it is done and 1 if it failed.

    Args:
        check: returns a sentence to print about what this machine has for the work; raises SealError if that is too
            little.

    Raises:
        SealError: the parameters do not fit, or another process holds the folder.
    """
    values = params.resolve(notebook, scale, overrides)
    identity = manifest.identity_of(notebook, scale, values)
    key = identity["key"]
    folder = manifest.folder_of(notebook, scale, key)
    broken = manifest.damage(folder) if (folder / "run.json").exists() and not force else ""
    if broken:
        print(broken, flush=True)
    elif (folder / "run.json").exists() and not force:
        changed = manifest.inputs_changed(folder)
        if not changed:
            record = manifest.read(folder)
            other = manifest.code_changed(record)
            if not other or manifest.rows(folder):  # rows may have taken hours, so an edit alone does not discard them
                old = f"; {', '.join(other[:3])} changed since, FORCE=1 runs again" if other else ""
                print(f"up to date: {notebook} {scale} {key} ({record['end']}{old})", flush=True)
                return 0
            print(f"{notebook}: {', '.join(other[:3])} changed", flush=True)
        else:
            print(f"{notebook}: a newer run of {', '.join(changed)} exists", flush=True)
        force = True
    if sentence := check(notebook, values):
        print(sentence, flush=True)
    if force and folder.exists():
        if in_use(folder):
            raise RunError(f"{paths.short(folder)} is in use; wait for it or stop it before running again.")
        set_aside(folder)
    lock = journal.Lock(folder / "runner.lock")
    try:
        if broken:  # the damaged part is computed again
            os.replace(folder / "run.json", folder / "run.json.damaged")
        elif (folder / "run.json").exists():  # another runner finished it just now
            return run(notebook, scale, overrides)
        return _execute(identity, values, folder)
    finally:
        lock.release()


def _execute(identity: dict, values: dict, folder: Path) -> int:
    for name in ("failed.json", "run.json.pending"):
        (folder / name).unlink(missing_ok=True)
    paths.write_json(folder / "parameters.json", identity)
    notebook, about = identity["notebook"], " ".join(identity[name] for name in ("notebook", "scale", "key"))
    print(f"{about}: started", flush=True)
    begun = time.monotonic()
    try:
        timings = _papermill(notebook, values, folder)
        if not (folder / "run.json.pending").exists():
            return _failed(folder, notebook, "NotFinished", "no run.finish", None)
    except BaseException as error:
        kind = getattr(error, "ename", None) or type(error).__name__
        message = str(getattr(error, "evalue", None) or error).strip()
        code = _failed(folder, notebook, kind, message, getattr(error, "exec_count", None))
        if isinstance(error, Exception):
            return code
        raise
    record, executed = paths.read_json(folder / "run.json.pending"), folder / "notebook.ipynb"
    if executed.exists():
        record["files"][executed.name] = manifest.content_hash(executed)
    manifest.keep(folder, {**record, "notebook_timings": timings})
    print(f"{about}: done in {clock(time.monotonic() - begun)}", flush=True)
    return 0


def _papermill(notebook: str, values: dict, folder: Path) -> dict:
    """Execute the notebook into ``notebook.ipynb`` of the folder, and return papermill's timings, in seconds."""
    import logging

    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    values_there = {"SEAL_RUN_DIR": str(folder), "SEAL_BATCH": "1", "PYTHONPATH": paths.importable()}
    with paths.environment(**values_there, PYDEVD_DISABLE_FILE_VALIDATION="1"):
        done = papermill.execute_notebook(
            paths.notebooks() / f"{notebook}.ipynb",
            folder / "notebook.ipynb",
            parameters=values,
            kernel_name="python3",  # this interpreter, whatever the file says
            cwd=folder,
            progress_bar=False,
            start_timeout=300,
            stdout_file=sys.stdout,
            extra_arguments=["--IPKernelApp.log_level=50"],  # hide notices about local sockets and about being stopped
        )
    own = done.metadata.get("papermill", {})
    names = {"start": "start_time", "end": "end_time", "seconds": "duration", "papermill": "version"}
    each = [c["metadata"].get("papermill", {}).get("duration") for c in done.cells if c["cell_type"] == "code"]
    return {**{name: own.get(key) for name, key in names.items()}, "cell_seconds": each}


def _failed(folder: Path, notebook: str, kind: str, message: str, cell: int | None) -> int:
    where = f" in cell [{cell}]" if cell else ""
    first = message.splitlines()[0] if message else ""
    way = advice(kind, message, folder)
    print(f"{notebook}: FAILED{where}: {kind}: {first}\n  {way}", file=sys.stderr, flush=True)
    record = {"exception": kind, "message": message, "cell": cell, "advice": way, "when": manifest.now()}
    executed = folder / "notebook.ipynb"
    try:
        (folder / "run.json.pending").unlink(missing_ok=True)
        try:
            paths.read_json(executed)
        except DataError:  # papermill was stopped, or found no room, while it wrote
            executed.unlink(missing_ok=True)
        paths.write_json(folder / "failed.json", record)
    except (OSError, DiskError) as error:  # the failure itself has been reported above
        print(f"  and {error}", file=sys.stderr, flush=True)
    return 1


# ---------------------------------------------------------------------------------------------- all of them


def chosen(scale: str, only: str) -> list[str]:
    """Return the notebooks that have the scale, in file order.

    ``only``: full names or unique beginnings of those wanted, separated by commas; "" for all. ParameterError if one is
    unknown or has no parameters for the scale.
    """
    wanted = [params.find(name.strip()) for name in only.split(",") if name.strip()]
    if only.strip() and not wanted:
        raise ParameterError(f"only: {only!r} names no notebook; leave it out for all.")
    having = [name for name in params.names() if params.at(name, scale)]
    lacking = [name for name in wanted if name not in having]
    if lacking or not having:
        known = sorted({s for name in lacking or params.names() for s in params.scales(name)})
        who = f"{lacking[0]} has no" if lacking else "no notebook has"
        raise ParameterError(f"{who} parameters for scale {scale!r}; the scales are {', '.join(known) or 'none'}.")
    return [name for name in having if not wanted or name in wanted]


def reads(notebook: str) -> set[str] | None:
    """Return the notebooks whose runs a notebook reads by ``run.input(…)``; None, by ``run.inputs(…)``, for all."""
    code = "\n".join(cell["source"] for cell in params.cells(notebook))
    return None if "run.inputs(" in code else set(re.findall(r"run\.input\([\"'](\w+)", code))


def run_all(
    scale: str,
    only: str,
    keep_going: bool,
    force: bool,
    jobs: int = 1,
    check: Callable[[dict], None] = lambda values: None,
) -> int:
    """Run each chosen notebook in its own process, which frees all its memory at the end; return 1 if any failed.

    ``jobs`` notebooks run at once, the longest first (by the minutes of the published runs; with one job: in file
    order). A notebook that reads another's run waits for it. After a failure no further one is started unless
    ``keep_going`` is set; those that are running finish.
    """
    notebooks = chosen(scale, only)
    for notebook in notebooks:
        check(params.resolve(notebook, scale))  # a typing error in the last file must show before the first hour
    begun, failures = time.monotonic(), []
    needs: dict[str, set[str]] = {}
    for number, name in enumerate(notebooks):
        wanted, earlier = reads(name), set(notebooks[:number])
        needs[name] = earlier if wanted is None else wanted & earlier
    minutes = manifest.published_minutes(scale) if jobs > 1 else {}
    waiting = sorted(notebooks, key=lambda name: -minutes.get(name, 0))  # the sort is stable: ties stay in file order
    running: dict[Future, str] = {}
    children: list[subprocess.Popen] = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                busy = {*waiting, *running.values()}
                ready = [name for name in waiting if not needs[name] & busy]
                for name in ready[: jobs - len(running)]:
                    waiting.remove(name)
                    command = [sys.executable, "-m", "seal_lib", "run", name, "--scale", scale]
                    running[pool.submit(_call, [*command, *["--force"] * force], jobs > 1, children)] = name
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(done)
                    if done.result():
                        failures.append(name)
                        waiting = waiting if keep_going else []
        except BaseException:
            told: set[int] = set()
            while not all(future.done() for future in running):  # a child that is just starting joins the list late
                for child in children:
                    if child.pid not in told:
                        child.terminate()  # once; it then keeps its finished units
                        told.add(child.pid)
                time.sleep(0.1)
            raise
    tail = f"; failed: {', '.join(failures)}" if failures else ""
    print(f"{scale}: {len(notebooks)} notebooks, {clock(time.monotonic() - begun)}{tail}", flush=True)
    return 1 if failures else 0


def _call(command: list[str], labelled: bool, children: list[subprocess.Popen]) -> int:
    """Run a command and return its exit code; ``labelled`` puts the notebook's number before each line."""
    pipe = subprocess.PIPE if labelled else None
    environment = {**os.environ, "PYTHONPATH": paths.importable(), "SEAL_PARENT": str(os.getpid())}
    with subprocess.Popen(command, env=environment, stdout=pipe, text=True) as child:
        children.append(child)
        for line in child.stdout or ():
            print(f"{command[4].partition('_')[0]} | {line}", end="", flush=True)
    children.remove(child)
    return child.returncode


def end_with_parent() -> None:
    """Terminate this process within a second of the end of the runner that started it.

    A runner that is killed, or whose terminal is closed, cannot stop its children itself.
    """
    told = os.environ.pop("SEAL_PARENT", "")
    parent = int(told) if told.isdecimal() else 0

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


def status() -> int:
    """Print a table of every notebook and scale."""
    wanted = [(name, scale) for name in params.names() for scale in params.scales(name) if scale != "smoke"]
    lines = [["notebook", "scale", "state", "finished (UTC)", "minutes", ""]]
    for row in [state(notebook, scale) for notebook, scale in wanted]:
        minutes = "" if row["minutes"] is None else f"{row['minutes']:.1f}"
        why = str(row["why"]).splitlines()[0][:80] if row["why"] else ""
        lines.append([row["notebook"], row["scale"], row["state"], row["when"], minutes, why])
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    for line in lines:
        print("  ".join([*[text.ljust(width) for text, width in zip(line[:5], widths, strict=True)], line[5]]).rstrip())
    return 0


def check_parameters(check: Callable[[dict], None] = lambda values: None) -> int:
    """Check every parameter file against its notebook without running anything; ``check`` tests values together."""
    problems = params.check_all(check)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"parameters of {len(params.names())} notebooks are in order")
    return 1 if problems else 0


def clean(yes: bool) -> int:
    """Remove every run folder, after asking; other files stay."""
    home = paths.runs()
    found = sorted({path.parent for path in home.glob("*/**/parameters.json")})
    folders = [folder for folder in found if not {*folder.parents} & {*found}]  # one inside another goes with it
    if not folders:
        print("there are no runs")
        return 0
    if busy := [folder for folder in folders if in_use(folder)]:
        raise RunError(f"{paths.short(busy[0])} is in use; stop that run before removing.")
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()) / 1e6
    if not yes:
        if not sys.stdin.isatty():
            raise RunError(f"{len(folders)} run folders would be removed; say so with --yes where nobody can answer.")
        if input(f"Remove {len(folders)} run folders, {size:.0f} MB? [y/N] ").strip().lower() != "y":
            print("nothing removed")
            return 1
    for folder in folders:
        shutil.rmtree(folder)
    for folder in sorted(home.glob("**/"), reverse=True):  # the deepest first
        if folder != home and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    print(f"removed {len(folders)} run folders, {size:.0f} MB")
    return 0
