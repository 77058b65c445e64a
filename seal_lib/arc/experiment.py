"""The few-shot experiment: which tasks are for practice and which for evaluation, and arms with a given configuration.

The loop itself is `seal_lib.loops.outer.run_loop`; `tables` turns its results into rows of ``results.csv``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from seal_lib.arc.domain import Attempt, Puzzles, check_theirs
from seal_lib.arc.self_edits import Config
from seal_lib.arc.tasks import Task
from seal_lib.errors import DataError
from seal_lib.loops.domain import Candidate
from seal_lib.loops.inner import score_candidates
from seal_lib.loops.outer import Loop, run_loop
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.runs.work import Recorder

#: the outer-loop settings of protocol ``authors``; `TestTimeTraining` checks the inner loop
AUTHORS_SFT = {"sft_schedule": "cosine", "sft_targets": "qv-mlp"}


@dataclass(frozen=True)
class FewShot:
    """The fixed parts of the experiment: tasks, domain and outer loop; ``edits`` self-edits per evaluation task.

    Raises:
        DataError: a task occurs twice or in both lists, or a setting contradicts protocol ``authors``.
    """

    practice: Sequence[Task]
    held_out: Sequence[Task]
    domain: Puzzles
    outer: OuterLoop
    edits: int = 5

    def __post_init__(self):
        for tasks in (self.practice, self.held_out):
            if len({t.id for t in tasks}) < len(tasks):
                raise DataError(f"a task occurs twice among {len(tasks)}; list each id once.")
        double = {t.id for t in self.practice} & {t.id for t in self.held_out}
        if double:
            raise DataError(f"task {sorted(double)[0]!r} is both practised and evaluated; take it out of one list.")
        if self.domain.inner.protocol != "authors":
            return
        prompts = self.domain.prompts
        if not prompts.chat:
            raise DataError(f"prompts: {prompts.name!r} is no chat set, as protocol authors needs; use chat.")
        if self.domain.max_tries == 1:
            raise DataError("resample: false is not the authors' way; use resample: true or protocol: clean.")
        check_theirs(self.outer, AUTHORS_SFT)

    def loop(self, run: Recorder, base: Policy, *, rounds: int, seed: int, control: str = "") -> Loop:
        """Run one whole loop; every round practises on the same tasks."""
        return run_loop(
            run,
            base,
            self.domain,
            self.outer,
            practice=lambda index: self.practice,
            held_out=self.held_out,
            rounds=rounds,
            seed=seed,
            control=control,
            samples=self.edits,
        )

    def fixed(self, run: Recorder, policy: Policy, arm: str, config: Config | None, *, seed: int = 0) -> list[Attempt]:
        """Try the same configuration on every held-out task; with None nothing is trained (answers in context)."""
        trains = config is not None
        candidates = [Candidate(f"{t.id}/{arm}", t, config, arm, seed, trains) for t in self.held_out]
        return score_candidates(run, policy, candidates, self.domain, phase=f"evaluate/{arm}")
