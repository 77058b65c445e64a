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
    """A device of ``devices.yaml``.

    Attributes:
        match: part of the name that ``nvidia-smi`` gives; "" for a CPU.
        memory: bytes.
        bandwidth: bytes/s.
        flops: FLOP/s of bf16 products (on a CPU: float32).
        operation: seconds to start one eager operation.
        factoring: FLOP/s of an eigendecomposition.
        source: where the numbers come from.
        count: number of such devices in this machine.
    """

    key: str
    name: str
    match: str
    memory: float
    bandwidth: float
    flops: float
    operation: float
    factoring: float
    source: str
    count: int = 1

    @property
    def is_gpu(self) -> bool:
        return self.key != "cpu"


@cache
def devices() -> dict[str, Device]:
    """Return the devices of ``devices.yaml`` by key."""
    table = yaml_files.read(Path(__file__).parent / "devices.yaml")
    return {key: Device(key, **row) for key, row in table.items()}


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


# ---------------------------------------------------------------------------------------------- sizes


def matmul_parameters(shape: budget.Shape) -> int:
    """Return the number of weights that every predicted token passes: all linears and the output layer, tied or not."""
    return shape.linear_parameters + shape.width * shape.vocabulary


def attention_flops(shape: budget.Shape, tokens: float) -> float:
    """Return the forward FLOPs of causal attention within one sequence: two products, each over half of the square."""
    return shape.layers * 2.0 * tokens**2 * shape.heads * shape.head_dim


@dataclass(frozen=True)
class Cost:
    """The cost of some work, in seconds.

    Attributes:
        moving: time to move the bytes.
        computing: time to do the FLOPs.
        starting: time to start the eager operations.
        efficiency: share of the floor that a program reaches.
        floor: the longer of ``moving`` and ``computing``.
        seconds: the estimate: the floor over the efficiency, or the starting time if that is longer.
    """

    moving: float
    computing: float
    starting: float = 0.0
    efficiency: float = 1.0

    @property
    def floor(self) -> float:
        return max(self.moving, self.computing)

    @property
    def bound(self) -> str:
        """The limit that decides the estimate: ``bandwidth``, ``compute`` or ``launch``."""
        if self.starting > self.floor / self.efficiency:
            return "launch"
        return "bandwidth" if self.moving > self.computing else "compute"

    @property
    def seconds(self) -> float:
        return max(self.floor / self.efficiency, self.starting)


# ---------------------------------------------------------------------------------------------- floors


def train_step(
    shape: budget.Shape,
    device: Device,
    lengths: list[float],
    *,
    adapters: int = 1,
    targets: str = "qv",
    rank: int = 32,
    dtype: str = "bfloat16",
    weights_trained: bool = False,
) -> Cost:
    """Return the cost of one optimizer step over sequences of ``lengths`` tokens, for ``adapters`` adapters together.

    Moved are all weights twice (forward, and gradient of the input) and the optimizer's 40 bytes per trained parameter.
    ``weights_trained`` trains every weight of the model instead of adapters.
    """
    tokens, own = float(sum(lengths)), shape.adapter_parameters(targets, rank)
    weights = matmul_parameters(shape)
    trained = weights if weights_trained else adapters * own
    moved = 2 * weights * BYTES[dtype] + OPTIMISER_BYTES * trained
    linear = 6.0 * weights if weights_trained else 4.0 * weights + 6.0 * own
    flops = linear * tokens + 3 * sum(attention_flops(shape, n) for n in lengths)
    optimising = OPTIMISER_BYTES * trained / device.bandwidth  # the optimizer's traffic does not overlap with computing
    share, _ = efficiency("train", device.key)
    starting = device.operation * shape.layers * OPERATIONS[targets]
    return Cost(moved / device.bandwidth, flops / _speed(device, dtype) + optimising, starting, share)


def _speed(device: Device, dtype: str) -> float:
    """Return FLOP/s in a type: float32 takes four times as long as bf16 on a GPU; a CPU's figure is for float32."""
    return device.flops / (4 if device.is_gpu and dtype == "float32" else 1)


