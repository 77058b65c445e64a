"""Count the work of a notebook by running its own cells with stand-ins (``dry``), without its figures and tables.

A statement counts as work if it passes the run on (``f(run, …)``) or uses a model that the notebook loaded. Statements
that define what such a statement reads are run as well. So a new notebook, domain or arm is planned without any further
code.
"""

import ast
import builtins
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

from seal_lib import LAZY
from seal_lib.errors import ParameterError, SealError
from seal_lib.grading import graders
from seal_lib.loops.settings import OuterLoop
from seal_lib.plan import dry, dry_passages, dry_puzzles, lengths
from seal_lib.plan.work import Phase
from seal_lib.runs import params
from seal_lib.store.merging import Merged
from seal_lib.store.schema import Renewal

DOES = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For, ast.If, ast.With, ast.Try)


def of(notebook: str, parameters: Mapping[str, Any]) -> list[Phase]:
    """Return the work of a notebook with these parameters, up to the point where it reads another run.

    Raises:
        SealError: a cell cannot be run with these parameters, or not with stand-ins.
    """
    values = dict(parameters)
    if values.get("grader") in graders.GRADERS:
        values["grader"] = graders.ALWAYS[0]  # planning asks no judge
    meter = dry.Meter(values)
    names = {**values, "__builtins__": {**vars(builtins), "__import__": _importer(stand_ins(meter))}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal rewards would warn
        for node in statements(notebook):
            try:
                # Only the committed notebook's own statements, which a run executes too, never a model's text, a
                # parameter or a data file (`docs/security.md`).
                exec(compile(ast.Module([node], []), notebook, "exec"), names)
            except dry.OfAnotherRun:
                break
            except SealError:
                raise
            except Exception as error:
                line = ast.unparse(node).partition("\n")[0]
                raise ParameterError(f"{notebook} cannot be planned: `{line}` ended in {error!r}.") from error
    return list(meter.found.values())


def statements(notebook: str) -> list[ast.stmt]:
    """Return the statements that do work, and those that define the names they read, in order."""
    cells = [cell["source"] for cell in params.cells(notebook) if "parameters" not in cell["tags"]]
    code = [node for cell in cells for node in ast.parse(cell).body]
    given = [part for node in code for part in ast.walk(node) if isinstance(part, ast.Assign)]
    runs, loaded = (
        {name for part in given if _calls(part, what) for name in _bound(part)}
        for what in ("seal_lib.start", "models.load")
    )
    kept: list[ast.stmt] = []
    needed: set[str] = set()
    for node in reversed(code):
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if _bound(alias) & needed]
        if (isinstance(node, DOES) and _works(node, runs, loaded)) or _bound(node) & needed:
            kept.insert(0, node)
            needed |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return kept


def _works(node: ast.stmt, runs: set[str], loaded: set[str]) -> bool:
    """Return whether a statement passes a run on or uses a model; ``run.describe(…)`` and the like do neither."""
    calls = [part for part in ast.walk(node) if isinstance(part, ast.Call)]
    handed = {arg.id for call in calls for arg in call.args if isinstance(arg, ast.Name)}
    used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load)}
    return bool(handed & runs or used & loaded)


def _calls(node: ast.stmt, what: str) -> bool:
    return any(isinstance(part, ast.Call) and ast.unparse(part.func) == what for part in ast.walk(node))


