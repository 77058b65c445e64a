"""Run the parts of a phase in this process or on several workers.

    run.hire(workers, ray_address, device)      # after the run's start; 1 and "" mean this process
    rows = run.map("score", candidates, Work(partial(trials, prompts=prompts, inner=inner), policy, run.count))

A `Work` says *what* is done with which policy. `Workers` decides *where* it is done, returns results in order, and
gives the part of a worker that died to another one. Parts are the chunks of `seal_lib.runs.lifecycle.Run.map`. They do
not depend on the number of workers, so the rows do not either. Knows workers by number; Ray itself is in
`seal_lib.runs.ray_workers`. Knows nothing of the run folder.
"""

import importlib.util
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from seal_lib.errors import ParameterError, RunError
from seal_lib.runs import manifest
from seal_lib.runs.ray_workers import RayWorkers
from seal_lib.runs.work import Done, Work

ATTEMPTS = 3  # a part during which this many workers died is an error
AHEAD = 4  # parts per worker that may start before an earlier one is saved; the most a killed run loses
START = 600.0  # seconds to wait for the first worker


class Workers:
    """The workers of a run.

    Args:
        count: number of workers; 1 without an address means this process.
        address: a Ray cluster (``auto``: the one this machine belongs to); "" starts one on this machine.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU for each worker if the cluster has any.
        open_executor: starts what has the methods of `RayWorkers`, the default, when the first part starts.

    If Ray is not installed, all work runs in this process with the same results, and ``warning`` says so.
    """

    def __init__(
        self,
        count: int = 1,
        address: str = "",
        device: str = "auto",
        open_executor: Callable[[int, str, str], RayWorkers] | None = None,
    ) -> None:
        if count < 1:
            raise ParameterError(f"workers: {count} is not a number of workers; give at least 1.")
        self.count, self.address, self.device = count, address, device
        self.warning, self.deaths = "", 0
        self.seen: dict[int, dict[str, object]] = {}
        self._open, self._failed_starts = open_executor or RayWorkers, 0
        self._executor: RayWorkers | None = None
        self._state: dict[int, str] = {}  # worker -> starting, idle or busy
        self.shared = count > 1 or bool(address)
        if self.shared and open_executor is None:
            if importlib.util.find_spec("ray") is None:
                self.shared, asked = False, f"{count} workers" + (f" at {address!r}" if address else "")
                extras = "vllm,ray" if manifest.machine()["gpus"] else "ray"
                self.warning = (
                    f"{asked} were asked for, but Ray is not installed: everything is done in this process, with the "
                    f"same results; `make env EXTRAS={extras}` installs it."
                )
                print(f"warning: {self.warning}", flush=True)

    def map(
        self,
        fn: Callable[[list], list[dict]],
        parts: Sequence[list],
        names: Sequence[str],
        lost: Callable[[dict], None] = lambda loss: None,
    ) -> Iterator[Done]:
        """Yield the result of ``fn`` for each part, in the order of ``parts``; only a `Work` leaves this process.

        Args:
            names: names of the parts, for messages.
            lost: called with a record of the death as soon as a worker dies.

        Raises:
            RunError: no worker becomes ready, or a part killed its worker `ATTEMPTS` times.
            Exception: what ``fn`` raised, after the results of the parts before it have been yielded.
        """
        if self.shared and isinstance(fn, Work) and parts:
            yield from self._share(fn, parts, names, lost)
            return
        for part in parts:
            begun = time.monotonic()
            rows = fn(part)
            yield Done(rows, {}, time.monotonic() - begun)

    def _share(
        self, work: Work, parts: Sequence[list], names: Sequence[str], lost: Callable[[dict], None]
    ) -> Iterator[Done]:
        unit, policy = work.portable()
        executor = self._fill_up()
        ahead = min(AHEAD * self.count, work.ahead or len(parts))
        waiting = list(range(len(parts)))  # parts that are not started yet
        at: dict[int, int] = {}  # worker -> its part
        finished: dict[int, Done | BaseException] = {}
        deaths: Counter = Counter()
        for want in range(len(parts)):
            while True:
                while waiting and waiting[0] < want + ahead and (idle := self._idle()) is not None:
                    at[idle] = waiting.pop(0)
                    self._state[idle] = "busy"
                    executor.submit(idle, unit, policy, parts[at[idle]])
                if want in finished:
                    break
                kind, worker, said = self._event(executor)
                part = at.pop(worker, None)  # None: left over from an earlier `map` that failed
                if kind == "died":
                    lost(self._replace(executor, worker, names[part] if part is not None else "", said))
                if part is None:
                    continue
                deaths[part] += kind == "died"
                if kind != "died":
                    finished[part] = said
                elif deaths[part] < ATTEMPTS:
                    insort(waiting, part)
                else:
                    finished[part] = RunError(
                        f"{names[part]}: {ATTEMPTS} workers died of it (the last: {said}); if memory ran out choose "
                        "fewer `slots` or larger machines and run again: finished chunks are kept."
                    )
                if isinstance(finished.get(part), BaseException):
                    waiting = [number for number in waiting if number < part]  # later parts are no longer needed
            result = finished.pop(want)
            if isinstance(result, BaseException):
                raise result
            yield result

    def _fill_up(self) -> RayWorkers:
        """Start the missing workers, and ask idle ones to answer again, so that no part goes to a dead one."""
        executor = self._executor = self._executor or self._open(self.count, self.address, self.device)
        for worker in [worker for worker, state in self._state.items() if state == "idle"]:
            self._state[worker] = "starting"
            executor.greet(worker)
        while len(self._state) < self.count:
            self._state[executor.start()] = "starting"
        self._failed_starts = 0
        return executor

    def _idle(self) -> int | None:
        return min((worker for worker, state in self._state.items() if state == "idle"), default=None)

    def _event(self, executor: RayWorkers) -> tuple[str, int, Any]:
        """Return the next event, after updating the workers' states and checking a worker that has become ready."""
        event = executor.event(None if "busy" in self._state.values() else START)
        if event is None:
            raise RunError(
                f"none of {self.count} workers was ready within {START:.0f} s; look at `ray status`, lower `workers` "
                "to what the cluster has free, or stop what else uses it."
            )
        kind, worker, said = event
        if kind == "died":
            self._failed_starts += self._state[worker] == "starting"
            if self._failed_starts > ATTEMPTS + self.count:
                raise RunError(f"workers die before they can work (last: {said}); see the logs of Ray.")
            return event
        if kind == "error" and self._state[worker] == "starting":
            raise RunError(f"a worker could not start: {type(said).__name__}: {said}") from said
        if kind == "ready":
            self._admit(worker, said)
        self._state[worker] = "idle"
        return event

    def _admit(self, worker: int, facts: dict) -> None:
        """Raise RunError if a worker has other code or packages, since its rows must not be mixed with ours."""
        own = {"library": manifest.library_hash(), "versions": manifest.versions()}
        for name, value in own.items():
            if facts.get(name, value) != value:
                what = "seal_lib" if name == "library" else "packages"
                raise RunError(f"worker {worker} on node {facts['node']} has other {what} than here; install the same.")
        self.seen[worker] = {key: value for key, value in facts.items() if key not in own}

    def _replace(self, executor: RayWorkers, worker: int, part: str, why: str) -> dict:
        """Start a worker in place of a dead one, and return the record of the death."""
        self.deaths += 1
        del self._state[worker]
        self._state[executor.start()] = "starting"
        doing = f"doing {part}: another will do it" if part else "with nothing to do"
        print(f"  worker {worker} died {doing} ({why})", flush=True)
        return {"when": manifest.now(), "worker": worker, **self.seen.get(worker, {}), "part": part, "why": why}

    def facts(self) -> dict[str, object]:
        """Return facts for the run's record: workers asked for and seen, deaths, and the warning if Ray is missing."""
        about = {"asked": self.count, "address": self.address, "deaths": self.deaths}
        if self.warning:
            about["warning"] = self.warning
        return {**about, "seen": [{"worker": worker, **facts} for worker, facts in self.seen.items()]}

    def close(self) -> None:
        """Stop the workers and so free their memory and GPUs."""
        if self._executor is not None:
            self._executor.close()
        self._executor = None
        self._state.clear()
