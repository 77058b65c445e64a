"""Work shared out: order, retries, poison and records with made-up workers; then Ray, killed workers, a killed driver.

The second half needs Ray (`make test-ray` has it): two actors on the shipped model give the bytes of one process.
"""

import heapq
import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import REPOSITORY, Suite
from fixtures_seal import DOMAIN, INNER, digest, made, seedling

from seal_lib import paths
from seal_lib.continual import streams, study
from seal_lib.continual.arm import arms_of
from seal_lib.continual.lab import Lab
from seal_lib.errors import DataError, ParameterError, RunError
from seal_lib.generation.contract import Sampling
from seal_lib.loops import inner
from seal_lib.loops.outer import write_self_edits
from seal_lib.loops.policy import Policy, Source
from seal_lib.loops.settings import OuterLoop
from seal_lib.loops.updates import imitate
from seal_lib.records import SelfEdit
from seal_lib.runs import lifecycle, manifest, opening, ray_workers, workers
from seal_lib.runs.ray_workers import Worker
from seal_lib.runs.work import Done, Work
from seal_lib.runs.workers import Workers
from seal_lib.seeds import rng

UNITS = [f"u{i:02d}" for i in range(23)]
NAMELESS = Policy("untrained", None, None, source=Source("seedling-knowledge"))


def square(policy: Policy, part: list[str], count) -> list[dict]:
    count(scored=len(part))
    return [{"value": int(u[1:]) ** 2, "first": part[0], "size": len(part), "policy": policy.name} for u in part]


def refuse(policy: Policy, part: list[str], count, unit: str = "u07") -> list[dict]:
    if unit in part:
        raise DataError(f"{unit} is not fit for work; take it out.")
    return square(policy, part, count)


