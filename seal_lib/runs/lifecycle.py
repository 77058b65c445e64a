"""Run folders: finished units are kept, a killed run continues where it stopped, and ``run.json`` means done.

    run = start("11_single_passage", globals())      # after the parameters cell
    rows = run.map("evaluate/frozen", passages, answer)
    policy = run.artifact("policy/round_1", train)
    run.finish(results, metrics)

A folder holds ``parameters.json``, ``rows.jsonl`` (results, never wall times), ``costs.jsonl`` (seconds, tokens,
sessions), ``artifacts/``, and at the end ``results.csv``, ``metrics.json`` and, last of all, ``run.json``. After a kill
or on a full disk the files end with the last complete chunk. Several workers may compute the chunks of a
`seal_lib.runs.work.Work`, but only this process writes. Knows nothing of models, papermill or what a row means.
"""

import csv
import html
import io
import os
import platform
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import DataError, RunError, on_disk
from seal_lib.runs import code, manifest, params, progress, trackers
from seal_lib.runs.journal import Journal, Lock, json_form
from seal_lib.runs.values import did_you_mean
from seal_lib.runs.workers import Workers

COLUMNS = "experiment arm metric value low high n unit loops dropped interval p grader protocol model run".split()
EVALUATES = "evaluate/"  # part of the name of every phase that evaluates an arm
_UNFINISHED = (".building-*", ".*.new-*", ".*.old-*")  # folders that a killed process left unfinished
LOCK_WAIT = 20.0  # seconds; the kernel of a killed runner ends a moment later than the runner


