"""Before anything runs or is downloaded: what each notebook of a scale needs, what is missing, and what it will cost.

``make reproduce SCALE=paper DRY_RUN=1``, or ``python -m seal_lib.plan --scale paper``. Checks parameters, data, models,
memory and disk, counts the work (:mod:`seal_lib.counts`) and prices it (:mod:`seal_lib.costs`) on this machine's GPU or on
``DEVICE=h200``. Looks only at this machine's files and caches, never at a network; imports no torch. Planning is a
success whatever it finds; with ``--strict`` something missing is exit status 1.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from seal_lib import budget, costs, counts, lengths, models, params, paths, runner
from seal_lib.costs import Device
from seal_lib.counts import Work
from seal_lib.errors import SealError

GB = 1e9
#: files of SQuAD at its pinned revision, and their sizes in bytes
SQUAD_FILES = {
    "validation": ("plain_text/validation-00000-of-00001.parquet", 1.82e6),
    "train": ("plain_text/train-00000-of-00001.parquet", 14.46e6),
}
GATED = ("meta-llama/",)


@dataclass
class Item:
    """The plan of one notebook; ``missing``: sentences. ``hours``: by kind of work."""

    notebook: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list)
    budgets: list[budget.Budget] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    downloads: dict[str, float] = field(default_factory=dict)  # what → bytes
    disk: float = 0.0  # bytes of the run folder
    scratch: float = 0.0  # bytes more while it runs
    hours: dict[str, float] = field(default_factory=dict)
    done: bool = False

    @property
    def needed(self) -> float:
        """Bytes of memory."""
        return max((b.needed for b in self.budgets), default=0.0)


# ---------------------------------------------------------------------------------------------- price


def price(work: Work, shape: budget.Shape, device: Device, dtype: str) -> float:
    """Seconds that a phase is estimated to take."""
    return sum(cost.seconds for cost in cost_of(work, shape, device, dtype))


def cost_of(work: Work, shape: budget.Shape, device: Device, dtype: str) -> list[costs.Cost]:
    """A phase's costs one after the other."""
    if work.units <= 0:
        return []
    if work.kind in ("write", "answer"):
        return list(
            costs.generation(
                shape, device, work.units, work.prompt, work.longest, rows=work.rows, dtype=dtype,
                adapters=work.adapters, targets=work.targets, rank=work.rank,
            )
        )  # fmt: skip
    if work.kind == "factor":
        return [costs.factoring(shape, device, work.units, work.targets)]
    if work.kind == "read":
        step = costs.read(shape, device, [work.tokens / work.units] * 64, dtype, work.targets, work.rank)
        return [costs.times(step, work.units / 64)]
    length = work.tokens / max(work.steps * work.batch, 1e-9)
    return [
        costs.training(
            shape, device, work.steps, length, batch=work.batch, slots=work.slots, targets=work.targets,
            rank=work.rank, dtype=dtype,
        )
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- memory


def budgets(p: Mapping, work: list[Work], shape: budget.Shape, device: Device) -> list[budget.Budget]:
    """What training with answering, and the M-step, hold in memory at once."""
    dtype, found = str(p["dtype"]), []
    weights = budget.weight_bytes(shape, dtype)
    kv = max((int(min(w.rows * (w.prompt + w.longest), counts.CACHE_TOKENS)) for w in work), default=0)
    trainings = [w for w in work if w.kind == "train"]
    finetunings = [w for w in work if w.kind == "sft"]
    longest = _longest(p)
    if trainings:
        slots, batch = max(w.slots for w in trainings), max(w.batch for w in trainings)
        tokens, rank = int(slots * batch * longest), int(p["rank"])
        if "length" in p:  # the history lies in the slot as frozen ranks
            rank *= int(p["length"])
        made = budget.colocated(shape, dtype, slots, str(p["targets"]), rank, tokens, tokens, False, kv, "hf", device.memory)
    else:
        parts = {f"weights ({dtype})": weights, f"keys and values of {kv} tokens": budget.kv_bytes(shape, kv, dtype)}
        made = budget.Budget(f"{shape.name}, generation", parts, device.memory)
    if finetunings:
        made.parts["earlier policies of the loop (2)"] = 2 * weights
    made.parts |= _continual(p, shape, trainings)
    found.append(made)
    if finetunings:
        found.append(_m_step(p, finetunings[0], shape, device, 2 * weights))
    for one in found:
        if not device.is_gpu:
            one.parts.pop("CUDA context", None)
    return found


def _m_step(p: Mapping, one: Work, shape: budget.Shape, device: Device, weights: float) -> budget.Budget:
    """Finetuning on the longest pairs that are to be expected; a GPU takes them one by one (`restem.pieces`)."""
    text = lengths.profile(str(p.get("practice") or p["passages"]))
    long = text.longest(round(one.units), p["edit_tokens"]) if isinstance(text, lengths.Text) else text.edit
    rows = 1 if device.is_gpu else one.batch
    tokens = int(rows * (text.write + long))
    activations = budget.activation_bytes(shape, tokens, one.targets, dtype=str(p["dtype"]), rank=one.rank)
    parts = {
        "weights, two policies": weights,
        "adapter in training": budget.slot_bytes(shape, one.targets, one.rank),
        f"activations of {tokens} tokens": activations,
        "logits of the completions": budget.logits_bytes(shape, int(rows * long)),
        "CUDA context": budget.CONTEXT,
    }
    return budget.Budget(f"{shape.name}, M-step", parts, device.memory)


def _longest(p: Mapping) -> float:
    """Tokens of a long training document with its pads."""
    text = lengths.profile(str(p.get("passages") or p["tasks"]))
    if isinstance(text, lengths.Puzzles):
        return min(text.example_longest, p.get("example_tokens", 8192))
    document = max(text.passage, sorted(max(d) for d in text.documents)[len(text.documents) // 2])
    return counts.pad_tokens(str(p.get("pad_loss", "eos")), document)


def _continual(p: Mapping, shape: budget.Shape, trainings: list[Work]) -> dict[str, float]:
    """Teachers of the anchors and dense statistics, for the arms that have them."""
    if "anchors" not in p or not trainings:
        return {}
    slots, parts = max(w.slots for w in trainings), {}
    arms = {str(name) for name in p["arms"]}
    if arms & {"kl", "kl_replay"}:
        tokens = p["anchors"] * 50
        parts[f"teachers of {slots} streams"] = 4.0 * slots * tokens * shape.vocabulary
    if "ewc" in arms:
        dense = 4.0 * shape.layers * sum(
            shape.sides(t)[0] * shape.sides(t)[1] for t in models.target_names(str(p["targets"]))
        )  # fmt: skip
        merged = budget.weight_bytes(shape, str(p["dtype"]))
        parts[f"EWC: dense weights of {slots} streams, a merged model"] = dense * (2 * slots + 2) + merged
    return parts


# ---------------------------------------------------------------------------------------------- data, models, disk


def hub_file(repository: str, name: str, revision: str | None, kind: str = "model") -> bool:
    """Whether a file of the Hub lies in this machine's cache; looks at the disk only."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, name, revision=revision, repo_type=kind), str)


def need_model(name: str, dtype: str, tokenizer_only: bool = False) -> tuple[str, float]:
    """("" or what is missing, bytes to download) of a model."""
    source, revision = models.resolve(name)
    if Path(source).is_dir():
        return "", 0.0
    if not revision:
        return f"model {name} has no pinned revision; add it to REVISIONS in seal_lib/models.py.", 0.0
    wanted = "tokenizer.json" if tokenizer_only else "config.json"
    weights = tokenizer_only or any(
        hub_file(source, file, revision) for file in ("model.safetensors", "model.safetensors.index.json")
    )
    if hub_file(source, wanted, revision) and weights and (tokenizer_only or _shards(source, revision)):
        return "", 0.0
    size = 17e6 if tokenizer_only else budget.weight_bytes(budget.shape_of(name), "bfloat16") + 17e6
    gated = "; it is gated: accept its licence there and log in" if name.startswith(GATED) else ""
    what = "tokenizer of model" if tokenizer_only else "model"
    return f"{what} {name}@{revision[:8]} is not in the cache ({_size(size)} to download{gated}).", size


def _shards(source: str, revision: str) -> bool:
    """Whether every file that the index names is there."""
    import json

    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(source, "model.safetensors.index.json", revision=revision)
    if not isinstance(index, str):
        return True
    files = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    return all(hub_file(source, file, revision) for file in files)


def need_data(source: str) -> tuple[str, float]:
    """("" or what is missing, bytes to download) of a source of passages or puzzles."""
    from seal_lib.knowledge.data import SQUAD_REVISION

    kind, _, rest = source.partition(":")
    if kind == "world":
        return "", 0.0
    if kind == "hub":
        repository, _, split = rest.partition(":")
        if repository != "rajpurkar/squad":
            return f"data {source}: the cache is not looked up for it; make sure that it is there.", 0.0
        file, size = SQUAD_FILES[split or "validation"]
        cache = Path(os.environ.get("HF_DATASETS_CACHE") or _hub_home() / "datasets")
        prepared = any(cache.glob(f"rajpurkar___squad/*/*/{SQUAD_REVISION}"))
        if prepared or hub_file(repository, file, SQUAD_REVISION, "dataset"):
            return "", 0.0
        return f"data {source}@{SQUAD_REVISION[:8]} is not in the cache ({_size(size)} to download).", size
    if paths.given(source).exists():
        return "", 0.0
    way = "run `git clone https://github.com/fchollet/ARC-AGI data/ARC-AGI`" if "ARC-AGI" in source else "give its path"
    return f"data {source} does not exist; {way}.", 0.0


def _hub_home() -> Path:
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")


def run_bytes(p: Mapping, work: list[Work], shape: budget.Shape | None) -> float:
    """Disk of the run folder: policies' adapters (float32) and the rows."""
    total = 2e3 * sum(w.units for w in work if w.kind in ("train", "answer")) + 5e6
    if shape is None:
        return total
    learned = [w for w in work if w.kind == "sft"]
    total += sum(4.0 * shape.adapter_parameters(w.targets, w.rank) for w in learned) * len(p.get("seeds", [0]))
    return total


def scratch_bytes(p: Mapping, shape: budget.Shape | None) -> float:
    """Disk while a forgetting study runs: each stream's weights after its last two edits (removed arm by arm)."""
    if shape is None or "n_sequences" not in p:
        return 0.0
    return 2 * p["n_sequences"] * 4.0 * shape.adapter_parameters(str(p["targets"]), p["rank"] * p["length"])


def free_disk(folder: Path) -> float:
    """Free bytes where a folder is or would be made."""
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)


def _size(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= 0.1 * GB else f"{count / 1e6:.0f} MB"


# ---------------------------------------------------------------------------------------------- the plan


def item(notebook: str, scale: str, device: Device, chosen: list[str]) -> Item:
    """The plan of one notebook; what is wrong with it stands in ``missing``."""
    made = Item(notebook)
    try:
        p = made.parameters = params.resolve(notebook, scale)
        made.work = counts.of(notebook, p)
        shape = _model(made, p)
        for key in ("passages", "practice", "prior", "tasks"):
            if isinstance(p.get(key), str):
                told, size = need_data(str(p[key]))
                made.missing += [told] * bool(told)
                if size:
                    made.downloads[str(p[key])] = size
        if shape is not None and made.work:
            made.budgets = budgets(p, made.work, shape, device)
            for one in made.budgets:
                try:
                    one.check()
                except SealError as error:
                    made.missing.append(str(error))
            for work in made.work:
                spent = price(work, shape, device, str(p["dtype"])) / 3600
                made.hours[work.kind] = made.hours.get(work.kind, 0.0) + spent
        made.disk, made.scratch = run_bytes(p, made.work, shape), scratch_bytes(p, shape)
        made.missing += _inputs(notebook, scale, chosen)
        made.done = runner.state(notebook, scale)["state"] == "done"
    except SealError as error:
        made.missing.append(str(error))
    return made


def _model(made: Item, p: Mapping) -> budget.Shape | None:
    if "model" not in p:
        return None
    name, dtype = str(p["model"]), str(p.get("dtype", "float32"))
    told, size = need_model(name, dtype, tokenizer_only="dtype" not in p)
    made.missing += [told] * bool(told)
    if size:
        made.downloads[f"{name} (tokenizer)" if "dtype" not in p else name] = size
    return budget.shape_of(name) if "dtype" in p else None


def _inputs(notebook: str, scale: str, chosen: list[str]) -> list[str]:
    """Runs it reads that are neither finished nor chosen."""
    from seal_lib import manifest

    wanted = runner.reads(notebook) or set()
    lacking = [name for name in sorted(wanted) if name not in chosen and manifest.newest(name, scale) is None]
    return [f"reads the run of {name} at scale {scale}, which is not finished; add it to ONLY." for name in lacking]


def make(scale: str, only: str, device: Device) -> tuple[list[Item], list[str]]:
    """The plan of a scale, and what the machine itself lacks for it."""
    chosen = runner.chosen(scale, only)
    items = [item(name, scale, device, chosen) for name in chosen]
    waiting = [one for one in items if not one.done]
    wanted = {name: size for one in waiting for name, size in one.downloads.items()}
    wanted = {name: size for name, size in wanted.items() if name.removesuffix(" (tokenizer)") == name or
              name.removesuffix(" (tokenizer)") not in wanted}  # fmt: skip
    places = {_hub_home(): sum(wanted.values()), paths.runs(): _runs_disk(waiting)}
    lacking: list[str] = []
    by_disk: dict[int, tuple[float, float]] = {}
    for folder, size in places.items():
        there = folder
        while not there.exists():
            there = there.parent
        key = there.stat().st_dev
        by_disk[key] = (by_disk.get(key, (0.0, 0.0))[0] + size, free_disk(folder))
    for size, free in by_disk.values():
        if size > 0.95 * free:
            lacking.append(f"disk: {_size(size)} are needed and {_size(free)} are free; make room or set HF_HOME and SEAL_HOME.")
    here = costs.found()
    if device.is_gpu and not here.is_gpu and waiting and scale in ("small", "paper"):
        lacking.append(f"no GPU is found here; the plan is for {device.name}.")
    return items, lacking


def _runs_disk(items: list[Item]) -> float:
    """Bytes of the run folders, one notebook after the other."""
    return sum(one.disk for one in items) + max((one.scratch for one in items), default=0.0)


def lines(items: list[Item]) -> list[str]:
    """The table as aligned text."""
    head = ["notebook", "model", "texts", "trainings", "adapter-steps", "answers", "M tokens trained",
            "M tokens written", "memory GB", "disk GB", "hours", ""]  # fmt: skip
    rows = [head]
    for one in items:
        t = counts.totals(one.work)
        name = str(one.parameters.get("model", "")).rpartition("/")[2]
        told = "done already" if one.done else f"{len(one.missing)} missing" if one.missing else "ready"
        rows.append(
            [
                one.notebook, name, _count(t["written"]), _count(t["trainings"]), _count(t["steps"]), _count(t["answers"]),
                f"{(t['trained_tokens'] + t['sft_tokens']) / 1e6:.2f}",
                f"{(t['written_tokens'] + t['answered_tokens']) / 1e6:.2f}",
                f"{one.needed / GB:.1f}", f"{(one.disk + one.scratch) / GB:.2f}", _hours(sum(one.hours.values())), told,
            ]
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return [
        "  ".join(
            text.ljust(w) if i in (0, 1, len(head) - 1) else text.rjust(w)
            for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _count(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def _hours(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 or not value else "<0.01"


def report(scale: str, items: list[Item], lacking: list[str], device: Device) -> str:
    """All of it as text."""
    out = [f"Plan of scale {scale} on {device.name} ({device.source}). Nothing is run or downloaded.", "", *lines(items), ""]
    todo = [one for one in items if not one.done]
    kinds: dict[str, float] = {}
    for one in todo:
        for kind, spent in one.hours.items():
            kinds[kind] = kinds.get(kind, 0.0) + spent
    total, word = sum(kinds.values()), "GPU-hours" if device.is_gpu else "hours of one core"
    parts = ", ".join(f"{kind} {_hours(spent)}" for kind, spent in sorted(kinds.items(), key=lambda pair: -pair[1]))
    out.append(f"total: {total:.1f} {word} for {len(todo)} of {len(items)} notebooks" + (f" ({parts})" if parts else ""))
    told = {kind: costs.efficiency(kind, device.key) for kind in ("train", "answer")}
    shares = ", ".join(f"{kind} {share:.0%}{'' if real else ' (assumed)'}" for kind, (share, real) in told.items())
    out.append(f"priced at a share of the device's floor: {shares}; `make bench-gpu` measures it")
    downloads = {name: size for one in todo for name, size in one.downloads.items()}
    if downloads:
        out.append("to download: " + ", ".join(f"{name} {_size(size)}" for name, size in downloads.items()))
    size = _runs_disk(todo)
    out.append(f"disk of the runs: {_size(size)}; free: {_size(free_disk(paths.runs()))}")
    who: dict[str, list[str]] = {text: [] for text in lacking}
    for one in todo:
        for text in one.missing:
            who.setdefault(text, []).append(one.notebook.partition("_")[0])
    problems = [f"{', '.join(names)}: {text}" if names else text for text, names in who.items()]
    out += ["", "missing:" if problems else "nothing is missing", *(f"  {text}" for text in problems)]
    return "\n".join(out)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 planned, 1 with ``--strict`` if something is missing, 2 if the scale or a name is unknown."""
    parser = argparse.ArgumentParser(prog="python -m seal_lib.plan", description="What a scale needs and costs.")
    parser.add_argument("--scale", default="seedling")
    parser.add_argument("--only", default="", metavar="A,B", help="names, or unique beginnings of names")
    parser.add_argument("--device", default="", help=f"plan for: {', '.join(costs.devices())} (default: what is here)")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if anything is missing")
    given = parser.parse_args(arguments)
    try:
        device = costs.device(given.device) if given.device else default_device(given.scale)
        items, lacking = make(given.scale, given.only, device)
        print(report(given.scale, items, lacking, device))
    except SealError as error:
        print(error, file=sys.stderr)
        return 2
    return int(given.strict and bool(lacking or any(one.missing for one in items if not one.done)))


def default_device(scale: str) -> Device:
    """What is here; without a GPU the larger scales are planned for the card they are made for."""
    here = costs.found()
    if here.is_gpu or scale not in ("small", "paper"):
        return here
    return costs.device("h200" if scale == "paper" else "rtx4090")


if __name__ == "__main__":
    sys.exit(main())