def _bound(node: ast.AST) -> set[str]:
    """Return the names that a statement defines, including those in its blocks."""
    parts = list(ast.walk(node))
    names = {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    return names | {part.asname or part.name.partition(".")[0] for part in parts if isinstance(part, ast.alias)}


# ---------------------------------------------------------------------------------------------- stand-ins


def stand_ins(meter: dry.Meter) -> dict[str, Callable]:
    """Return the stand-in for each full name; whatever else a notebook imports is the real thing."""
    loaded = meter, dry.Tokenizer()
    policy = dry.DryPolicy("policy", *loaded)
    alone = policy.bank(slots=1, targets="all-linear")

    def sft(model: object, pairs: list, *, rank: int, epochs: int, batch: int, **_: object) -> tuple:
        outer = OuterLoop(sft_rank=rank, sft_epochs=epochs, sft_batch=batch)
        return policy.finetuned(meter, pairs, outer, name="sft", seed=0)

    def source(name: str, dtype: str = "", revision: str | None = None, adapters: tuple = ()) -> SimpleNamespace:
        return SimpleNamespace(name=name, dtype=dtype, revision=revision, load=lambda device: loaded)

    def puzzles(*given: Any, **named: Any) -> dry_puzzles.DryPuzzles:
        return dry_puzzles.DryPuzzles(*given, **named, lengths=lengths.profile(meter.parameters["tasks"]))

    return {
        "seal_lib.runs.opening.start": lambda *_, **__: meter,
        "seal_lib.models.load": lambda *_: loaded,
        "seal_lib.loops.policy.Source": source,
        "seal_lib.loops.policy.Policy": dry.DryPolicy,
        "seal_lib.knowledge.data.load_passages": partial(dry_passages.load_passages, meter),
        "seal_lib.knowledge.data.batches": partial(dry_passages.batches, meter),
        "seal_lib.knowledge.data.prior_passages": dry_passages.prior_passages,
        "seal_lib.knowledge.data.some_questions": dry_passages.some_questions,
        "seal_lib.knowledge.prompts.load": partial(dry_passages.wording, meter),
        "seal_lib.knowledge.corpus.write": dry_passages.write_texts,
        "seal_lib.knowledge.corpus.export": lambda *_: None,
        "seal_lib.knowledge.notes.with_external": lambda run, passages, *_, **__: passages,
        "seal_lib.grading.judge.judge_of": lambda *_, **__: None,
        "seal_lib.knowledge.strategies.load": dry_passages.load_strategies,
        "seal_lib.knowledge.rubrics.rubric_of": lambda *_: dry_passages.DryRubric(),
        "seal_lib.store.texts.read": partial(dry_passages.read_document, meter),
        "seal_lib.store.texts.with_questions": lambda document, questions: document,
        "seal_lib.store.database.opened": lambda *_: dry_passages.DryStore(),
        "seal_lib.store.asking.ask": lambda *_, **__: [],  # a few questions, not counted
        "seal_lib.store.merging.merge_in_use": lambda *_: Merged(None, "", {}),  # the same
        "seal_lib.store.merging.revert": lambda *_: None,
        "seal_lib.store.updates.update_once": lambda *_, **__: Renewal(1, "open", {}, "", ""),  # lasts its whole budget
        "seal_lib.store.growth.grow": dry_passages.grow,
        "seal_lib.arc.data.load_tasks": dry_puzzles.load_tasks,
        "seal_lib.arc.domain.Puzzles": puzzles,
        "seal_lib.continual.streams.load_streams": _lazy("load_streams", meter),
        "seal_lib.continual.streams.with_prior": _lazy("with_prior"),
        "seal_lib.continual.lab.Lab": _lazy("DryLab"),
        # for notebook 02, which writes the loops in plain code
        "seal_lib.generation.hf.HFGenerator": lambda *_: policy.generator(),
        "seal_lib.training.finetune.train_alone": lambda model, job: alone.run([job])[0],
        "seal_lib.training.finetune.sft": sft,
        "seal_lib.training.adapters.merge": lambda model, *_, **__: model,
    }


def _lazy(name: str, *first: object) -> Callable:
    """Return a stand-in of the forgetting study that is imported when it is called, since it imports torch."""
    return lambda *given, **named: getattr(import_module("seal_lib.plan.dry_study"), name)(*first, *given, **named)


class _Module:
    """A library module as a planned notebook sees it: with stand-ins in place of some of its names."""

    def __init__(self, name: str, stand_ins: Mapping[str, Callable]) -> None:
        self._name, self._stand_ins = name, stand_ins

    def __getattr__(self, name: str) -> Any:
        where = f"{self._name}.{LAZY[name]}" if self._name == "seal_lib" and name in LAZY else self._name
        if f"{where}.{name}" in self._stand_ins:
            return self._stand_ins[f"{where}.{name}"]
        module = import_module(where)
        found = getattr(module, name) if hasattr(module, name) else import_module(f"{where}.{name}")
        return _Module(found.__name__, self._stand_ins) if isinstance(found, ModuleType) else found


def _importer(stand_ins: Mapping[str, Callable]) -> Callable[..., ModuleType | _Module]:
    """Return the function that an ``import`` statement in a notebook's cell calls."""

    def imported(name: str, scope: Any = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
        if name.partition(".")[0] != "seal_lib":
            return builtins.__import__(name, scope, local, wanted, level)
        return _Module(name if wanted else "seal_lib", stand_ins)

    return imported
