"""Run `sft` over several cards of one machine: one process per card, weights, gradients and moments sharded (FSDP2).

torchrun starts the processes. The caller's model is not sent to them: they load it by name, with the adapters that are
merged into it. Knows neither policies nor what the texts mean.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from seal_lib import errors, models
from seal_lib.errors import ParameterError, RunError, SealError
from seal_lib.paths import importable, read_json, write_json, write_text
from seal_lib.training.adapters import Adapter, merge
from seal_lib.training.finetune import gathered, sft


def sft_over(
    cards: int,
    model: nn.Module,
    source: Mapping[str, Any],
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    **settings: Any,
) -> tuple[Adapter | nn.Module, dict]:
    """Return what `sft` returns for the same arguments, up to the order of its sums.

    If all weights are trained in bfloat16, the random draws of their rounding depend on the number of cards.

    Args:
        cards: number of processes, each with a card of its own unless the model is on the CPU.
        model: the model whose weights are trained; it stays as it is.
        source: where the processes find the same weights: name, dtype, revision and adapters, as in
            `seal_lib.loops.policy.Source`.

    Raises:
        ParameterError: the machine has fewer cards, or as `sft`.
        DivergedError, DataError: as `sft`.
        RunError: a process ended early.
    """
    device = next(model.parameters()).device.type
    if device == "cuda" and cards > torch.cuda.device_count():
        raise ParameterError(
            f"cards: {cards} were asked for, this machine shows {torch.cuda.device_count()}; lower it."
        )
    if device == "cuda":
        torch.cuda.empty_cache()  # this process shares the first card
    with tempfile.TemporaryDirectory(prefix="seal-cards-") as place:
        folder = Path(place)
        write_json(folder / "asked.json", {"source": dict(source), "device": device, "settings": settings})
        write_text(folder / "pairs.json", json.dumps([[list(part) for part in pair] for pair in pairs]))
        torchrun = f"-m torch.distributed.run --standalone --nproc-per-node={cards} -m {__name__}"
        command = [sys.executable, *torchrun.split(), place]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": importable()}, capture_output=True, text=True)
        if (folder / "failed.json").exists():
            failed = read_json(folder / "failed.json")
            raise getattr(errors, failed["kind"])(failed["message"])
        if not (folder / "report.json").exists():
            said = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()[-1:]
            raise RunError(f"cards: training over {cards} ended with status {done.returncode}: {' '.join(said[:1])}")
        report = read_json(folder / "report.json")
        if settings.get("method", "lora") == "lora":
            return Adapter.load(folder / "adapter"), report
        trained, saved = deepcopy(model), load_file(folder / "model.safetensors")
        with torch.no_grad():
            for name, parameter in trained.named_parameters():
                parameter.copy_(saved[name])
        return trained.requires_grad_(False), report


def main(place: str) -> None:
    """Train as one of the processes; the first one writes the result, or the error, into the folder."""
    folder, number, of = Path(place), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    asked = read_json(folder / "asked.json")
    source, device = asked["source"], asked["device"]
    if device == "cuda":
        torch.cuda.set_device(number)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        model = models.load(
            source["name"], f"{device}:{number}" if device == "cuda" else device, source["dtype"], source["revision"]
        )[0]
        for adapter in source["adapters"]:
            model = merge(model, Adapter.load(Path(adapter)))
        trained, report = sft(
            model,
            json.loads((folder / "pairs.json").read_text()),
            in_place=True,
            process=(number, of),
            **asked["settings"],
        )
        if isinstance(trained, nn.Module):
            kept = {name: gathered(parameter) for name, parameter in trained.named_parameters()}
            if number == 0:
                save_file(kept, folder / "model.safetensors")
        elif number == 0:
            trained.save(folder / "adapter", source["name"])
        if number == 0:
            write_json(folder / "report.json", report)
    except SealError as error:  # every process raises the same error
        if number == 0:
            write_json(folder / "failed.json", {"kind": type(error).__name__, "message": str(error)})
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
