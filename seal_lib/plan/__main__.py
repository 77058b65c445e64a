"""Plan a scale before anything runs or is downloaded: what each notebook needs, what is missing, and what it costs.

``make reproduce SCALE=paper DRY_RUN=1``, or ``python -m seal_lib.plan --scale paper``, for this machine's GPU or for
``DEVICE=h200``. It looks only at this machine's files and caches, never at a network. Planning succeeds whatever it
finds; with ``--strict`` the exit status is 1 if something is missing.
"""

import argparse
import sys
from collections import Counter
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
class NotebookPlan:
    """The plan of one notebook; ``missing`` holds sentences, and ``hours`` the hours by kind of work."""

    notebook: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    work: list[Phase] = field(default_factory=list)
    budgets: list[budget.Budget] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    downloads: dict[str, float] = field(default_factory=dict)  # what → bytes
    disk: float = 0.0  # bytes of the run folder
    scratch: float = 0.0  # further bytes while it runs
    hours: Counter[str] = field(default_factory=Counter)
    done: bool = False

    def need(self, what: str, lack: str, size: float) -> None:
        """Note a sentence about what is missing, if any, and the bytes to download."""
        self.missing += [lack] * bool(lack)
        if size:
            self.downloads[what] = size


# ---------------------------------------------------------------------------------------------- price


def price(work: Phase, shape: budget.Shape, device: Device, dtype: str) -> float:
    """Return the estimated seconds of a phase."""
    if work.units <= 0:
        return 0.0
    of = costs.Costs(shape, device, work.targets, work.rank, dtype)
    if work.kind in ("write", "answer"):
        parts = of.generation(work.units, work.prompt, work.longest, rows=work.rows, adapters=work.adapters)
        return sum(part.seconds for part in parts)  # one after the other
    if work.kind == "factor":
        return of.factoring(work.units).seconds
    if work.kind == "read":
        return of.read([work.tokens / work.units] * 64).times(work.units / 64).seconds
    length = work.tokens / max(work.steps * work.batch, 1e-9)
    return of.training(work.steps, length, batch=work.batch, slots=work.slots).seconds


# ---------------------------------------------------------------------------------------------- the plan


def item(notebook: str, scale: str, device: Device, chosen: list[str]) -> NotebookPlan:
    """Return the plan of one notebook; its problems are in ``missing``."""
    made = NotebookPlan(notebook)
    try:
        p = made.parameters = params.resolve(notebook, scale)
        made.work = cells.of(notebook, p)
        shape, tokenizer_only = None, "dtype" not in p
        if "model" in p:
            for name in dict.fromkeys(manifest.models_named(p).values()):
                made.need(f"{name} (tokenizer)" if tokenizer_only else name, *needs.need_model(name, tokenizer_only))
            shape = None if tokenizer_only else budget.shape_of(str(p["model"]))
        for name in (p.get(key) for key in ("passages", "practice", "prior", "tasks")):
            if isinstance(name, str):
                made.need(name, *needs.need_data(name))
        made.missing += needs.need_others(p)
        if shape is not None and made.work:
            made.budgets = needs.budgets(p, made.work, shape, device)
            for one in made.budgets:
                try:
                    one.check()
                except SealError as error:
                    made.missing.append(str(error))
            for work in made.work:
                made.hours[work.kind] += price(work, shape, device, str(p["dtype"])) / 3600
        made.disk, made.scratch = needs.run_bytes(p, made.work, shape), needs.scratch_bytes(p, shape)
        made.missing += _inputs(notebook, scale, chosen)
        made.done = runner.state(notebook, scale)["state"] == "done"
    except SealError as error:
        made.missing.append(str(error))
    return made


def _inputs(notebook: str, scale: str, chosen: list[str]) -> list[str]:
    """Return a sentence for each run that the notebook reads and that is neither finished nor chosen."""
    wanted = runner.reads(notebook) or set()
    lacking = [name for name in sorted(wanted) if name not in chosen and manifest.newest(name, scale) is None]
    return [f"reads the run of {name} at scale {scale}, which is not finished; add it to ONLY." for name in lacking]


def make(scale: str, only: str, device: Device) -> tuple[list[NotebookPlan], list[str]]:
    """Return the plan of each chosen notebook, and sentences about what the machine itself lacks."""
    chosen = runner.chosen(scale, only)
    items = [item(name, scale, device, chosen) for name in chosen]
    waiting = [one for one in items if not one.done]
    wanted = {name: size for one in waiting for name, size in one.downloads.items()}
    for name in list(wanted):
        wanted.pop(f"{name} (tokenizer)", None)  # a model comes with its own
    lacking: list[str] = []
    needed: Counter[int] = Counter()
    free: dict[int, float] = {}
    for folder, size in ((needs.hub_home(), sum(wanted.values())), (paths.runs(), _runs_disk(waiting))):
        disk = needs.existing(folder).stat().st_dev
        needed[disk] += size
        free[disk] = needs.free_disk(folder)
    for disk, size in needed.items():
        if size > 0.95 * free[disk]:
            sizes = f"{needs.size_text(size)} are needed and {needs.size_text(free[disk])} are free"
            lacking.append(f"disk: {sizes}; make room or set HF_HOME and SEAL_HOME.")
    here = costs.this_device()
    if device.is_gpu and not here.is_gpu and waiting and scale in ("small", "paper"):
        lacking.append(f"no GPU is found here; the plan is for {device.name}.")
    return items, lacking


def _runs_disk(items: list[NotebookPlan]) -> float:
    """Return the bytes of all run folders, plus the largest scratch space, since notebooks run one after the other."""
    return sum(one.disk for one in items) + max((one.scratch for one in items), default=0.0)


def lines(items: list[NotebookPlan]) -> list[str]:
    """Return the table of the plan as aligned lines of text."""
    head = ["notebook", "model", "texts", "trainings", "adapter-steps", "answers"]
    rows = [[*head, "M tokens trained", "M tokens written", "memory GB", "disk GB", "hours", ""]]
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
                f"{max((memory.needed for memory in one.budgets), default=0.0) / budget.GB:.1f}",
                f"{(one.disk + one.scratch) / budget.GB:.2f}",
                _hours(one.hours.total()),
                state,
            ]
        )
    columns = zip("<<>>>>>>>>><", zip(*rows, strict=True), strict=True)
    form = "  ".join(f"{{:{side}{max(map(len, column))}}}" for side, column in columns)
    return [form.format(*row).rstrip() for row in rows]


def _count(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def _hours(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 or not value else "<0.01"


def report(scale: str, items: list[NotebookPlan], lacking: list[str], device: Device, prices: Prices | None) -> str:
    """Return the whole plan as text; with a price list it includes the cost of the hours."""
    head = f"Plan of scale {scale} on {device.name} ({device.source}). Nothing is run or downloaded."
    out = [head, "", *lines(items), ""]
    todo = [one for one in items if not one.done]
    kinds: Counter[str] = Counter()
    for one in todo:
        kinds.update(one.hours)
    total, word = kinds.total(), "GPU-hours" if device.is_gpu else "hours of one core"
    parts = ", ".join(f"{kind} {_hours(spent)}" for kind, spent in kinds.most_common())
    out.append(f"total: {total:.1f} {word} for {len(todo)} of {len(items)} notebooks{f' ({parts})' if parts else ''}")
    if prices is not None:
        money = prices.of({"seconds": 3600 * total})
        each = f"at {prices.hour:g} {prices.currency} an hour"
        out.append(f"{each}: {money:.2f} {prices.currency}, without models elsewhere")
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
    """Print the plan of a scale; the exit status is 1 with ``--strict`` if something is missing."""
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