class Fake:
    """Made-up workers with a clock: each part takes a random time; ``fate(part, worker)`` may say that it kills."""

    def __init__(self, fate=lambda part, worker: "", seed: int = 0, stillborn: int = 0) -> None:
        self.fate, self.rng, self.now, self.log = fate, rng(seed), 0.0, []
        self.queue: list = []
        self.number, self.stillborn, self.closed, self.greeted = 0, stillborn, 0, []

    def later(self, *event) -> None:
        heapq.heappush(self.queue, (self.now + self.rng.random(), len(self.log) + len(self.queue), event))

    def start(self) -> int:
        self.number += 1
        self.greet(self.number)
        return self.number

    def greet(self, worker: int) -> None:
        self.greeted.append(worker)
        dead = worker <= self.stillborn
        self.later("died" if dead else "ready", worker, "no memory" if dead else {"node": f"node{worker}", "pid": 7})

    def submit(self, worker: int, unit, policy, part) -> None:
        self.log.append((worker, part[0]))
        if why := self.fate(part, worker):
            self.later("died", worker, why)
            return
        counts: dict = {}
        try:
            rows = unit(policy, part, counts.update)
        except DataError as error:
            self.later("error", worker, error)
        else:
            self.later("done", worker, Done(rows, counts, 2.0))

    def event(self, limit):
        if not self.queue:
            return None
        self.now, _, event = heapq.heappop(self.queue)
        return event

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def batch(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite with one notebook whose run folder the runner has chosen."""
    return suite.in_batch("seed: int = 3  # seed\nworkers: int = 1  # who works", monkeypatch)


def start(suite: Suite, fake: Fake | None = None, count: int = 3) -> lifecycle.Run:
    run = opening.start("11_demo", suite.values)
    if fake is not None:
        run.workers = Workers(count, open_executor=lambda *_: fake)
    return run


def rows_of(suite: Suite, fake: Fake | None, unit=square, count: int = 3) -> bytes:
    """What lies in rows.jsonl after one phase of a fresh run; the folder is empty again afterwards."""
    run = start(suite, fake, count)
    try:
        run.map("a", UNITS, Work(unit, NAMELESS, run.count), chunk=5)
        run.finish([], {})
    finally:
        run.close()
        data = (suite.folder / "rows.jsonl").read_bytes() if (suite.folder / "rows.jsonl").exists() else b""
        suite.costs = [json.loads(line) for line in (suite.folder / "costs.jsonl").read_text().splitlines()]
        for path in suite.folder.glob("*"):
            if path.is_file() and path.name not in ("parameters.json", "run.json.pending"):
                path.unlink()
    return data


def record(suite: Suite) -> dict:
    return json.loads((suite.folder / "run.json.pending").read_text())


# ------------------------------------------------------------------------------------------- scheduling


def test_work_is_an_ordinary_function_of_a_part(batch: Suite) -> None:
    counted = {}
    assert Work(square, NAMELESS, counted.update)(["u03"]) == square(NAMELESS, ["u03"], lambda **_: None)
    assert counted == {"scored": 1}


@pytest.mark.parametrize("count", [2, 3, 16])
def test_rows_are_the_bytes_of_one_process_whatever_the_order_of_arrival(batch: Suite, count: int) -> None:
    alone = rows_of(batch, None)
    spent = manifest.costs(batch.costs)
    for seed in range(5):
        fake = Fake(seed=seed)
        assert rows_of(batch, fake, count=count) == alone
        assert len({worker for worker, _ in fake.log}) > 1 and fake.closed >= 1
        shared = manifest.costs(batch.costs)
        assert shared["tokens"] == spent["tokens"] == {"generated": 0, "trained": 0, "scored": 23}
        assert shared["seconds"]["a"] == 5 * 2.0 and shared["lost_workers"] == []


def test_a_dead_worker_costs_nothing_but_time_and_is_recorded(batch: Suite, capsys) -> None:
    alone = rows_of(batch, None)
    fake = Fake(lambda part, worker: "SIGKILL" if part[0] == "u05" and worker in (1, 2, 3) and not dead(fake) else "")

    def dead(fake: Fake) -> bool:
        return [first for _, first in fake.log].count("u05") > 1

    assert rows_of(batch, fake) == alone
    (lost,) = record(batch)["lost_workers"]
    assert lost["worker"] in (1, 2, 3) and lost["node"] == f"node{lost['worker']}" and lost["why"] == "SIGKILL"
    assert "phase 'a', units u05 to u09 (5)" == lost["part"] and lost["when"].endswith("Z")
    first, second = [worker for worker, part in fake.log if part == "u05"]
    assert first == lost["worker"] != second
    about = record(batch)["described"]["workers"]
    assert about["asked"] == 3 and about["deaths"] == 1 and len(about["seen"]) >= 3
    assert "died doing phase 'a', units u05" in capsys.readouterr().out


def test_units_that_kill_three_workers_are_an_error_that_names_them(batch: Suite) -> None:
    fake = Fake(lambda part, worker: "out of memory" if "u12" in part else "")
    with pytest.raises(RunError, match=r"phase 'a', units u10 to u14 \(5\): 3 workers died of it \(the last: out of"):
        rows_of(batch, fake)
    assert [first for _, first in fake.log].count("u10") == workers.ATTEMPTS == 3
    assert sum("lost_worker" in line for line in batch.costs) == 3  # kept, though the run failed


def test_what_came_before_a_failure_is_kept_and_the_error_is_the_unit_s_own(batch: Suite) -> None:
    for fake in (None, Fake(seed=1), Fake(seed=2), Fake(seed=3)):
        with pytest.raises(DataError, match="^u07 is not fit for work; take it out.$"):
            rows_of(batch, fake, refuse)
        assert sum(line.get("units", 0) for line in batch.costs) == 5  # the first chunk
        if fake:
            assert fake.number == 3  # an exception is not a death: nobody was replaced


def test_the_next_phase_goes_on_with_the_same_workers_after_a_failure(batch: Suite) -> None:
    fake = Fake(seed=4)
    run = start(batch, fake)
    with pytest.raises(DataError):
        run.map("a", UNITS, Work(refuse, NAMELESS, run.count), chunk=1)
    rows = run.map("b", UNITS, Work(square, NAMELESS, run.count), chunk=4)  # what is left of "a" mixes with nothing
    assert [row["value"] for row in rows] == [i**2 for i in range(23)] and fake.number == 3


def test_workers_that_died_between_phases_are_noticed_before_they_cost_an_attempt(batch: Suite) -> None:
    fake = Fake()
    run = start(batch, fake)
    run.map("a", UNITS, Work(square, NAMELESS, run.count), chunk=5)
    fake.stillborn = fake.number  # the whole cluster went down for a moment
    rows = run.map("b", UNITS, Work(square, NAMELESS, run.count), chunk=5)
    assert [row["value"] for row in rows] == [i**2 for i in range(23)]
    lost = manifest.costs(run._costs.lines)["lost_workers"]
    assert len(lost) == 3 and {loss["part"] for loss in lost} == {""}


def test_workers_that_cannot_start_end_the_run(batch: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="die before they can work .last: no memory."):
        rows_of(batch, Fake(stillborn=10**9))
    monkeypatch.setattr(Fake, "greet", lambda self, worker: None)  # nobody ever answers
    with pytest.raises(RunError, match="none of 3 workers was ready within 600 s; look at `ray status`"):
        rows_of(batch, Fake())


def test_a_worker_with_other_code_is_sent_away(batch: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    def greet(self, worker: int) -> None:
        self.later("ready", worker, {"library": "another", "versions": manifest.versions(), "node": "b"})

    monkeypatch.setattr(Fake, "greet", greet)
    with pytest.raises(RunError, match="on node b has other seal_lib than here"):
        rows_of(batch, Fake())


def test_nothing_is_started_for_what_is_done(batch: Suite) -> None:
    run = start(batch)
    before = run.map("a", UNITS, Work(square, NAMELESS, run.count), chunk=5)
    run.close()
    opened = []
    run = start(batch)
    run.workers = Workers(2, open_executor=lambda *_: opened.append(1) or Fake())
    assert run.map("a", UNITS, Work(square, NAMELESS, run.count), chunk=5) == before and opened == []
    run.map("b", UNITS, lambda part: [{} for _ in part])  # an ordinary function stays here
    assert opened == []


@pytest.mark.parametrize("ahead", [None, 1, 3])
def test_few_parts_are_begun_before_an_earlier_one_is_kept(
    batch: Suite, monkeypatch: pytest.MonkeyPatch, ahead: int | None
) -> None:
    class Slow(Fake):
        def later(self, *event) -> None:
            super().later(*event)
            if event[0] == "done" and event[2].rows[0]["first"] == "u00":  # the first takes for ever
                self.queue = [(t + 1e6 * (e == event), n, e) for t, n, e in self.queue]
                heapq.heapify(self.queue)

    fake = Slow()
    run = start(batch, fake, count=2)
    seen: list[int] = []
    write = run._rows.append
    monkeypatch.setattr(run._rows, "append", lambda lines: (seen.append(len(fake.log)), write(lines)))
    run.map("a", UNITS, Work(square, NAMELESS, run.count, ahead), chunk=1)
    assert seen[0] == (ahead or workers.AHEAD * 2) and len(fake.log) == 23
    assert all(begun <= kept + (ahead or 23) for kept, begun in enumerate(seen))


def test_who_works_is_no_part_of_what_a_run_is(batch: Suite) -> None:
    key = manifest.run_key("11_demo", {"seed": 3, "workers": 1, "ray_address": ""})
    assert key == manifest.run_key("11_demo", {"seed": 3, "workers": 8, "ray_address": "auto"})
    assert key != manifest.run_key("11_demo", {"seed": 4, "workers": 1, "ray_address": ""})


def test_without_ray_one_warning_and_the_same_rows(batch: Suite, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    alone = rows_of(batch, None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    run = start(batch)
    run.hire(8, "auto")
    run.map("a", UNITS, Work(square, NAMELESS, run.count), chunk=5)
    run.finish([], {})
    assert (batch.folder / "rows.jsonl").read_bytes() == alone
    printed = capsys.readouterr().out
    assert printed.count("Ray is not installed: everything is done in this process, with the same results") == 1
    assert record(batch)["described"]["workers"]["warning"] in printed and "EXTRAS=" in printed


def test_what_is_refused(batch: Suite) -> None:
    with pytest.raises(ParameterError, match="workers: 0 is not a number of workers"):
        Workers(0)
    run = start(batch, Fake())
    with pytest.raises(RunError, match="policy 'untrained' does not say where its weights come from"):
        run.map("a", UNITS, Work(square, replace(NAMELESS, source=None), run.count))


# ------------------------------------------------------------------------------------------- weights


def small_policy() -> Policy:
    return Policy("untrained", *seedling(), source=Source("seedling-knowledge"))


OUTER = OuterLoop(samples=2, edit_tokens=40, sft_rank=4, sft_alpha=8, sft_lr=2e-3, sft_epochs=1, sft_batch=2)
SMALL = replace(DOMAIN, inner=replace(INNER, epochs=2, slots=1))


def weights(policy: Policy, part: list[str], count) -> list[dict]:
    return [{"weights": digest(policy.model), "pid": os.getpid()} for _ in part]


def test_a_worker_makes_the_driver_s_weights_whatever_it_held_before(batch: Suite) -> None:
    run, policy = start(batch), small_policy()
    chain = [policy]
    for name in ("one", "two"):
        edits = write_self_edits(run, chain[-1], made(2), DOMAIN, OUTER, phase=name, seed=1)
        chain.append(imitate(run, chain[-1], edits, made(2), DOMAIN, OUTER, name=name, seed=2).policy)
    assert [len(p.source.adapters) for p in chain] == [0, 1, 2]
    assert len({digest(p.model) for p in chain}) == 3
    for order in ((0, 1, 2), (2, 1, 0), (2, 2, 0, 2)):
        worker = Worker("cpu")
        for i in order:
            unit, light = Work(weights, chain[i], run.count).portable()
            assert light.model is None and light.tokenizer is None
            assert worker.work(unit, light, ["x"]).rows[0]["weights"] == digest(chain[i].model), order


def test_a_folder_that_a_node_cannot_see_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seal_lib.runs.ray_workers.VISIBLE", 0.0)
    absent = replace(NAMELESS, source=replace(NAMELESS.source, adapters=("/nowhere/adapter",)))
    with pytest.raises(DataError, match="/nowhere/adapter is not to be seen from node b7; put runs/ on a file system"):
        Worker("cpu", "b7").work(square, absent, ["u01"])


def test_importing_the_cluster_is_light() -> None:
    code = "import sys; from seal_lib.runs import ray_workers, workers\n"
    code += "heavy = {'torch', 'transformers', 'ray', 'pandas'} & set(sys.modules)\n"
    code += "sys.exit(str(heavy) if heavy else 0)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


def test_ray_is_given_a_second_chance_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        def __init__(self, failures: int, why: str = "The current node timed out during startup.") -> None:
            self.failures, self.why, self.calls, self.paths = failures, why, [], []

        def init(self, address: str, **options) -> None:
            self.calls.append((address, options["num_cpus"] >= 2))
            self.paths.append(os.environ["PYTHONPATH"].split(os.pathsep)[0])
            if len(self.calls) <= self.failures:
                raise Exception(self.why)

        def shutdown(self) -> None:
            self.calls.append("down")

    monkeypatch.delenv("PYTHONPATH", raising=False)
    slow = Busy(1)
    ray_workers.connect(slow, 2, "")
    assert slow.calls == [("local", True), "down", ("local", True)] and set(slow.paths) == {str(paths.ROOT)}
    with pytest.raises(RunError, match="Ray did not start in 3 tries .The current node timed out"):
        ray_workers.connect(Busy(9), 2, "local")
    with pytest.raises(Exception, match="^no permission$"):
        ray_workers.connect(Busy(1, "no permission"), 2, "")
    assert "PYTHONPATH" not in os.environ


# ------------------------------------------------------------------------------------------- streams


class Loading(Fake):
    """Workers in this process, each of which loads its own weights."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.own: dict[int, Worker] = {}

    def submit(self, worker: int, unit, policy, part) -> None:
        mine = self.own.setdefault(worker, Worker("cpu"))
        super().submit(worker, lambda _, units, count: self._work(mine, unit, policy, units, count), policy, part)

    def _work(self, worker: Worker, unit, policy, units, count) -> list[dict]:
        done = worker.work(unit, policy, units)
        count(**done.counts)
        return done.rows


WRITING = Sampling(40, temperature=1.0, top_p=0.95)


def edited(run: lifecycle.Run) -> bytes:
    """rows.jsonl after three streams of two edits under four arms, one stream at a time."""
    domain = replace(SMALL, inner=replace(SMALL.inner, epochs=1))
    given = streams.load_streams("world:heldout", 3, 2, seed=3, questions=2)
    given = streams.with_prior(streams.with_edits(given, "gold"), "world:known", 4, 1)
    lab = Lab(small_policy(), domain, anchors=8, anchor_tokens=16)
    arms = arms_of(["frozen", "null_space_replay", "isolation", "sequential_live", "sequential_own"])
    study.run_arms(run, arms, lab, given, writing=WRITING, slots=1)
    assert not list(run.folder.glob("states/**/*.safetensors"))
    return (run.folder / "rows.jsonl").read_bytes()


@pytest.fixture
def edited_alone(batch: Suite) -> bytes:
    run = start(batch)
    data = edited(run)
    run.close()
    (run.folder / "rows.jsonl").unlink()
    return data


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_workers_take_turns_with_the_streams_of_the_study(batch: Suite, edited_alone: bytes, seed: int) -> None:
    died: list[str] = []

    def fate(part, worker: int) -> str:
        if getattr(part[0], "id", "").startswith("2/") and not died:
            died.append(part[0].id)
            return "SIGKILL"
        return ""

    fake = Loading(fate=fate, seed=seed)
    run = start(batch, fake, count=2)
    assert edited(run) == edited_alone
    assert died and run.workers.deaths == 1 and len({worker for worker, _ in fake.log}) == 3


# ------------------------------------------------------------------------------------------- Ray

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: `make test-ray`")


@pytest.fixture(scope="module")
def ray():
    """The address of a cluster on this machine, whose workers can import this file."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(REPOSITORY / "tests"))
        ray_workers.connect(ray, 2, "")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def dying(policy: Policy, part, count, *, unit, mark: str, times: int = 1) -> list[dict]:
    """The unit, whose process is killed the first times that the third part comes."""
    if part[0].id == candidates()[4].id:
        seen = len(list(Path(mark).parent.glob(f"{Path(mark).name}*")))
        if seen < times:
            Path(f"{mark}{seen}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return unit(policy, part, count)


def candidates():
    return [
        SMALL.read(p, SelfEdit(f"{p.id}/{k}", p.id, p.references[writer], writer), "arm", 1)
        for p in made(2)
        for k, writer in enumerate(("gold", "remark", "verbatim"))
    ]


def scored(run: lifecycle.Run, **fate) -> bytes:
    """rows.jsonl after scoring six candidates, two a chunk."""
    unit = partial(inner._rows, domain=SMALL, shelf=None)
    unit = partial(dying, unit=unit, **fate) if fate else unit
    run.map("score", candidates(), Work(unit, small_policy(), run.count), chunk=2)
    return (run.folder / "rows.jsonl").read_bytes()


def alone(suite: Suite) -> bytes:
    run = opening.start("11_demo", suite.values)
    data = scored(run)
    run.close()
    (run.folder / "rows.jsonl").unlink()
    return data


def hired(suite: Suite, address: str) -> lifecycle.Run:
    run = opening.start("11_demo", suite.values)
    run.hire(2, address, "cpu")
    return run


@needs_ray
@pytest.mark.slow
def test_two_actors_give_the_bytes_of_one_process_and_survive_a_kill(batch: Suite, ray: str, tmp_path: Path) -> None:
    expected = alone(batch)
    run = hired(batch, ray)
    assert scored(run) == expected
    assert len({facts["pid"] for facts in run.workers.seen.values()} - {os.getpid()}) == 2
    rows = run.map("where", UNITS[:8], Work(weights, small_policy(), run.count), chunk=1)
    assert {row["weights"] for row in rows} == {digest(seedling()[0])} and os.getpid() not in {r["pid"] for r in rows}
    run.close()
    (run.folder / "rows.jsonl").unlink()

    run = hired(batch, ray)
    assert scored(run, mark=str(tmp_path / "once")) == expected
    run.finish([], {})
    (lost,) = record(batch)["lost_workers"]
    assert lost["part"].startswith("phase 'score', units") and lost["pid"] and "ActorDied" in lost["why"]
    assert record(batch)["described"]["workers"]["deaths"] == 1


@needs_ray
@pytest.mark.slow
def test_the_streams_of_the_study_on_ray(batch: Suite, ray: str, edited_alone: bytes) -> None:
    run = hired(batch, ray)
    assert edited(run) == edited_alone
    assert len(run.workers.seen) == 2


@needs_ray
@pytest.mark.slow
def test_poison_and_the_unit_s_own_errors_on_ray(batch: Suite, ray: str, tmp_path: Path) -> None:
    run = hired(batch, ray)
    with pytest.raises(DataError, match="^u07 is not fit for work; take it out.$"):
        run.map("refused", UNITS, Work(refuse, NAMELESS, run.count), chunk=5)
    with pytest.raises(RunError, match=r"'score', units .*: 3 workers died of it"):
        scored(run, mark=str(tmp_path / "thrice"), times=3)
    assert [line["phase"] for line in run._rows.lines] == ["refused"] * 5 + ["score"] * 4  # what came before is kept
    run.close()
    with pytest.raises(RunError, match=r"workers: 999 were asked for, the cluster has \d+ CPUs"):
        run.workers = Workers(999, ray, "cpu")
        run.map("more", UNITS, Work(square, NAMELESS, run.count))


DRIVER = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    import test_cluster as t
    from seal_lib.runs import lifecycle, opening

    run = opening.start("11_demo", {"seed": 3, "workers": 1})
    run.hire(2, sys.argv[2], "cpu")
    write = run._rows.append

    def die(lines):
        write(lines)
        os.kill(os.getpid(), signal.SIGKILL)

    if sys.argv[3] == "die":
        run._rows.append = die
    t.scored(run)
    run.finish([], {})
"""


@needs_ray
@pytest.mark.slow
def test_a_killed_driver_resumes_to_the_same_bytes(batch: Suite, ray: str, tmp_path: Path) -> None:
    expected = alone(batch)
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    python = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])

    def go(how: str) -> int:
        command = [sys.executable, str(script), str(REPOSITORY / "tests"), ray, how]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": python})
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    assert go("die") == -signal.SIGKILL
    kept = (batch.folder / "rows.jsonl").read_bytes()
    assert expected.startswith(kept) and kept.count(b"\n") == 2
    assert go("live") == 0
    assert (batch.folder / "rows.jsonl").read_bytes() == expected
    assert len(record(batch)["sessions"]) == 3
