"""Progress of a running notebook, shown in one of three contexts.

``context()`` says which: ``batch`` (the runner), ``jupyter`` (a person in JupyterLab) or ``terminal``. In batch a
widget would show nothing but its first state, so progress is printed as one readable line now and then.
"""

import html
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib.runs import manifest
from seal_lib import paths

EVERY = 10.0  # s between two lines in batch


def context() -> str:
    """``batch``, ``jupyter`` or ``terminal``."""
    if os.environ.get("SEAL_BATCH"):
        return "batch"
    return "jupyter" if "ipykernel" in sys.modules else "terminal"


def setup() -> str:
    """Reload edited library code when a person runs the cells, never in batch; returns the context."""
    where = context()
    if where == "jupyter":
        from IPython import get_ipython

        shell = get_ipython()
        if shell is not None:
            shell.run_line_magic("load_ext", "autoreload")
            shell.run_line_magic("autoreload", "2")
    return where


def clock(seconds: float) -> str:
    """``3.2 s``, ``4 min 05 s`` or ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Units done of one phase: log lines in batch, a widget in JupyterLab, a bar in a terminal, nothing in a pipe."""

    def __init__(self, phase: str, total: int, done: int = 0) -> None:
        self.phase, self.total, self.done, self.resumed = phase, total, done, done
        self.begun = self.said = time.monotonic()
        self.batch = context() == "batch"
        self.bar = None
        if self.batch:
            note = f", {done} done before" if done else ""
            print(f"  {phase}: {total} units{note}", flush=True)
        elif done < total:
            self.bar = _bar(phase, total, done)

    def update(self, count: int) -> None:
        """Add ``count`` finished units."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif self.batch and (time.monotonic() - self.said >= EVERY or self.done >= self.total):
            self.said = time.monotonic()
            print(f"  {self.line()}", flush=True)

    def line(self) -> str:
        """``phase: done/total, elapsed, time left``."""
        elapsed = time.monotonic() - self.begun
        fresh = self.done - self.resumed
        left = self.total - self.done
        rest = f", {clock(elapsed / fresh * left)} left" if fresh and left else ""
        return f"{self.phase}: {self.done}/{self.total}, {clock(elapsed)}{rest}"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _bar(phase: str, total: int, done: int):
    if context() == "jupyter":
        try:
            import ipywidgets  # noqa: F401  (tqdm's widget needs it and fails late without)
            from tqdm.notebook import tqdm
        except ImportError:
            from tqdm import tqdm
    elif sys.stderr.isatty():
        from tqdm import tqdm
    else:
        return None
    return tqdm(total=total, initial=done, desc=phase, unit="unit")
