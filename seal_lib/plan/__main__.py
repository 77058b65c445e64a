"""Plan a scale before anything runs or is downloaded: what each notebook needs, what is missing, and what it costs.

``make reproduce SCALE=paper DRY_RUN=1``, or ``python -m seal_lib.plan --scale paper``. The plan checks parameters,
data, models, memory and disk (``needs``), counts the work (``cells``) and estimates its time (``costs``) on this
machine's GPU or on ``DEVICE=h200``. It looks only at this machine's files and caches, never at a network, and loads
torch only for the update rules of the forgetting study. Planning succeeds whatever it finds; with ``--strict`` the exit
status is 1 if something is missing.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from seal_lib import paths
from seal_lib.errors import SealError, command_line
from seal_lib.models import budget
from seal_lib.plan import cells, costs, needs
from seal_lib.plan.costs import Device
from seal_lib.plan.work import Phase, totals
from seal_lib.report.spending import Prices
from seal_lib.runs import manifest, params, runner


@dataclass
class Item:
    """The plan of one notebook; ``missing`` holds sentences, and ``hours`` the hours by kind of work."""

    notebook: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    work: list[Phase] = field(default_factory=list)
    budgets: list[budget.Budget] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    downloads: dict[str, float] = field(default_factory=dict)  # what → bytes
    disk: float = 0.0  # bytes of the run folder
    scratch: float = 0.0  # further bytes while it runs
    hours: dict[str, float] = field(default_factory=dict)
    done: bool = False

    @property
    def needed(self) -> float:
        """Memory needed, in bytes."""
        return max((b.needed for b in self.budgets), default=0.0)


# ---------------------------------------------------------------------------------------------- price


def price(work: Phase, shape: budget.Shape, device: Device, dtype: str) -> float:
    """Return the estimated seconds of a phase."""
    return sum(cost.seconds for cost in cost_of(work, shape, device, dtype))


def cost_of(work: Phase, shape: budget.Shape, device: Device, dtype: str) -> list[costs.Cost]:
    """Return the costs of a phase's parts, which run one after the other."""
    if work.units <= 0:
        return []
    if work.kind in ("write", "answer"):
        return list(
            costs.generation(
                shape,
                device,
                work.units,
                work.prompt,
                work.longest,
                rows=work.rows,
                dtype=dtype,
                adapters=work.adapters,
                targets=work.targets,
                rank=work.rank,
            )
        )
    if work.kind == "factor":
        return [costs.factoring(shape, device, work.units, work.targets)]
    if work.kind == "read":
        step = costs.read(shape, device, [work.tokens / work.units] * 64, dtype, work.targets, work.rank)
        return [costs.times(step, work.units / 64)]
    length = work.tokens / max(work.steps * work.batch, 1e-9)
    return [
        costs.training(
            shape,
            device,
            work.steps,
            length,
            batch=work.batch,
            slots=work.slots,
            targets=work.targets,
            rank=work.rank,
            dtype=dtype,
        )
    ]


# ---------------------------------------------------------------------------------------------- the plan


def item(notebook: str, scale: str, device: Device, chosen: list[str]) -> Item:
    """Return the plan of one notebook; its problems are in ``missing``."""
    made = Item(notebook)
    try:
        p = made.parameters = params.resolve(notebook, scale)
        made.work = cells.of(notebook, p)
        shape = _model(made, p)
        for key in ("passages", "practice", "prior", "tasks"):
            if isinstance(p.get(key), str):
                lack, size = needs.need_data(str(p[key]))
                made.missing += [lack] * bool(lack)
                if size:
                    made.downloads[str(p[key])] = size
        made.missing += needs.need_others(p)
        if shape is not None and made.work:
            made.budgets = needs.budgets(p, made.work, shape, device)
            for one in made.budgets:
                try:
                    one.check()
                except SealError as error:
                    made.missing.append(str(error))
            for work in made.work:
                spent = price(work, shape, device, str(p["dtype"])) / 3600
                made.hours[work.kind] = made.hours.get(work.kind, 0.0) + spent
        made.disk, made.scratch = needs.run_bytes(p, made.work, shape), needs.scratch_bytes(p, shape)
        made.missing += _inputs(notebook, scale, chosen)
        made.done = runner.state(notebook, scale)["state"] == "done"
    except SealError as error:
        made.missing.append(str(error))
    return made