def read(
    shape: budget.Shape,
    device: Device,
    lengths: list[float],
    dtype: str = "bfloat16",
    targets: str | None = None,
    rank: int = 0,
) -> Cost:
    """Return the cost of one forward pass over whole sequences, as for prompts and log-probabilities."""
    own = shape.adapter_parameters(targets, rank) if targets else 0
    weights, tokens = matmul_parameters(shape), float(sum(lengths))
    flops = 2.0 * (weights + own) * tokens + sum(attention_flops(shape, n) for n in lengths)
    share, _ = efficiency("answer", device.key)
    starting = device.operation * shape.layers * OPERATIONS["forward"]
    return Cost(weights * BYTES[dtype] / device.bandwidth, flops / _speed(device, dtype), starting, share)


def decode_step(
    shape: budget.Shape,
    device: Device,
    rows: int,
    context: float,
    *,
    dtype: str = "bfloat16",
    adapters: int = 0,
    targets: str = "qv",
    rank: int = 32,
) -> Cost:
    """Return the cost of one more token for each of ``rows`` texts that are ``context`` tokens long.

    Moved are the weights, the keys and values, and the adapters.
    """
    weights, own = matmul_parameters(shape), shape.adapter_parameters(targets, rank) if adapters else 0
    kept = 2 * shape.layers * shape.kv_heads * shape.head_dim * BYTES[dtype]
    moved = weights * BYTES[dtype] + rows * context * kept + adapters * own * BYTES[dtype]
    share, _ = efficiency("answer", device.key)
    starting = device.operation * shape.layers * OPERATIONS["forward"] * (2 if adapters else 1)
    flops = 2.0 * (weights + own) * rows + rows * 4.0 * context * shape.layers * shape.heads * shape.head_dim
    return Cost(moved / device.bandwidth, flops / _speed(device, dtype), starting, share)


def times(cost: Cost, count: float) -> Cost:
    """Return the cost of ``count`` repetitions."""
    return Cost(cost.moving * count, cost.computing * count, cost.starting * count, cost.efficiency)


# ---------------------------------------------------------------------------------------------- whole phases


def training(
    shape: budget.Shape,
    device: Device,
    steps: float,
    length: float,
    *,
    batch: int = 1,
    slots: int = 1,
    targets: str = "qv",
    rank: int = 32,
    dtype: str = "bfloat16",
) -> Cost:
    """Return the cost of ``steps`` adapter-steps, with ``slots`` adapters side by side.

    Each adapter-step takes ``batch`` sequences of ``length`` tokens.
    """
    step = train_step(
        shape, device, [length] * (batch * slots), adapters=slots, targets=targets, rank=rank, dtype=dtype
    )
    return times(step, steps / slots)


def generation(
    shape: budget.Shape,
    device: Device,
    texts: float,
    prompt: float,
    new: float,
    *,
    rows: int = 256,
    dtype: str = "bfloat16",
    adapters: int = 0,
    targets: str = "qv",
    rank: int = 32,
) -> tuple[Cost, Cost]:
    """Return the costs of reading the prompts and of writing the tokens of ``texts`` texts.

    The texts go in batches of ``rows``; each batch is ``new`` decoding steps long.
    """
    rows = max(1, min(rows, round(texts)))
    batches = texts / rows
    reading = times(read(shape, device, [prompt] * rows, dtype, targets if adapters else None, rank), batches)
    step = decode_step(
        shape, device, rows, prompt + new / 2, dtype=dtype, adapters=adapters, targets=targets, rank=rank
    )
    return reading, times(step, batches * new)


def factoring(shape: budget.Shape, device: Device, count: float, targets: str) -> Cost:
    """Return the cost of ``count`` rounds of eigendecompositions: one per layer and group of targets with one input."""
    names = set(budget.target_names(targets))
    sides = [shape.width] * (bool(names & {"q_proj", "k_proj", "v_proj"}) + bool(names & {"gate_proj", "up_proj"}))
    sides += [shape.heads * shape.head_dim] * ("o_proj" in names) + [shape.mlp] * ("down_proj" in names)
    flops = shape.layers * sum(9.0 * side**3 for side in sides)
    return Cost(0.0, count * flops / device.factoring, 0.0, 1.0)
