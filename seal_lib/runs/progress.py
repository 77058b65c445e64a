"""Show the progress of a running notebook.

``context()`` says where it runs: ``batch`` (the runner), ``jupyter`` (a person in JupyterLab) or ``terminal``. In batch
a progress bar would only show its first state, so progress is printed as one readable line every few seconds.
"""

import html
import os
import sys
import time
from typing import Any

EVERY, OFTEN = 10.0, 0.2  # seconds between two lines in batch, and between two updates of a bar


def context() -> str:
    """Return ``batch``, ``jupyter`` or ``terminal``."""
    if os.environ.get("SEAL_BATCH"):
        return "batch"
    kernels = sys.modules.get("ipykernel.kernelapp")  # imported is not enough: is this process a kernel?
    return "jupyter" if kernels and kernels.IPKernelApp.initialized() else "terminal"


def clock(seconds: float) -> str:
    """Format a duration as ``3.2 s``, ``4 min 05 s`` or ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """The progress of one phase.

    It shows as log lines in batch, as one bar per cell in JupyterLab, as a bar in a terminal, and not at all in a pipe.
    """

    def __init__(self, phase: str, total: int, done: int = 0) -> None:
        self.phase, self.total, self.done, self.resumed = phase, total, done, done
        self.begun = self.said = time.monotonic()
        self.context = context()
        self.bar: Any = None
        if self.context == "batch":
            note = f", {done} done before" if done else ""
            print(f"  {phase}: {total} units{note}", flush=True)
        elif self.context == "jupyter":
            self.bar = _CellBar.of_this_cell()
            self.bar.show(self)
        elif done < total and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=phase, unit="unit")

    def update(self, count: int) -> None:
        """Add ``count`` finished units."""
        self.done += count
        due = time.monotonic() - self.said >= (EVERY if self.context == "batch" else OFTEN) or self.done >= self.total
        if self.context == "terminal" and self.bar is not None:
            self.bar.update(count)
        elif due and self.context != "terminal":
            self.said = time.monotonic()
            if self.bar is not None:
                self.bar.show(self)
            else:
                print(f"  {self.line()}", flush=True)

    def line(self) -> str:
        """Return ``phase: done/total, elapsed, time left``."""
        elapsed = time.monotonic() - self.begun
        fresh = self.done - self.resumed
        left = self.total - self.done
        rest = f", {clock(elapsed / fresh * left)} left" if fresh and left else ""
        return f"{self.phase}: {self.done}/{self.total}, {clock(elapsed)}{rest}"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class _CellBar:
    """The one progress bar of a cell, shared by its phases.

    It is plain HTML, so that a saved notebook shows it without a kernel.
    """

    _bars: dict[int, "_CellBar"] = {}

    def __init__(self) -> None:
        self.handle: Any = None
        self.phases, self.begun = 0, time.monotonic()

    @classmethod
    def of_this_cell(cls) -> "_CellBar":
        from IPython import get_ipython

        shell = get_ipython()
        return cls._bars.setdefault(shell.execution_count if shell else 0, cls())

    def show(self, progress: Progress) -> None:
        from IPython.display import HTML, display

        share = progress.done / progress.total if progress.total else 1.0
        before = f" · {self.phases} steps before, {clock(time.monotonic() - self.begun)} in all" if self.phases else ""
        bar = HTML(
            "<div style='display:inline-block;width:12em;border:1px solid #888;vertical-align:middle'><div style='"
            f"width:{100 * share:.0f}%;height:.7em;background:#0072b2'></div></div> "
            f"<small>{html.escape(progress.line() + before)}</small>"
        )
        if self.handle is None:
            self.handle = display(bar, display_id=True)
        else:
            self.handle.update(bar)

    def close(self) -> None:
        self.phases += 1
