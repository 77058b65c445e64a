"""Tasks of lm-evaluation-harness (the extra ``lm-eval``), as a guard's measure of a model alone or with an adapter.

The harness's own model class asks the policy's model as it is loaded; an adapter is attached for each batch, so the
weights are never touched. Tasks bring code of their own; `docs/security.md` says what that means.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from statistics import fmean
from typing import TYPE_CHECKING, Any

from seal_lib import paths
from seal_lib.errors import DataError, ParameterError, SealError
from seal_lib.loops.policy import Policy
from seal_lib.models.checks import said

if TYPE_CHECKING:
    from seal_lib.training.adapters import Adapter

_TEXTS_PER_BATCH = 4  # the logits of every token are held for each


@dataclass(frozen=True)
class Tasks:
    """The tasks to run, as parameters. ``guard_tasks``: names that the harness knows, or that a YAML file in
    ``guard_tasks_folder`` defines; ``guard_limit``: documents per task, the first ones.

    Raises:
        ParameterError: the limit is below 1, or there is no such folder.
        DataError: the extra is not installed.
    """

    guard_tasks: tuple[str, ...] | list[str] = ()
    guard_tasks_folder: str | None = None
    guard_limit: int = 100

    def __post_init__(self):
        if self.guard_limit < 1:
            raise ParameterError(f"guard_limit: {self.guard_limit} is not at least 1.")
        folder = self.guard_tasks_folder
        if folder is not None and not paths.given(folder).is_dir():
            raise ParameterError(f"guard_tasks_folder: there is no folder {folder}; name one with YAML files of tasks.")
        if self.guard_tasks and find_spec("lm_eval") is None:
            raise DataError(
                'guard_tasks: tasks need the package lm-eval; install it with `pip install -e ".[lm-eval]"`, or name '
                "none."
            )

    def score(self, policy: Policy, adapter: "Adapter | None") -> float:
        """Return the mean over the tasks of each one's first metric that is a share of which more is better.

        Raises:
            DataError: a task is unknown, cannot be run, or has no such metric.
        """
        import lm_eval

        names = list(self.guard_tasks)
        folder = str(paths.given(self.guard_tasks_folder)) if self.guard_tasks_folder else None
        try:
            own = _known(folder, False)  # alone if it has them all, since the harness has 14 000 files
            asked = lm_eval.simple_evaluate(
                _asked(policy, adapter),
                tasks=names,
                limit=self.guard_limit,
                bootstrap_iters=0,
                log_samples=False,
                task_manager=own if set(names) <= set(own.all_tasks) else _known(folder, True),
            )
        except SealError:
            raise
        except Exception as error:  # of the harness, of a task's own code, of what fetches its data
            raise DataError(
                f"guard_tasks: {', '.join(names)} cannot be run by lm-eval ({said(error)}); mend the names, fetch the "
                "data where there is a network, or name other tasks."
            ) from error
        return fmean(_share(name, asked or {}) for name in names)


def _asked(policy: Policy, adapter: "Adapter | None") -> Any:
    """Return the harness's model; if there is an adapter, each batch is asked with it."""
    adapters = [adapter] if adapter else []
    from lm_eval.models.huggingface import HFLM

    from seal_lib.training.attached import attached

    class Adapted(HFLM):
        def _model_call(self, inps: Any, *given: Any, **named: Any) -> Any:
            with attached(self.model, adapters, [0] * len(inps)):
                return super()._model_call(inps, *given, **named)

        def _model_generate(self, context: Any, *given: Any, **named: Any) -> Any:
            with attached(self.model, adapters, [0] * len(context)):
                return super()._model_generate(context, *given, **named)

    kind = Adapted if adapters else HFLM
    return kind(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=_TEXTS_PER_BATCH)


@lru_cache(maxsize=2)
def _known(folder: str | None, whole: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=whole)


def _share(name: str, asked: Mapping[str, Any]) -> float:
    """Return the first metric of a task, or group, that is a share of which more is better."""
    better = asked.get("higher_is_better", {}).get(name, {})
    for key, value in asked.get("results", {}).get(name, {}).items():
        if better.get(key.partition(",")[0]) and isinstance(value, int | float) and 0 <= value <= 1:
            return float(value)
    raise DataError(f"guard_tasks: {name} counts no share of which more is better; name another task.")
