"""Workers on Ray: actors with one model each in memory, on this machine or on every node of a cluster.

An actor loads the base model by name and merges the adapters of the run's folder into it, so that weights never travel;
with several nodes all of them must see that folder. Ray restarts nothing: the death of an actor is an event, and
`seal_lib.runs.workers.Workers` decides what follows. Importing this module imports neither Ray nor torch.
"""

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import DataError, RunError
from seal_lib.runs import manifest
from seal_lib.runs.work import Done, Portable

STORE = 128 << 20  # bytes of Ray's object store on this machine; texts and rows are small
VISIBLE = 60.0  # seconds; a network file system may show a new folder that late
TRIES = 3  # Ray gives its own processes 30 s to start, which a busy machine may not manage at once


class Worker:
    """One process that holds one policy's weights; ``device`` is cpu or cuda."""

    def __init__(self, device: str, node: str = "") -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # must be set before a library that reads it is imported
        self.device, self.node = device, node
        self.source: Any = None
        self.model = self.tokenizer = None

    def greet(self) -> dict[str, object]:
        """Return this worker's code hash, package versions, node, process id and GPU."""
        import torch  # here, so that the first part does not wait for the import

        gpu = torch.cuda.get_device_name(0) if self.device == "cuda" else None
        own = {"library": manifest.library_hash(), "versions": manifest.versions()}
        return {**own, "node": self.node, "pid": os.getpid(), "gpu": gpu}

    def work(self, unit: Callable, policy: Portable, part: Sequence) -> Done:
        """Return the rows, counters and seconds of one part."""
        begun = time.monotonic()
        counts: Counter = Counter()
        rows = unit(self._with_weights(policy), part, counts.update)
        return Done(rows, dict(counts), time.monotonic() - begun)

    def _with_weights(self, policy: Any) -> Any:
        """Return the policy with its weights.

        If the loaded weights only lack further adapters, these are merged in; otherwise the weights are loaded anew.
        """
        source = policy.source
        if self.source != source:
            for folder in source.adapters:
                self._await(Path(folder))
            last, done = self.source, 0
            if last is not None and source.follows(last):
                done = len(last.adapters)
            else:
                self.model = self.source = None  # free the old weights first, so that only one set is in memory
                self.model, self.tokenizer = replace(source, adapters=()).load(self.device)
            self.source = None  # if merging fails, the weights belong to no source
            source.merge(self.model, done)
            self.source = source
        return replace(policy, model=self.model, tokenizer=self.tokenizer)

    def _await(self, folder: Path) -> None:
        deadline = time.monotonic() + VISIBLE
        while not folder.is_dir():
            if time.monotonic() > deadline:
                raise DataError(
                    f"{folder} is not to be seen from node {self.node}; put runs/ on a file system that all nodes "
                    "share, at the same path (SEAL_HOME names its parent)."
                )
            time.sleep(0.5)


class RayWorkers:
    """Starts workers on Ray and gives them work; a worker is known by a number, and only ``event`` waits.

    Events are ``("ready", worker, facts)``, ``("done", worker, Done)``, ``("error", worker, exception)`` (the unit
    failed, the worker lives) and ``("died", worker, reason)``; None if ``limit`` seconds pass without an event. Raises
    RunError if no cluster answers at the address, or it has fewer GPUs (on a CPU: fewer CPUs) than workers.
    """

    def __init__(self, count: int, address: str, device: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self.ray, self.own = ray, not ray.is_initialized()
        if self.own:
            connect(ray, count, address)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self.device = "cpu" if device == "cpu" or (device == "auto" and not gpus) else "cuda"
        kind, have = ("GPUs", gpus) if self.device == "cuda" else ("CPUs", int(resources.get("CPU", 0)))
        if have < count:
            self.close()
            raise RunError(f"workers: {count} were asked for, the cluster has {have} {kind}; lower it or add nodes.")
        self._numbers = itertools.count(1)
        self._actors: dict[int, Any] = {}
        self._calls: dict[object, tuple[str, int]] = {}  # reference -> kind of event, worker

    def start(self) -> int:
        number = next(self._numbers)
        needs = {"num_gpus": 1} if self.device == "cuda" else {"num_cpus": 1}
        actor = self.ray.remote(_Actor).options(max_restarts=0, max_task_retries=0, **needs)
        self._actors[number] = actor.remote(self.device)
        self.greet(number)
        return number

    def greet(self, worker: int) -> None:
        self._calls[self._actors[worker].greet.remote()] = ("ready", worker)

    def submit(self, worker: int, unit: Callable, policy: object, part: Sequence) -> None:
        self._calls[self._actors[worker].work.remote(unit, policy, part)] = ("done", worker)

    def event(self, limit: float | None) -> tuple[str, int, Any] | None:
        over, _ = self.ray.wait(list(self._calls), num_returns=1, timeout=limit)
        if not over:
            return None
        kind, worker = self._calls.pop(over[0])
        try:
            return kind, worker, self.ray.get(over[0])
        except self.ray.exceptions.RayTaskError as error:  # the unit itself raised; pass on its own exception
            return "error", worker, error.cause if isinstance(error.cause, Exception) else error
        except self.ray.exceptions.RayError as error:
            self.ray.kill(self._actors.pop(worker))  # the actor may still live and only be unreachable
            return "died", worker, _reason(error)

    def close(self) -> None:
        for actor in getattr(self, "_actors", {}).values():
            self.ray.kill(actor)
        if self.own:
            self.ray.shutdown()


class _Actor(Worker):
    """A `Worker` that asks Ray for the node it runs on."""

    def __init__(self, device: str) -> None:
        import ray

        super().__init__(device, ray.get_runtime_context().get_node_id()[:8])


def connect(ray: Any, count: int, address: str) -> None:
    """Join the cluster at ``address``, or start one here that ends with this process.

    Raises:
        RunError: no cluster answers there, or Ray does not start.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address not in ("", "local"):
        try:
            ray.init(address, **quiet)
            return
        except ConnectionError as error:
            raise RunError(
                f"ray_address: no Ray cluster answers at {address!r}; start one with `ray start --head`, or write "
                '`ray_address: ""` for this machine alone.'
            ) from error
    quiet["num_cpus"] = max(count, manifest.machine()["cores"])
    with paths.environment(PYTHONPATH=paths.importable()):  # for the workers
        for left in reversed(range(TRIES)):
            try:
                ray.init("local", include_dashboard=False, object_store_memory=STORE, **quiet)
                return
            except Exception as error:  # Ray's own class for this is Exception
                if "timed out during startup" not in str(error):
                    raise
                ray.shutdown()
                if not left:
                    raise RunError(
                        f"Ray did not start in {TRIES} tries ({error}); free the machine, try again."
                    ) from error


def _reason(error: Exception) -> str:
    """Return Ray's reason for a death in one line."""
    text = " ".join(str(error).split())
    detail = text.partition("Worker exit detail: ")[2] or text
    return f"{type(error).__name__}: {detail[:200]}"
