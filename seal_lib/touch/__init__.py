"""Interactive parts of notebooks: widgets for a person in Jupyter, otherwise what they show at first.

The content is plain output beside the controls, so that a saved or executed copy keeps it. Knows the inner loop of
passages; nothing else in the suite needs widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import IPython.display
import ipywidgets

from seal_lib.loops.domain import Candidate
from seal_lib.loops.inner import try_all
from seal_lib.records import Passage, SelfEdit
from seal_lib.report import show
from seal_lib.runs import progress

if TYPE_CHECKING:
    from seal_lib.knowledge.domain import Knowledge
    from seal_lib.loops.policy import Policy


def choose(shown: Callable[..., Any], slider: bool = False, **options: Mapping[str, Any]) -> Any:
    """Show what ``shown`` returns for one choice of each option; in Jupyter a menu or a slider per option changes it.

    Outside Jupyter, the result for the first choices is returned.

    Args:
        options: for each argument of ``shown``, label → value; the first one is shown at first.
    """
    first = {name: next(iter(values.values())) for name, values in options.items()}
    if progress.context() != "jupyter":
        return shown(**first)
    kind = ipywidgets.SelectionSlider if slider else ipywidgets.Dropdown
    wide = ipywidgets.Layout(width="32em" if slider else "auto")  # leaves room for the label beside it
    controls = {name: kind(options=list(values), description=name, layout=wide) for name, values in options.items()}

    def again(_: object = None) -> None:
        picture.update(shown(**{name: options[name][control.value] for name, control in controls.items()}))

    for control in controls.values():
        control.observe(again, "value")
    IPython.display.display(ipywidgets.HBox(list(controls.values())))
    picture = IPython.display.display(shown(**first), display_id=True)
    return None


def click(
    shown: Callable[[Any], Any],
    cells: Mapping[tuple[Any, Any], Any],
    label: Callable[[Any], str],
    down: str,
    across: str,
) -> Any:
    """Show a table of buttons; a click on a cell shows what ``shown`` returns for its value, at first the first cell's.

    Outside Jupyter, the result for the first cell is returned.

    Args:
        cells: (row, column) → value; rows grow upwards, as on an axis; a missing cell stays empty. Without any cell
            nothing is shown.
        label: returns the text on the button of a value.
        down, across: what rows and columns are.
    """
    if not cells:
        return None
    first = shown(next(iter(cells.values())))
    if progress.context() != "jupyter":
        return first
    rows, columns = (sorted({cell[k] for cell in cells}, reverse=not k) for k in (0, 1))
    wide = ipywidgets.Layout(width="auto")
    box: list[Any] = [ipywidgets.Label(f"{down} ↓  {across} →"), *(ipywidgets.Label(str(name)) for name in columns)]
    for row in rows:
        box.append(ipywidgets.Label(str(row)))
        for column in columns:
            if (row, column) not in cells:
                box.append(ipywidgets.Label())
                continue
            value = cells[row, column]
            button = ipywidgets.Button(description=label(value), layout=wide)
            button.on_click(lambda _, value=value: picture.update(shown(value)))
            box.append(button)
    grid = ipywidgets.Layout(grid_template_columns=f"repeat({len(columns) + 1}, max-content)")
    IPython.display.display(ipywidgets.GridBox(box, layout=grid))
    picture = IPython.display.display(first, display_id=True)
    return None


def write_notes(policy: Policy, passage: Passage, domain: Knowledge, text: str = "", seed: int = 0) -> Any:
    """Show a box for notes of your own: an adapter is trained on them, and the questions are asked before and after.

    Outside Jupyter, the answers for the initial text are returned.

    Args:
        text: the initial text of the box; empty for the passage's text.
    """
    text = text or passage.text
    asked = Candidate("before", passage, None, "before", seed, trains=False)
    (before,) = try_all(policy, [asked], domain=domain)

    def after(notes: str) -> show.HTML:
        edit = SelfEdit("yours", passage.id, notes.strip(), "you")  # only trained on, never executed
        (trained,) = try_all(policy, [Candidate("yours", passage, edit, "your notes", seed)], domain=domain)
        return show.side_by_side({"before": [before], "after your notes": [trained]})

    if progress.context() != "jupyter":
        return after(text)
    box = ipywidgets.Textarea(value=text, layout=ipywidgets.Layout(width="auto", height="9em"))
    button = ipywidgets.Button(description="Train on these notes", layout=ipywidgets.Layout(width="14em"))

    def clicked(_: object) -> None:
        button.disabled = True
        try:
            answers.update(after(box.value))
        finally:
            button.disabled = False

    button.on_click(clicked)
    IPython.display.display(ipywidgets.VBox([box, button]))
    answers = IPython.display.display(after(text), display_id=True)
    return None
