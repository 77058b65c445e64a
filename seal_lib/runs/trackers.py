"""Experiment trackers beside a run's own record: TensorBoard, MLflow or Weights & Biases, through their own clients.

``SEAL_TRACKER=mlflow make reproduce`` turns one on; it is off by default and no part of a run's identity. A tracker
receives the parameters (secrets redacted), the counts after each chunk, and the numbers that the run ends with; it
never receives texts, rows, code or facts about the machine. Everything stays under ``runs/trackers``, unless the
client's own variables name a server (``MLFLOW_TRACKING_URI``) or allow one (``WANDB_API_KEY``, ``WANDB_MODE``). If a
tracker fails, it is dropped with a warning and the run goes on.
"""

import importlib.util
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from seal_lib import paths
from seal_lib.errors import ParameterError
from seal_lib.runs.values import did_you_mean

NAMED_BY = "SEAL_TRACKER"
PROJECT = "seal"  # the project of all runs, unless the client's own variable names another
_PATIENCE = 60.0  # seconds that a client may take to send what is left


@dataclass(frozen=True)
class About:
    """A run as a tracker sees it: its place, an id that it keeps when it is resumed, and its redacted parameters."""

    place: str
    id: str
    parameters: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.place}/{self.id}"


class TensorBoard:
    """One folder of TensorBoard events per run; ``tensorboard --logdir runs/trackers/tensorboard`` shows them."""

    def __init__(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(paths.runs() / "trackers" / "tensorboard" / about.name))
        lines = [f"| {name} | {value} |" for name, value in about.parameters.items()]
        self.writer.add_text("parameters", "\n".join(["| parameter | value |", "|---|---|", *lines]))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, summary: Mapping[str, float] | None, step: int) -> None:
        self.log({f"summary/{name}": value for name, value in (summary or {}).items()}, step)
        self.writer.close()


class MLflow:
    """A run of the MLflow experiment `PROJECT`, in a database under ``runs/trackers`` or at ``MLFLOW_TRACKING_URI``."""

    def __init__(self, about: About) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default of 7 would delay a run by minutes
        from mlflow import MlflowClient
        from mlflow.entities import Param

        for noisy in ("mlflow", "alembic"):  # they report each step of creating the tables
            logging.getLogger(noisy).setLevel(logging.WARNING)
        file = paths.runs() / "trackers" / "mlflow.db"
        file.parent.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{file}?timeout={_PATIENCE:.0f}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(name)
        place = known.experiment_id if known else self.client.create_experiment(name)
        tag = "seal_id"
        runs = self.client.search_runs([place], f"tags.{tag} = '{about.id}'")
        self.run = (runs[0] if runs else self.client.create_run(place, run_name=about.name, tags={tag: about.id})).info
        self.client.update_run(self.run.run_id, "RUNNING")
        params = [Param(key, str(value)[:500]) for key, value in about.parameters.items()]
        for first in range(0, len(params), 100):  # MLflow accepts at most 100 parameters per call
            self.client.log_batch(self.run.run_id, params=params[first : first + 100])

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.client.log_metric(self.run.run_id, re.sub(r"[^\w./ -]", "_", name), value, step=step)

    def close(self, summary: Mapping[str, float] | None, step: int) -> None:
        self.log({f"summary/{name}": value for name, value in (summary or {}).items()}, step)
        self.client.set_terminated(self.run.run_id, "KILLED" if summary is None else "FINISHED")


class WeightsAndBiases:
    """A run of the project `PROJECT`; without a key in the environment it stays offline until ``wandb sync``."""

    def __init__(self, about: About) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        folder = os.environ.get("WANDB_DIR") or str(paths.runs() / "trackers")
        os.makedirs(folder, exist_ok=True)
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        settings = wandb.Settings(
            mode=mode,
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            finish_timeout=_PATIENCE,
        )
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=about.id,
            name=about.name,
            resume="allow",
            config=dict(about.parameters),
            dir=folder,
            settings=settings,
            reinit="create_new",
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self, summary: Mapping[str, float] | None, step: int) -> None:
        self.run.summary.update(summary or {})
        self.run.finish(int(summary is None))


#: value of ``SEAL_TRACKER``, which is also the name of the client's package and of our extra → its tracker: a client
#: with one run open, to which steps never decrease and which is closed without a summary if the run did not finish
TRACKERS: dict[str, Callable[[About], Any]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases}


def named() -> str:
    """Return the tracker that the environment names, or "" if it names none.

    Raises:
        ParameterError: it is not one of `TRACKERS`, or its client is not installed.
    """
    name = os.environ.get(NAMED_BY, "")
    if name and name not in TRACKERS:
        hint = did_you_mean(name, list(TRACKERS)) or f"choose from {', '.join(TRACKERS)}, or leave it out."
        raise ParameterError(f"{NAMED_BY}={name} is no tracker; {hint}")
    if name and importlib.util.find_spec(name) is None:
        raise ParameterError(
            f'{NAMED_BY}={name} needs the package {name}; install it by `pip install -e ".[{name}]"`, or leave it out.'
        )
    return name


class Tracked:
    """The tracker of a run that began at ``begun`` in its first session, or none; a failure ends it with a warning."""

    def __init__(self, identity: Mapping[str, Any], begun: str) -> None:
        self.step, self._tracker = 0, None
        if name := named():
            place, key = f"{identity['notebook']}/{identity['scale']}", identity["key"]
            about = About(place, f"{key}-{re.sub(r'[^0-9]', '', begun)}", identity["parameters"])
            self._tracker = self._tried(lambda: TRACKERS[name](about))

    def __bool__(self) -> bool:
        return self._tracker is not None

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.step = max(self.step, step)
        if tracker := self._tracker:
            self._tried(lambda: tracker.log(numbers, self.step))

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Close the tracker, with the summary of a finished run; a second call does nothing."""
        if tracker := self._tracker:
            self._tried(lambda: tracker.close(None if summary is None else flat(summary), self.step))
        self._tracker = None

    def _tried(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:
            line = " ".join(str(error).split())[:200]
            print(f"warning: {NAMED_BY} is given up, the run goes on: {type(error).__name__}: {line}", flush=True)
            self._tracker = None
            return None


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """Flatten nested values to their finite numbers: ``{"AA": {"replay": 0.7}}`` → ``{"AA/replay": 0.7}``."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{before}{name}"] = float(value)
    return found