def _model(item: Item, p: Mapping) -> budget.Shape | None:
    if "model" not in p:
        return None
    name = str(p["model"])
    for one in dict.fromkeys(manifest.models_named(p).values()):
        lack, size = needs.need_model(one, tokenizer_only="dtype" not in p)
        item.missing += [lack] * bool(lack)
        if size:
            item.downloads[f"{one} (tokenizer)" if "dtype" not in p else one] = size
    return budget.shape_of(name) if "dtype" in p else None


def _inputs(notebook: str, scale: str, chosen: list[str]) -> list[str]:
    """Return a sentence for each run that the notebook reads and that is neither finished nor chosen."""
    wanted = runner.reads(notebook) or set()
    lacking = [name for name in sorted(wanted) if name not in chosen and manifest.newest(name, scale) is None]
    return [f"reads the run of {name} at scale {scale}, which is not finished; add it to ONLY." for name in lacking]


def make(scale: str, only: str, device: Device) -> tuple[list[Item], list[str]]:
    """Return the plan of each chosen notebook, and sentences about what the machine itself lacks."""
    chosen = runner.chosen(scale, only)
    items = [item(name, scale, device, chosen) for name in chosen]
    waiting = [one for one in items if not one.done]
    wanted = {name: size for one in waiting for name, size in one.downloads.items()}
    wanted = {
        name: size
        for name, size in wanted.items()
        if name.removesuffix(" (tokenizer)") == name or name.removesuffix(" (tokenizer)") not in wanted
    }
    places = {needs.hub_home(): sum(wanted.values()), paths.runs(): _runs_disk(waiting)}
    lacking: list[str] = []
    by_disk: dict[int, tuple[float, float]] = {}
    for folder, size in places.items():
        there = folder
        while not there.exists():
            there = there.parent
        key = there.stat().st_dev
        by_disk[key] = (by_disk.get(key, (0.0, 0.0))[0] + size, needs.free_disk(folder))
    for size, free in by_disk.values():
        if size > 0.95 * free:
            sizes = f"{needs.size_text(size)} are needed and {needs.size_text(free)} are free"
            lacking.append(f"disk: {sizes}; make room or set HF_HOME and SEAL_HOME.")
    here = costs.this_device()
    if device.is_gpu and not here.is_gpu and waiting and scale in ("small", "paper"):
        lacking.append(f"no GPU is found here; the plan is for {device.name}.")
    return items, lacking


def _runs_disk(items: list[Item]) -> float:
    """Return the bytes of all run folders, plus the largest scratch space, since notebooks run one after the other."""
    return sum(one.disk for one in items) + max((one.scratch for one in items), default=0.0)


def lines(items: list[Item]) -> list[str]:
    """Return the table of the plan as aligned lines of text."""
    head = [
        "notebook",
        "model",
        "texts",
        "trainings",
        "adapter-steps",
        "answers",
        "M tokens trained",
        "M tokens written",
        "memory GB",
        "disk GB",
        "hours",
        "",
    ]
    rows = [head]
    for one in items:
        t = totals(one.work)
        name = str(one.parameters.get("model", "")).rpartition("/")[2]
        state = "done already" if one.done else f"{len(one.missing)} missing" if one.missing else "ready"
        rows.append(
            [
                one.notebook,
                name,
                *(_count(t[key]) for key in ("written", "trainings", "steps", "answers")),
                f"{(t['trained_tokens'] + t['sft_tokens']) / 1e6:.2f}",
                f"{(t['written_tokens'] + t['answered_tokens']) / 1e6:.2f}",
                f"{one.needed / budget.GB:.1f}",
                f"{(one.disk + one.scratch) / budget.GB:.2f}",
                _hours(sum(one.hours.values())),
                state,
            ]
        )
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


