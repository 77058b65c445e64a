"""The cost of a step, a training, a token and an M-step on a device: a floor from bytes and FLOPs, then an estimate.

A floor is the longer of two times: moving every weight through the device's memory, and doing the arithmetic. No
program that does the same work can be faster. The *efficiency* says how near a program comes to it; ``make bench-gpu``
measures it (`efficiency`), otherwise it is `ASSUMED`, and every plan says so. Eager PyTorch also starts thousands of
operations per step, each of which costs the host some microseconds; if that takes longer than the device's own work, it
is the cost. The formulas are those of the study's floors: per parameter and token a frozen linear layer costs 4 FLOPs
in training (forward, and the gradient of its input) and 2 when it only answers.

Knows sizes, not programs: no torch, and nothing of notebooks (`seal_lib.plan.cells`) or memory
(`seal_lib.models.budget`).
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from seal_lib import paths
from seal_lib.errors import ParameterError
from seal_lib.models import budget
from seal_lib.runs import yaml_files

#: shares of the floor for a device that was not measured. The GPU's were measured with this library on one NVIDIA H200
#: on 2026-11-26 (`make bench-gpu`, Qwen2.5-7B's shape in bfloat16); the CPU's fit the minutes of scale seedling in
#: README.md
ASSUMED = {"gpu": {"train": 0.12, "answer": 0.07}, "cpu": {"train": 0.4, "answer": 0.4}}
#: eager operations that a decoder layer starts per optimizer step, by targets (counted for 28 layers, with the authors'
#: targets and with all), and per forward pass, a third of it; the bank starts them once for all its adapters
OPERATIONS = {"qv": 135, "qv-mlp": 190, "all-linear": 225, "forward": 45}
#: bytes that AdamW and gradient clipping move per trained parameter and step, in float32
OPTIMISER_BYTES = 40
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Device:
    """A device of ``devices.yaml``."""

    key: str
    name: str
    match: str  # part of the name that ``nvidia-smi`` gives; "" for a CPU
    memory: float  # bytes
    bandwidth: float  # bytes/s
    flops: float  # FLOP/s of bf16 products (on a CPU: float32)
    operation: float  # seconds to start one eager operation
    factoring: float  # FLOP/s of an eigendecomposition
    source: str  # where the numbers come from
    count: int = 1  # number of such devices in this machine

    @property
    def is_gpu(self) -> bool:
        return self.key != "cpu"


@cache
def devices() -> dict[str, Device]:
    """Return the devices of ``devices.yaml`` by key."""
    return {key: Device(key, **row) for key, row in yaml_files.read(Path(__file__).with_name("devices.yaml")).items()}


def device(key: str) -> Device:
    """Return a device by its key, as ``DEVICE=h200`` names it.

    Raises:
        ParameterError: the key is unknown.
    """
    known = devices()
    if key.lower() not in known:
        raise ParameterError(f"DEVICE={key} is not known; write one of {', '.join(known)}.")
    return known[key.lower()]


def this_device(machine: dict | None = None) -> Device:
    """Return this machine's NVIDIA GPU if ``nvidia-smi`` lists one, otherwise a CPU core with this machine's memory.

    Args:
        machine: as `seal_lib.runs.manifest.machine` gives it (default: this machine).
    """
    if machine is None:
        from seal_lib.runs import manifest

        machine = manifest.machine()
    for line in machine["gpus"]:
        name, _, rest = line.partition(",")
        size = float(rest.split(",")[-1].split()[0]) * 2**20
        fitting = [d for d in devices().values() if d.match and d.match in name]
        if fitting:
            return replace(fitting[0], name=name, memory=size, count=len(machine["gpus"]))
        row = devices()["l4"]  # an unknown card: its own memory, the slowest card's speed
        return replace(row, key="gpu", name=name, memory=size, source=f"unknown card; speed of {row.name}")
    info = Path("/proc/meminfo")
    row = devices()["cpu"]
    if info.is_file():
        line = next(line for line in info.read_text().splitlines() if line.startswith("MemTotal"))
        row = replace(row, memory=float(line.split()[1]) * 1024)
    return row


def efficiency(kind: str, key: str) -> tuple[float, str]:
    """Return the share of the floor that ``train`` or ``answer`` reaches on a device, and where that number comes from.

    It is the newest measurement on such a device under ``figures/gpu``, otherwise `ASSUMED`.
    """
    for record in _measurements(paths.figures() / "gpu"):
        if record["device_key"] == key and record["efficiency"].get(kind):
            cards = len(record["gpus"]) or 1
            return record["efficiency"][kind], f"measured {record['date'][:10]} on {cards} {record['device']}"
    return ASSUMED["cpu" if key == "cpu" else "gpu"][kind], "assumed"


@cache
def _measurements(folder: Path) -> list[dict]:
    """Return the records of the GPU benchmark, newest first."""
    return sorted(map(paths.read_json, folder.rglob("bench_gpu*.json")), key=lambda r: r["date"], reverse=True)


@dataclass(frozen=True)
class Cost:
    """The cost of some work, in seconds."""

    moving: float  # time to move the bytes
    computing: float  # time to do the FLOPs
    starting: float = 0.0  # time to start the eager operations
    efficiency: float = 1.0  # share of the floor that a program reaches

    @property
    def floor(self) -> float:
        """The longer of ``moving`` and ``computing``."""
        return max(self.moving, self.computing)

    @property
    def seconds(self) -> float:
        """The estimate: the floor over the efficiency, or the starting time if that is longer."""
        return max(self.floor / self.efficiency, self.starting)

    def times(self, count: float) -> "Cost":
        """Return the cost of ``count`` repetitions."""
        return Cost(self.moving * count, self.computing * count, self.starting * count, self.efficiency)


@dataclass(frozen=True)
class Costs:
    """The costs of one model on one device, with adapters of one kind."""

    shape: budget.Shape
    device: Device
    targets: str = "qv"
    rank: int = 32
    dtype: str = "bfloat16"

    @property
    def weights(self) -> int:
        """The number of weights that every predicted token passes: all linears and the output layer, tied or not."""
        return self.shape.linear_parameters + self.shape.width * self.shape.vocabulary

    @property
    def adapter(self) -> int:
        """The number of parameters of one adapter."""
        return self.shape.adapter_parameters(self.targets, self.rank)

    def _attention(self, tokens: float) -> float:
        """Return the forward FLOPs of causal attention within one sequence: two products, each over half the square."""
        return self.shape.layers * 2.0 * tokens**2 * self.shape.heads * self.shape.head_dim

    def _cost(self, kind: str, moved: float, flops: float, operations: int, optimising: float = 0.0) -> Cost:
        """Return the cost of a step of ``kind`` (train or answer) that starts ``operations`` per layer.

        Float32 takes four times as long as bf16 on a GPU; a CPU's FLOP/s are for float32.
        """
        speed = self.device.flops / (4 if self.device.is_gpu and self.dtype == "float32" else 1)
        starting = self.device.operation * self.shape.layers * operations
        share, _ = efficiency(kind, self.device.key)
        return Cost(moved / self.device.bandwidth, flops / speed + optimising, starting, share)

    # ------------------------------------------------------------------------------------------ floors

    def train_step(self, lengths: list[float], adapters: int = 1) -> Cost:
        """Return the cost of one optimizer step over sequences of ``lengths`` tokens, for ``adapters`` together.

        Moved are all weights twice (forward, and gradient of the input) and the optimizer's 40 bytes per trained
        parameter; the optimizer's traffic does not overlap with computing.
        """
        optimised = OPTIMISER_BYTES * (adapters * self.adapter)
        moved = 2 * self.weights * BYTES[self.dtype] + optimised
        linear = (4.0 * self.weights + 6.0 * self.adapter) * float(sum(lengths))
        flops = linear + 3 * sum(map(self._attention, lengths))
        return self._cost("train", moved, flops, OPERATIONS[self.targets], optimised / self.device.bandwidth)

    def read(self, lengths: list[float], adapted: bool = True) -> Cost:
        """Return the cost of one forward pass over whole sequences, as for prompts and log-probabilities."""
        passed = self.weights + (self.adapter if adapted else 0)
        flops = 2.0 * passed * float(sum(lengths)) + sum(map(self._attention, lengths))
        return self._cost("answer", self.weights * BYTES[self.dtype], flops, OPERATIONS["forward"])

    def decode_step(self, rows: int, context: float, adapters: int = 0) -> Cost:
        """Return the cost of one more token for each of ``rows`` texts that are ``context`` tokens long.

        Moved are the weights, the keys and values, and the adapters.
        """
        shape, width = self.shape, BYTES[self.dtype]
        weights, own = self.weights, self.adapter if adapters else 0
        kept = 2 * shape.layers * shape.kv_heads * shape.head_dim * width
        moved = weights * width + rows * context * kept + adapters * own * width
        flops = 2.0 * (weights + own) * rows + rows * 4.0 * context * shape.layers * shape.heads * shape.head_dim
        return self._cost("answer", moved, flops, OPERATIONS["forward"] * (2 if adapters else 1))

    # ------------------------------------------------------------------------------------------ whole phases

    def training(self, steps: float, length: float, *, batch: int = 1, slots: int = 1) -> Cost:
        """Return the cost of ``steps`` adapter-steps, with ``slots`` adapters side by side.

        Each adapter-step takes ``batch`` sequences of ``length`` tokens.
        """
        return self.train_step([length] * (batch * slots), slots).times(steps / slots)

    def generation(
        self, texts: float, prompt: float, new: float, *, rows: int = 256, adapters: int = 0
    ) -> tuple[Cost, Cost]:
        """Return the costs of reading the prompts and of writing the tokens of ``texts`` texts.

        The texts go in batches of ``rows``; each batch is ``new`` decoding steps long.
        """
        rows = max(1, min(rows, round(texts)))
        batches = texts / rows
        step = self.decode_step(rows, prompt + new / 2, adapters)
        return self.read([prompt] * rows, bool(adapters)).times(batches), step.times(batches * new)

    def factoring(self, count: float) -> Cost:
        """Return the cost of ``count`` eigendecompositions for each layer and group of targets with one input."""
        shape, names = self.shape, set(budget.target_names(self.targets))
        sides = [shape.width] * (bool(names & {"q_proj", "k_proj", "v_proj"}) + bool(names & {"gate_proj", "up_proj"}))
        sides += [shape.heads * shape.head_dim] * ("o_proj" in names) + [shape.mlp] * ("down_proj" in names)
        flops = shape.layers * sum(9.0 * side**3 for side in sides)
        return Cost(0.0, count * flops / self.device.factoring)
