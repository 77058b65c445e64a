"""Work shared out: a named unit function over parts of a phase, done in this process or by several workers.

    run.hire(workers, ray_address, device)      # after the run's start; 1 and "" mean this process
    rows = run.map("score", candidates, Work(partial(trials, prompts=prompts, inner=inner), policy, run.count))

A :class:`Work` says *what* is done with which policy; :class:`Workers` decides *where*, gives results in order, and
hands the part of a worker that died to another one. Parts are the chunks of :meth:`seal_lib.runs.lifecycle.Run.map`, the same
however many workers there are, so rows are too. Knows workers by number, through an :class:`Executor`; Ray itself is in
:mod:`seal_lib.runs.ray_workers`. Knows nothing of the run folder.
"""

import importlib.util
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from seal_lib.runs import manifest
from seal_lib.errors import ParameterError, RunError
from seal_lib.runs.ray_workers import RayWorkers
from seal_lib.runs.work import Done, Executor, Work

ATTEMPTS = 3  # a part that so many workers died of is an error
AHEAD = 4  # parts per worker begun before an earlier one is kept: what a killed driver loses at most
START = 600.0  # s; until the first worker is ready


class Workers:
    """Who does the work of a run.

    Args:
        count: workers; 1 without an address is this process.
        address: a Ray cluster (``auto``: the one this machine belongs to); "" starts one on this machine.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU for each worker where the cluster has any.
        open_executor: makes the executor, when the first part is due; Ray's by default.

    Without Ray everything is done in this process, with the same results, and ``warning`` says so.
    """

    def __init__(self, count: int = 1, address: str = "", device: str = "auto",
                 open_executor: Callable[[int, str, str], Executor] | None = None) -> None:  # fmt: skip
        if count < 1:
            raise ParameterError(f"workers: {count} is not a number of workers; give at least 1.")
        self.count, self.address, self.device = count, address, device
        self.warning, self.seen, self.deaths = "", {}, 0
        self._open, self._executor = open_executor, None
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
            else:
                self._open = RayWorkers

    def map(self, fn: Callable[[list], list[dict]], parts: Sequence[list], names: Sequence[str],
            lost: Callable[[dict], None] = lambda loss: None) -> Iterator[Done]:  # fmt: skip
        """What ``fn`` gives for each part, in the order of ``parts``; only a :class:`Work` leaves this process.

        Args:
            names: of the parts, for messages.
            lost: told at once of every worker that died: when, who, where, doing what, why.

        Raises:
            RunError: no worker gets ready, or a part killed its worker :data:`ATTEMPTS` times.
            Exception: whatever ``fn`` raised, when its part's turn comes; the parts before it are given first.
        """
        if self.shared and isinstance(fn, Work) and parts:
            yield from self._share(fn, parts, names, lost)
            return
        for part in parts:
            begun = time.monotonic()
            rows = fn(part)
            yield Done(rows, {}, time.monotonic() - begun)

    def _share(self, work: Work, parts, names, lost) -> Iterator[Done]:
        unit, policy = work.portable()
        self._muster()
        waiting, at = list(range(len(parts))), {}  # parts to do; worker -> part
        finished: dict[int, Done | BaseException] = {}
        deaths: Counter = Counter()
        for want in range(len(parts)):
            while True:
                while waiting and waiting[0] < want + AHEAD * self.count and (idle := self._idle()) is not None:
                    at[idle] = waiting.pop(0)
                    self._state[idle] = "busy"
                    self._executor.submit(idle, unit, policy, parts[at[idle]])
                if want in finished:
                    break
                kind, worker, said = self._event()
                part = at.pop(worker, None)  # None: nothing of this map, such as the rest of one that failed
                if kind == "died":
                    lost(self._bury(worker, names[part] if part is not None else "", said))
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
                    waiting = [number for number in waiting if number < part]  # what comes after is not wanted any more
            made = finished.pop(want)
            if isinstance(made, BaseException):
                raise made
            yield made

    def _muster(self) -> None:
        """Everybody present? Workers that died meanwhile are noticed here, before they cost a part an attempt."""
        if self._executor is None:
            self._executor = self._open(self.count, self.address, self.device)
        for worker in [worker for worker, state in self._state.items() if state == "idle"]:
            self._state[worker] = "starting"
            self._executor.greet(worker)
        while len(self._state) < self.count:
            self._state[self._executor.start()] = "starting"
        self._stillborn = 0

    def _idle(self) -> int | None:
        return min((worker for worker, state in self._state.items() if state == "idle"), default=None)

    def _event(self) -> tuple[str, int, object]:
        """The next event; keeps the states, checks who comes in."""
        patience = None if "busy" in self._state.values() else START
        event = self._executor.event(patience)
        if event is None:
            raise RunError(
                f"none of {self.count} workers was ready within {START:.0f} s; look at `ray status`, lower `workers` "
                "to what the cluster has free, or stop what else uses it."
            )
        kind, worker, said = event
        if kind == "died":
            self._stillborn += self._state[worker] == "starting"
            if self._stillborn > ATTEMPTS + self.count:
                raise RunError(f"workers die before they can work (last: {said}); see the logs of Ray.")
            return event
        if kind == "error" and self._state[worker] == "starting":
            raise RunError(f"a worker could not start: {type(said).__name__}: {said}") from said
        if kind == "ready":
            self._admit(worker, said)
        self._state[worker] = "idle"
        return event

    def _admit(self, worker: int, facts: dict) -> None:
        """Rows of other code or packages are never mixed."""
        own = {"library": manifest.library_hash(), "versions": manifest.versions()}
        for name, value in own.items():
            if facts.get(name, value) != value:
                what = "seal_lib" if name == "library" else "packages"
                raise RunError(f"worker {worker} on node {facts['node']} has other {what} than here; install the same.")
        self.seen[worker] = {key: value for key, value in facts.items() if key not in own}

    def _bury(self, worker: int, part: str, why: str) -> dict:
        """Put another in a dead worker's place; the line that is kept of it."""
        self.deaths += 1
        del self._state[worker]
        self._state[self._executor.start()] = "starting"
        doing = f"doing {part}: another will do it" if part else "with nothing to do"
        print(f"  worker {worker} died {doing} ({why})", flush=True)
        return {"when": manifest.now(), "worker": worker, **self.seen.get(worker, {}), "part": part, "why": why}

    def facts(self) -> dict[str, object]:
        """For the manifest: what was asked for, who worked, and the warning where nobody could be hired."""
        about = {"asked": self.count, "address": self.address, "deaths": self.deaths}
        if self.warning:
            about["warning"] = self.warning
        return {**about, "seen": [{"worker": worker, **facts} for worker, facts in self.seen.items()]}

    def close(self) -> None:
        """Send everybody home; memory and GPUs are free afterwards."""
        if self._executor is not None:
            self._executor.close()
        self._executor = None
        self._state.clear()

