"""``python -m seal_lib.seedling``: grow the shipped models from nothing and check what they must be able to do.

This takes about 20 minutes (knowledge) and 10 minutes (grids) on one CPU core, for each seed. It ends with the
acceptance numbers, and with exit status 1 if one is missed. ``--seeds 3`` grows each world's model from the seeds 0, 1
and 2, all else equal, so that a claim can be tested on other models than the one it was found on. Other sizes
(`acceptance.SIZES`) are grown by name: ``--only knowledge-small``.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from seal_lib import models
from seal_lib.errors import DataError, command_line
from seal_lib.paths import write_text
from seal_lib.seedling.acceptance import ACCEPTANCE, SIZES, Seedling
from seal_lib.seedling.growth import Recipe, grow


def write_card(folder: Path, seedling: Seedling, recipe: Recipe, numbers: dict[str, float], minutes: float) -> None:
    """Write the model card from what was measured."""
    model, tokenizer = models.load(str(folder))
    rows = [
        f"| {key} | {numbers[key]:.3f} | {low:.2f} – {high:.2f} |" for key, (low, high) in seedling.accepted.items()
    ]
    card = seedling.card.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=len(tokenizer),
        digest=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        table="\n".join(rows),
        text=json.dumps(asdict(recipe), indent=1),
        recipe=recipe,
        minutes=minutes,
        measured_on=seedling.measured_on,
    )
    write_text(folder / "README.md", card)


def grow_with_bar(name: str, recipe: Recipe, folder: Path) -> float:
    """Grow a model into ``folder`` with a progress bar; return the minutes that all its steps take.

    If the growth was resumed, they are estimated from the pace of the steps made now.
    """
    start, first = time.monotonic(), recipe.steps
    with tqdm(total=recipe.steps, desc=f"growing {name}", unit="step", mininterval=2.0) as bar:

        def watch(step: int, losses: dict[str, float]) -> None:
            nonlocal first
            first = min(first, step)
            bar.n = step
            bar.set_postfix({kind: f"{loss:.2f}" for kind, loss in losses.items()}, refresh=False)
            bar.update(1)

        grow(recipe, folder, watch)
    return (time.monotonic() - start) / 60 * recipe.steps / max(1, recipe.steps - first)


def accept(seedling: Seedling, numbers: dict[str, float]) -> bool:
    """Print every number with its verdict; return True if none is missed."""
    good = {key: low <= numbers[key] <= high for key, (low, high) in seedling.accepted.items()}
    for key, (low, high) in seedling.accepted.items():
        verdict = "ok" if good[key] else "MISSED"
        print(f"{verdict:>6}  {key:<24} {numbers[key]:.3f}   accepted {low:.2f} to {high:.2f}")
    return all(good.values())


def model_name(world: str, seed: int) -> str:
    """Return the name of a model's folder: ``knowledge``, ``knowledge-1``, …; the model adds ``seedling-``."""
    return f"{world}-{seed}" if seed else world


def chosen(only: str | None, seeds: int) -> list[tuple[str, int]]:
    """Return the (world or size, seed) of every model to grow; ``only`` names a world (all its seeds) or one model.

    Raises:
        DataError: ``only`` is neither.
    """
    worlds = [(world, seed) for world in ACCEPTANCE for seed in range(seeds)]
    if only is None:
        return worlds
    if only in SIZES:
        return [(only, 0)]
    world, dash, seed = only.partition("-")
    if world not in ACCEPTANCE or (dash and not seed.isdecimal()):
        raise DataError(
            f"--only: {only!r} is not one of {', '.join([*ACCEPTANCE, *SIZES])}, "
            f"or a world with a seed ({next(iter(ACCEPTANCE))}-1)."
        )
    return [(world, int(seed))] if seed else [pair for pair in worlds if pair[0] == world]


@command_line
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m seal_lib.seedling", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", help="a world, a size, or one model: knowledge-2 is grown from seed 2 (default: both worlds)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="models of each world, grown from the seeds 0, 1, …")
    parser.add_argument("--out", type=Path, default=models.SEEDLINGS, help="folder of the models' folders")
    parser.add_argument("--steps", type=int, help="shorten the recipe (for a look; acceptance will fail)")
    parser.add_argument("--check", action="store_true", help="only measure the models in --out")
    options = parser.parse_args(arguments)
    good = True
    for world, seed in chosen(options.only, options.seeds):
        seedling, name = (ACCEPTANCE | SIZES)[world], model_name(world, seed)
        recipe = replace(seedling.recipe, seed=seed, steps=options.steps or seedling.recipe.steps)
        os.environ.setdefault("OMP_NUM_THREADS", str(recipe.threads))
        home = options.out / name
        folder = home if options.check else home.with_name(f"{name}-growing")  # replaces ``home`` when accepted
        minutes = 0.0 if options.check else grow_with_bar(name, recipe, folder)
        numbers = seedling.measure(folder)
        accepted = accept(seedling, numbers)
        good = good and accepted
        if not options.check:
            write_card(folder, seedling, recipe, numbers, minutes)
            if accepted:
                shutil.rmtree(home, ignore_errors=True)
                os.replace(folder, home)
            else:
                print(f"not accepted: the new model stays in {folder}, {home} is as it was", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
