"""`sft` over several cards of one machine: one process a card, weights, gradients and moments cut over them (FSDP2).

The caller's model is not sent: the processes load it by name, with the adapters that are merged into it. Started by
torchrun; knows neither policies nor what the texts mean.
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
from seal_lib.paths import PACKAGE, read_json, write_json, write_text
from seal_lib.training.adapters import Adapter, merge
from seal_lib.training.finetune import sft, whole


def sft_over(
    cards: int,
    model: nn.Module,
    source: Mapping[str, Any],
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    **settings: Any,
) -> tuple[Adapter | nn.Module, dict]:
    """What `sft` gives with the same arguments, up to the order of its sums; on CPUs by as many processes.

    Weights of bfloat16 that are all trained are rounded by other draws for another number of cards.

    Args:
        model: whose weights are trained; stays as it is. source: where the processes find the same: name, dtype,
            revision and adapters, as `seal_lib.loops.policy.Source` has them.

    Raises:
        DivergedError, DataError, ParameterError: as `sft`; there are fewer cards.
        RunError: a process ended before its time.
    """
    device = next(model.parameters()).device.type
    if device == "cuda" and cards > torch.cuda.device_count():
        raise ParameterError(
            f"cards: {cards} were asked for, this machine shows {torch.cuda.device_count()}; lower it."
        )
    if device == "cuda":
        torch.cuda.empty_cache()  # the first card is this process's too
    with tempfile.TemporaryDirectory(prefix="seal-cards-") as place:
        folder = Path(place)
        write_json(folder / "asked.json", {"source": dict(source), "device": device, "settings": settings})
        write_text(folder / "pairs.json", json.dumps([[list(part) for part in pair] for pair in pairs]))
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={cards}",
            "-m",
            __name__,
            place,
        ]
        python = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": python}, capture_output=True, text=True)
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
    """One of the processes: train, and leave the result in the folder."""
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
            kept = {name: whole(parameter) for name, parameter in trained.named_parameters()}
            if number == 0:
                save_file(kept, folder / "model.safetensors")
        elif number == 0:
            trained.save(folder / "adapter", source["name"])
        if number == 0:
            write_json(folder / "report.json", report)
    except SealError as error:  # every process comes to the same
        if number == 0:
            write_json(folder / "failed.json", {"kind": type(error).__name__, "message": str(error)})
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