def report(scale: str, items: list[Item], lacking: list[str], device: Device, prices: Prices | None = None) -> str:
    """Return the whole plan as text; with a price list it includes the cost of the hours."""
    head = f"Plan of scale {scale} on {device.name} ({device.source}). Nothing is run or downloaded."
    out = [head, "", *lines(items), ""]
    todo = [one for one in items if not one.done]
    kinds: dict[str, float] = {}
    for one in todo:
        for kind, spent in one.hours.items():
            kinds[kind] = kinds.get(kind, 0.0) + spent
    total, word = sum(kinds.values()), "GPU-hours" if device.is_gpu else "hours of one core"
    parts = ", ".join(f"{kind} {_hours(spent)}" for kind, spent in sorted(kinds.items(), key=lambda pair: -pair[1]))
    line = f"total: {total:.1f} {word} for {len(todo)} of {len(items)} notebooks"
    out.append(line + (f" ({parts})" if parts else ""))
    if prices is not None:
        money = prices.of({"seconds": 3600 * total})
        out.append(
            f"at {prices.hour:g} {prices.currency} an hour: {money:.2f} {prices.currency}, without models elsewhere"
        )
    known = {kind: costs.efficiency(kind, device.key) for kind in ("train", "answer")}
    shares = ", ".join(f"{kind} {share:.0%} ({source})" for kind, (share, source) in known.items())
    out.append(f"priced at a share of the device's floor: {shares}; `make bench-gpu` measures it")
    downloads = {name: size for one in todo for name, size in one.downloads.items()}
    if downloads:
        out.append("to download: " + ", ".join(f"{name} {needs.size_text(size)}" for name, size in downloads.items()))
    size = _runs_disk(todo)
    out.append(f"disk of the runs: {needs.size_text(size)}; free: {needs.size_text(needs.free_disk(paths.runs()))}")
    who: dict[str, list[str]] = {text: [] for text in lacking}
    for one in todo:
        for text in dict.fromkeys(one.missing):
            who.setdefault(text, []).append(one.notebook.partition("_")[0])
    problems = [f"{', '.join(names)}: {text}" if names else text for text, names in who.items()]
    out += ["", "missing:" if problems else "nothing is missing", *(f"  {text}" for text in problems)]
    return "\n".join(out)


@command_line
def main(arguments: list[str] | None = None) -> int:
    """Print the plan of a scale.

    The exit status is 0 if it was made, 1 with ``--strict`` if something is missing, 2 if the scale or a name is
    unknown.
    """
    parser = argparse.ArgumentParser(prog="python -m seal_lib.plan", description="What a scale needs and costs.")
    parser.add_argument("--scale", default="seedling")
    parser.add_argument("--only", default="", metavar="A,B", help="names, or unique beginnings of names")
    parser.add_argument("--device", default="", help=f"plan for: {', '.join(costs.devices())} (default: what is here)")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if anything is missing")
    parser.add_argument("--prices", default="", metavar="FILE", help="YAML: currency, hour (as for `seal spent`)")
    given = parser.parse_args(arguments)
    prices = Prices.read(paths.given(given.prices)) if given.prices else None
    device = costs.device(given.device) if given.device else default_device(given.scale)
    items, lacking = make(given.scale, given.only, device)
    print(report(given.scale, items, lacking, device, prices))
    return int(given.strict and bool(lacking or any(one.missing for one in items if not one.done)))


def default_device(scale: str) -> Device:
    """Return this machine's device; without a GPU, the large scales are planned for the card that they are made for."""
    here = costs.this_device()
    if here.is_gpu or scale not in ("small", "paper"):
        return here
    return costs.device("h200" if scale == "paper" else "rtx4090")


if __name__ == "__main__":
    sys.exit(main())