class Run:
    """One run of one notebook in its own folder; `seal_lib.runs.opening.start` opens it."""

    def __init__(self, folder: Path, identity: dict, interactive: bool) -> None:
        self.folder, self.identity, self.interactive = folder, identity, interactive
        self.notebook, self.scale, self.key = identity["notebook"], identity["scale"], identity["key"]
        self.parameters: dict[str, object] = identity["parameters"]
        self._lock = Lock(folder / "lock", wait=0.0 if interactive else LOCK_WAIT)
        self._begun = time.monotonic()
        self._counts: Counter = Counter()
        self._described: dict[str, Any] = {}
        self._phases: set[str] = set()
        self._artifacts: set[str] = set()
        self.workers = Workers()
        self.note = _set_aside(folder, identity["notebook"])
        for leftover in [path for kind in _UNFINISHED for path in folder.glob(f"artifacts/**/{kind}")]:
            shutil.rmtree(leftover)
        for leftover in folder.rglob(".*.tmp"):  # left by a process that was killed while writing
            leftover.unlink()
        self._rows, self._costs = Journal(folder / "rows.jsonl"), Journal(folder / "costs.jsonl")
        self._inputs: dict[str, dict | None] = {}
        self.note = "; ".join(filter(None, [self.note, self._rows.note]))
        self.resumed = len(self._rows.lines)
        self._costs.append([{"session": {"start": manifest.now(), **manifest.session()}}])
        self.tracker = trackers.Tracked(identity, manifest.costs(self._costs.lines)["sessions"][0]["start"])

    # ------------------------------------------------------------------ work

    def map(self, phase: str, units: Sequence, fn: Callable[[list], list[dict]], chunk: int = 32) -> list[dict]:
        """Compute a row for every unit with ``fn``, in unit order; rows of finished chunks are read back instead.

        Args:
            phase: name of the step, unique in the run.
            units: objects with an ``id``, or strings.
            fn: takes a list of units and returns a list of rows (dicts) in the same order. It always gets the same
                consecutive slices of ``units``, so a resumed run computes what an undisturbed one computes. If it is a
                `seal_lib.runs.work.Work`, the slices go to the hired workers; the order of rows stays the same.
            chunk: units per slice, which is the most that a kill can lose (with workers: a few slices per worker).

        Raises:
            RunError: an id or a phase occurs twice, ``fn`` does not return one dict per unit, or the stored rows of
                this phase belong to other units.
        """
        units = list(units)
        ids = [unit if isinstance(unit, str) else unit.id for unit in units]
        if len(set(ids)) < len(ids):
            double = next(i for i in ids if ids.count(i) > 1)
            raise RunError(f"phase {phase!r} has the unit {double!r} twice; give every unit its own id.")
        if chunk < 1:
            raise RunError(f"phase {phase!r}: chunk={chunk} is not a size; give at least 1.")
        self._claim(phase)
        done = self._reusable(phase, ids, chunk)
        bar = progress.Progress(phase, total=len(ids), done=len(done))
        starts = range(len(done), len(units), chunk)
        parts = [units[first : first + chunk] for first in starts]
        names = [f"phase {phase!r}, {_span(ids[first : first + chunk])}" for first in starts]
        made = self.workers.map(fn, parts, names, lambda loss: self._costs.append([{"lost_worker": loss}]))
        for first, part, result in zip(starts, parts, made, strict=True):
            got = result.rows
            if not isinstance(got, list) or len(got) != len(part) or not all(isinstance(row, dict) for row in got):
                size = len(got) if isinstance(got, list) else type(got).__name__
                raise RunError(f"phase {phase!r} gave {size} for {len(part)} units; return one dict per unit.")
            lines = []
            for unit, row in zip(ids[first : first + chunk], got, strict=True):
                if {"phase", "unit"} & set(row):
                    raise RunError(f"phase {phase!r}: `phase` and `unit` are written by the run; rename that column.")
                lines.append({"phase": phase, "unit": unit, **json_form(row, f"{phase} {unit}")})
            self._rows.append(lines)
            self.count(**result.counts)
            self._spent(phase, result.seconds, first // chunk, len(part))
            done += self._rows.lines[-len(part) :]
            bar.update(len(part))
        bar.close()
        return [{key: value for key, value in line.items() if key not in ("phase", "unit")} for line in done]

    def forget(self, phase: str) -> None:
        """Drop the rows and the kept adapters of a phase, so that `map` computes them again."""
        lines = self._rows.lines
        first = next((index for index, line in enumerate(lines) if line["phase"] == phase), len(lines))
        if first < len(lines):
            self._rows.cut(first)
            if kept := [line for line in lines[first:] if line["phase"] != phase]:
                self._rows.append(kept)
        if adapters := self.adapters(phase):
            shutil.rmtree(adapters, ignore_errors=True)

    def adapters(self, phase: str) -> Path | None:
        """Return the folder for the trained adapters of an evaluated arm, or None unless ``keep_adapters`` is on."""
        wanted = self.parameters.get("keep_adapters") and EVALUATES in phase
        return self.folder / "artifacts" / "adapters" / phase if wanted else None

    def hire(self, count: int = 1, address: str = "", device: str = "auto") -> None:
        """Use ``count`` workers from now on (`seal_lib.runs.workers.Workers`)."""
        self.workers.close()
        self.workers = Workers(count, address, device)

    def artifact(self, name: str, build: Callable[[Path], object]) -> Path:
        """Return the folder ``artifacts/<name>``, calling ``build(folder)`` to fill it unless it is there and intact.

        The folder gets its name only when ``build`` has finished. A folder that was changed since is moved aside and
        built again. Raises RunError if the name is no plain relative path, lies inside or around another artifact, or
        ``build`` wrote nothing.
        """
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or ".." in name:
            raise RunError(f"artifact name {name!r} is not a relative path of plain words; rename it.")
        near = [o for o in self._artifacts - {name} if f"{o}/".startswith(f"{name}/") or f"{name}/".startswith(f"{o}/")]
        if near:
            raise RunError(f"artifact {name!r} would lie inside or around {near[0]!r}; choose another name.")
        self._artifacts.add(name)
        target = self.folder / "artifacts" / name
        if target.exists():
            if manifest.sealed(target):
                return target
            aside = target.with_name(f".damaged-{target.name}-{os.getpid()}")
            os.replace(target, aside)
            print(f"artifact {name!r} is not what was written: moved to {aside.name}, made again", flush=True)
        building = target.with_name(f".building-{target.name}")
        begun = time.monotonic()
        try:
            with on_disk(target):
                building.mkdir(parents=True)
                build(building)
                if not any(building.iterdir()):
                    raise RunError(f"artifact {name!r} is empty; `build` must write into the folder it is given.")
                manifest.seal(building, target)
                os.replace(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        self._spent(f"artifact:{name}", time.monotonic() - begun, 0, 1)
        return target

    def input(self, notebook: str, scale: str | None = None) -> Path:
        """Return the folder of another notebook's newest finished run, and record its content hash.

        The default scale is this run's. RunError if there is no such run.
        """
        found = self.inputs([notebook], scale)
        if not found:
            scale = scale or self.scale
            way = f"make reproduce ONLY={notebook} SCALE={scale}"
            raise RunError(f"{self.notebook} needs a finished run of {notebook} at scale {scale}; run `{way}` first.")
        return found[notebook]

    def inputs(self, notebooks: Sequence[str] | None = None, scale: str | None = None) -> dict[str, Path]:
        """Return the newest finished run of each notebook that has one, and record which were found and which were not.

        The default is all notebooks before this one in file order. When a recorded run changes, this run is out of
        date.
        """
        scale = scale or self.scale
        names = [name for name in params.names() if name < self.notebook] if notebooks is None else notebooks
        folders = {name: manifest.newest(name, scale) for name in names}
        for name, folder in folders.items():
            self._inputs[f"{name}@{scale}"] = manifest.fingerprint(folder)
        paths.write_json(self.folder / "inputs.json", self._inputs)
        return {name: folder for name, folder in folders.items() if folder}

    # ------------------------------------------------------------------ bookkeeping

    def count(self, **counts: float) -> None:
        """Add to the counters of this run: ``generated``, ``trained`` and ``scored`` tokens, or any other name."""
        self._counts.update({name: json_form(value, name) for name, value in counts.items()})

    def seconds(self, phases: str) -> float:
        """Return the seconds spent in all sessions on phases whose full name matches a regular expression."""
        spent = [line for line in self._costs.lines if re.fullmatch(phases, line.get("phase", ""))]
        return sum(line["seconds"] for line in spent)

    def describe(self, model: str | None = None, **facts: object) -> None:
        """Add a model (with revision and weight hash) or other facts, such as the data, to the run's record."""
        if model is not None:
            self._described.setdefault("models", {})[model] = manifest.describe_model(model)
        self._described.update(json_form(facts, "describe"))

    def finish(self, results: Sequence[dict], metrics: dict) -> "Run":
        """Write ``results.csv``, ``metrics.json`` and the record that makes the run done.

        In a notebook opened by hand the record is ``run.json`` itself. In a batch run it is ``run.json.pending``, which
        the runner turns into ``run.json`` after the last cell.
        """
        if self._counts:
            self._spent("end", 0.0, 0, 0)
        if self.workers.shared or self.workers.warning:
            self.describe(workers=self.workers.facts())
        self.workers.close()
        _write_results(self.folder / "results.csv", results, {"experiment": self.notebook, "run": self.key})
        paths.write_json(self.folder / "metrics.json", json_form(metrics, "metrics"))
        spent, wall = manifest.costs(self._costs.lines), time.monotonic() - self._begun
        record = manifest.record(self.folder, self.identity, self._described, self._inputs, spent, wall)
        if self.interactive:
            manifest.keep(self.folder, record)
        else:  # the runner writes run.json once the last cell has finished
            paths.write_json(self.folder / "run.json.pending", record)
        self.tracker.close(metrics)
        print(f"{self.notebook}: finished, {len(self._rows.lines)} rows -> {paths.short(self.folder)}", flush=True)
        if self.interactive:
            self.close()  # so that other processes can use the folder while this kernel lives
        return self

    def _spent(self, phase: str, seconds: float, chunk: int, units: int) -> None:
        line = {"phase": phase, "chunk": chunk, "units": units, "seconds": round(seconds, 4), "counts": self._counts}
        self._costs.append([line])
        self._counts = Counter()
        if self.tracker:
            spent = manifest.costs(self._costs.lines)
            units = sum(line["units"] for line in self._costs.lines if line.get("phase") == phase)
            of_phase = {f"units/{phase}": units, f"seconds/{phase}": spent["seconds"][phase]}
            whole = {"rows": len(self._rows.lines), "seconds": sum(spent["seconds"].values())}
            self.tracker.log({**whole, **spent["tokens"], **spent["counters"], **of_phase}, len(self._costs.lines))

    def _claim(self, phase: str) -> None:
        if phase in self._phases:
            if not self.interactive:
                raise RunError(f"phase {phase!r} is mapped twice in {self.notebook}; give each its own name.")
            # The cell was run again by hand: its code may have changed, so its rows go and the run is no longer done.
            (self.folder / "run.json").unlink(missing_ok=True)
            self.forget(phase)
        self._phases.add(phase)

    def _reusable(self, phase: str, ids: list[str], chunk: int) -> list[dict]:
        """Return the rows of a phase's finished chunks, and cut an unfinished last chunk off the file."""
        at = [index for index, line in enumerate(self._rows.lines) if line["phase"] == phase]
        have = [self._rows.lines[index]["unit"] for index in at]
        if have != ids[: len(have)]:
            raise RunError(f"{paths.short(self._rows.path)}: phase {phase!r} has other units; run with FORCE=1.")
        keep = len(have) if len(have) == len(ids) else len(have) // chunk * chunk
        if keep < len(have):
            if at[-1] != len(self._rows.lines) - 1:
                raise RunError(f"{paths.short(self._rows.path)}: phase {phase!r} is incomplete; run with FORCE=1.")
            self._rows.cut(at[keep])
        return [self._rows.lines[index] for index in at[:keep]]

    def close(self) -> None:
        """Stop the workers and the tracker, and release the folder before the process ends."""
        self.workers.close()
        self.tracker.close()
        self._lock.release()

    def facts(self) -> dict[str, str]:
        """Return the lines of the banner as name and value, in order."""
        git, machine = manifest.git_state(), manifest.machine()
        sha = git["sha"][:12] if git["sha"] else "not a git commit"
        shown = [f"{k} {v}" for k, v in manifest.versions().items() if k in ("torch", "transformers", "peft", "vllm")]
        found = {
            "notebook": self.notebook,
            "scale": f"{self.scale}{' (interactive)' if self.interactive else ''}",
            "run": paths.short(self.folder),
            "python": f"{platform.python_version()} ({Path(sys.prefix).name})",
            "versions": ", ".join(shown) or "none",
            "device": ", ".join(machine["gpus"]) or f"CPU, {machine['cores']} cores ({machine['cpu']})",
            "code": f"{sha} + changes {git['diff']}" if git["sha"] and git["dirty"] else sha,
        }
        if minutes := manifest.published_minutes(self.scale).get(self.notebook):
            found["took"] = f"{minutes:.1f} min when the published results were made"
        if self.resumed:
            found["resuming"] = f"{self.resumed} rows done"
        if self.note:
            found["note"] = self.note
        return found

    def __repr__(self) -> str:
        return "\n".join(f"{name:<9} {value}" for name, value in self.facts().items())

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        pairs = [(html.escape(name), html.escape(value)) for name, value in self.facts().items()]
        lines = "".join(f"<tr><th {left}>{name}</th><td {left}>{value}</td></tr>" for name, value in pairs)
        return f"<table>{lines}</table>"


def _span(ids: Sequence[str]) -> str:
    return f"unit {ids[0]}" if len(ids) == 1 else f"units {ids[0]} to {ids[-1]} ({len(ids)})"


class Scratch:
    """A run without a folder, which keeps nothing, for a quick look outside notebooks."""

    def map(self, phase: str, units: Sequence, fn: Callable[[list], list[dict]], chunk: int = 32) -> list[dict]:
        units = list(units)
        parts = [units[first : first + chunk] for first in range(0, len(units), chunk)]
        return [json_form(row, phase) for part in parts for row in fn(part)]

    def count(self, **counts: float) -> None:
        """Do nothing: costs are not kept."""

    def forget(self, phase: str) -> None:
        """Do nothing: there are no rows to drop."""

    def adapters(self, phase: str) -> None:
        """Return None: adapters are not kept."""

    def artifact(self, name: str, build: Callable[[Path], object]) -> Path:
        """Raise RunError: there is no folder to keep an artifact in."""
        raise RunError(f"artifact {name!r} needs a run with a folder; open one with seal_lib.start.")


def _set_aside(folder: Path, notebook: str) -> str:
    """Move results of other code or other inputs into ``superseded-<n>/``; return a sentence about it, or ""."""
    now, mark = manifest.code_of(notebook), folder / "code.json"
    reason = ""
    try:
        other = code.changed(paths.read_json(mark), now) if mark.exists() else []
    except DataError:
        other = [mark.name]
    if other:
        reason = f"{', '.join(other[:3])}{f' and {len(other) - 3} more' if len(other) > 3 else ''} changed"
    elif manifest.inputs_changed(folder):
        reason = "a run that it reads changed"
    names = ("rows.jsonl", "costs.jsonl", "artifacts", "inputs.json", "code.json")
    present = [folder / name for name in names if (folder / name).exists()] if reason else []
    note = ""
    if present:
        target = folder / f"superseded-{1 + len(list(folder.glob('superseded-*')))}"
        target.mkdir()
        for path in present:
            os.replace(path, target / path.name)
        note = f"{reason} since this run began: earlier rows moved to {target.name}/, starting afresh"
        print(note, flush=True)
    paths.write_json(mark, now)
    return note


# ---------------------------------------------------------------------------------------------- results


def _write_results(path: Path, results: Sequence[dict], defaults: dict[str, str]) -> None:
    """Write ``results.csv`` with its fixed columns; a missing number becomes an empty cell, never a zero."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")  # writes None as an empty cell
    writer.writeheader()
    for row in results:
        if unknown := [name for name in row if name not in COLUMNS]:
            hint = did_you_mean(unknown[0], COLUMNS) or f"the columns are {', '.join(COLUMNS)}."
            raise RunError(f"results.csv has no column {unknown[0]!r}; {hint}")
        if absent := [name for name in ("metric", "value") if name not in row]:
            raise RunError(f"a row of results.csv has no {absent[0]!r}; give it (NaN where there is no number).")
        writer.writerow({**defaults, **json_form(row, "results")})
    paths.write_text(path, text.getvalue())
