"""Parameters: what a notebook declares, what the files say, and one sentence for each way in which they can disagree.

The notebook's first code cell is tagged ``parameters`` and holds only lines of the form ``name: type = literal  #
comment`` (and ``from typing import Literal``). That cell is the schema: it is read with ``ast`` and never executed. A
scale is a flat file ``params/<notebook>/<scale>.yaml``. The order of precedence, weakest first, is: the cell's
defaults, the scale's file, ``<scale>-<word>.yaml`` if the environment says ``SET=<word>``, and single values given by
``--set key=value``. The scale ``smoke`` is ``seedling.yaml`` overlaid with ``smoke.yaml``, if that exists.

A file may begin with ``include: [models/llama, recipes/authors-inner]``. Then the values of
``params/_models/llama.yaml`` and so on apply first, later files over earlier ones, and the file's own lines override
them. A shared file serves many notebooks, so keys that a notebook does not declare are ignored; a notebook's own file
may hold only parameters of that notebook.
"""

import ast
import dataclasses
import io
import os
import re
import tokenize
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seal_lib import paths
from seal_lib.errors import DataError, ParameterError, SealError
from seal_lib.runs import yaml_files
from seal_lib.runs.values import Parameter, did_you_mean, parse_type

FORM = "`name: type = literal  # comment`"
INCLUDE = "include"  # the key under which a file lists shared files; no parameter may have this name


@dataclass(frozen=True)
class Layer:
    """Values from one source; a ``shared`` one serves several notebooks, which need not declare all its keys."""

    source: str
    values: dict[str, object]
    shared: bool = False


def names() -> list[str]:
    """Return the names of all notebooks in file order, without JupyterLab's copies (``…-Copy1``) and drafts."""
    return sorted(path.stem for path in paths.notebooks().glob("*.ipynb") if re.fullmatch(r"\d\d_\w+", path.stem))


def scales(notebook: str) -> list[str]:
    """Return the scales at which a notebook runs: those with a file, or with an overlay of the current ``SET``.

    So a notebook that has only ``seedling-full.yaml`` belongs to ``SET=full`` and not to the core set.
    """
    parts = [path.stem.partition("-") for path in (paths.params() / notebook).glob("*.yaml")]
    return sorted({scale for scale, _, word in parts if word in ("", os.environ.get("SET", ""))})


def at(notebook: str, scale: str) -> bool:
    """Return whether a notebook runs at a scale in the current ``SET``; with a seedling scale it does at ``smoke``."""
    return bool(_files(notebook, scale, os.environ.get("SET", "")))


def sets(notebook: str = "[!_]*") -> list[str]:
    """Return the words that ``SET=`` takes, from the overlays ``<scale>-<word>.yaml`` of one notebook or of all."""
    return sorted({path.stem.partition("-")[2] for path in paths.params().glob(f"{notebook}/*-*.yaml")})


def find(name: str) -> str:
    """Return the notebook that ``name`` means: its exact name, or a prefix of only one notebook's name (``11``)."""
    name = name.removesuffix(".ipynb")
    known = names()
    if name in known:
        return name
    fitting = [other for other in known if name and other.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    hint = f"it could be {' or '.join(fitting)}." if fitting else did_you_mean(name, known) or "see `make status`."
    raise ParameterError(f"There is no notebook {name!r} in {paths.short(paths.notebooks())}; {hint}")


def cells(notebook: str) -> list[dict]:
    """Return the code cells of a notebook as ``{"source": str, "tags": list}``."""
    path = paths.notebooks() / f"{notebook}.ipynb"
    if not path.exists():
        find(notebook)
        raise ParameterError(f"{paths.short(path)} does not exist; give the notebook's full name.")
    try:
        code = [cell for cell in paths.read_json(path)["cells"] if cell["cell_type"] == "code"]
        return [{"source": "".join(c["source"]), "tags": c.get("metadata", {}).get("tags", [])} for c in code]
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise ParameterError(f"{path.name} is not a notebook ({error}); restore it with git.") from error


# ---------------------------------------------------------------------------------------------- the tagged cell


def declared(notebook: str) -> list[Parameter]:
    """Return the parameters that a notebook declares, in the order of its tagged cell.

    ParameterError if the cell is missing, not the first, or holds anything but parameters.
    """
    code = cells(notebook)
    tagged = [index for index, cell in enumerate(code) if "parameters" in cell["tags"]]
    if len(tagged) != 1:
        raise ParameterError(f"{notebook}.ipynb has {len(tagged)} cells tagged `parameters`; it needs exactly one.")
    if tagged[0] != 0:
        raise ParameterError(f"{notebook}.ipynb: the cell tagged `parameters` must be the first code cell; move it up.")
    source = code[0]["source"]
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        where = f"{notebook}.ipynb, parameters cell, line {error.lineno}"
        raise ParameterError(f"{where} is not Python; write {FORM}.") from error
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}
    body = [node for node in body if ast.unparse(node) != "from typing import Literal"]
    found = [_declaration(notebook, node, source, comments) for node in body]
    if doubles := sorted(name for name, times in Counter(p.name for p in found).items() if times > 1):
        raise ParameterError(f"{notebook}.ipynb declares {doubles[0]!r} twice; keep one line.")
    return found


def _declaration(notebook: str, node: ast.stmt, source: str, comments: dict[int, str]) -> Parameter:
    line = source.splitlines()[node.lineno - 1]
    where = f"{notebook}.ipynb, parameters cell, line {node.lineno} ({line})"
    if isinstance(node, ast.Assign):
        raise ParameterError(f"{where} has no type; write {FORM}.")
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.value is None:
        raise ParameterError(f"{where} is not a parameter; this cell holds only lines {FORM}.")
    help_text = comments.get(node.lineno) or comments.get(node.end_lineno or node.lineno)
    if not help_text:
        raise ParameterError(f"{where} has no comment; write {FORM}.")
    kind = parse_type(node.annotation)
    if kind is None or node.target.id == INCLUDE:
        what = "the name of the key for shared files" if kind else "an unusable type"
        use = "another name" if kind else 'int, float, str, bool, Literal["a", "b"], list[...] or X | None'
        raise ParameterError(f"{where} has {what}; use {use}.")
    try:
        value = ast.literal_eval(node.value)
    except ValueError as error:
        # papermill adds its cell after this one, so a computed value would be computed from the defaults
        raise ParameterError(f"{where} is computed; write a literal here and compute in the next cell.") from error
    parameter = Parameter(node.target.id, kind, value, help_text)
    problem, fitted = parameter.fit(value)
    if problem:
        raise ParameterError(f"{where}: the default {problem}")
    return dataclasses.replace(parameter, default=fitted)


# ---------------------------------------------------------------------------------------------- the whole set


def resolve(notebook: str, scale: str, overrides: dict[str, object] | None = None) -> dict[str, object]:
    """Return every parameter of a notebook at a scale, checked, in the order of its cell.

    Args:
        overrides: single values; a text is read by the declared type, as for ``--set``.

    Raises:
        ParameterError: one sentence that names file, key and value, and says what to write instead.
    """
    wanted = os.environ.get("SET", "")
    if wanted and wanted not in (known := sets()):
        write = " or ".join(f"SET={word}" for word in known)
        raise ParameterError(f"SET={wanted} is not known; write {write or 'no SET at all'} or leave it out.")
    return _overlay(notebook, [*_layers(notebook, scale, wanted), Layer("--set", overrides or {})])


def _overlay(notebook: str, layers: list[Layer]) -> dict[str, object]:
    known = {parameter.name: parameter for parameter in declared(notebook)}
    values = {name: parameter.default for name, parameter in known.items()}
    for layer in layers:
        for key, value in layer.values.items():
            if key not in known and layer.shared:
                continue
            if key not in known:
                hint = did_you_mean(str(key), list(known)) or f"it has {', '.join(known) or 'none'}."
                raise ParameterError(f"{layer.source}: {key!r} is not a parameter of {notebook}; {hint}")
            if layer.source == "--set" and isinstance(value, str):
                value = known[key].type.read(value)
            problem, values[key] = known[key].fit(value)
            if problem:
                raise ParameterError(f"{layer.source}: {problem}")
    return values


def _layers(notebook: str, scale: str, overlay: str) -> list[Layer]:
    if not (present := _files(notebook, scale, overlay)):
        have, words = ", ".join(scales(notebook)) or "none", " or ".join(f"SET={word}" for word in sets(notebook))
        more = f"; write {words}" if not overlay and words else ""
        where = f"{paths.short(paths.params() / notebook)}/{scale}.yaml"
        raise ParameterError(f"{where} does not exist; {notebook} has scales: {have}{more}.")
    return [layer for path in present for layer in layers_of(path)]


def _files(notebook: str, scale: str, overlay: str) -> list[Path]:
    """Return the existing files of a scale, weakest first; ``smoke`` builds on the smallest seedling set."""
    folder = paths.params() / notebook
    if scale == "smoke":
        base = _files(notebook, "seedling", "") or _files(notebook, "seedling", "full")
        return [*base, *([path] if (path := folder / "smoke.yaml").exists() else [])]
    stems = [scale, f"{scale}-{overlay}"] if overlay else [scale]
    return [path for stem in stems if (path := folder / f"{stem}.yaml").exists()]


def layers_of(path: Path) -> list[Layer]:
    """Return the layers of one file: its shared files in order, then its own lines."""
    own, known, source = _load(path), shared(), paths.short(path)
    wanted = own.pop(INCLUDE, [])
    if not isinstance(wanted, list) or len({name for name in wanted if isinstance(name, str)}) < len(wanted):
        raise ParameterError(
            f"{source}: {INCLUDE} is a list of different shared files; write {INCLUDE}: [models/NAME]."
        )
    found = []
    for name in wanted:
        if name not in known:
            hint = did_you_mean(str(name), list(known)) or f"there are {', '.join(known) or 'none'}."
            raise ParameterError(f"{source}: {INCLUDE}: there is no shared file {name!r}; {hint}")
        found.append(Layer(paths.short(known[name]), _load(known[name]), shared=True))
        if INCLUDE in found[-1].values:
            raise ParameterError(f"{found[-1].source} has the key {INCLUDE!r}; a shared file includes none itself.")
    return [*found, Layer(source, own)]


def shared() -> dict[str, Path]:
    """Return the shared files by the name that ``include`` takes: ``models/x`` is ``params/_models/x.yaml``."""
    found = sorted(paths.params().glob("_*/*.yaml"))
    return {f"{path.parent.name[1:]}/{path.stem}": path for path in found}


def _load(path: Path) -> dict[str, object]:
    """Read one flat YAML file; an empty file gives an empty dict."""
    content = yaml_files.read(path)
    if not isinstance(content, dict | None):
        raise ParameterError(f"{paths.short(path)} holds a {type(content).__name__}; write lines `key: value`.")
    return content or {}


def check_all(check: Callable[[dict], None] = lambda values: None) -> list[str]:
    """Return the problems of every notebook at every scale that it has a file for.

    ``check`` raises SealError for values that are valid one by one but not together.
    """
    problems: list[str] = []
    unused: dict[str, set[str]] = {}
    for path in shared().values():
        try:
            unused[paths.short(path)] = {INCLUDE, *_load(path)}
        except ParameterError as error:
            problems.append(str(error))
    for notebook in names():
        stems = [path.stem.partition("-")[0] for path in (paths.params() / notebook).glob("*.yaml")] or ["seedling"]
        for scale in sorted({*stems, *(["smoke"] if "seedling" in stems else [])}):
            for overlay in ("", *sets(notebook)):
                if sets(notebook) and not _files(notebook, scale, overlay):
                    continue  # the notebook belongs to other sets only
                try:
                    layers = _layers(notebook, scale, overlay)
                    values = _overlay(notebook, layers)
                except ParameterError as error:
                    problems.append(str(error))
                    continue
                try:
                    check(values)
                except SealError as error:
                    problems.append(f"{layers[-1].source}: {error}")
                for layer in layers:
                    unused.get(layer.source, set()).difference_update(values, [INCLUDE])
    problems += [f"{source} is included by no file; remove it." for source, keys in unused.items() if INCLUDE in keys]
    lonely = [(source, key) for source, keys in unused.items() if INCLUDE not in keys for key in sorted(keys)]
    why = "is a parameter of no notebook that includes this file; remove it."
    problems += [f"{source}: {key!r} {why}" for source, key in lonely]
    strange = [p.name for p in paths.params().glob("[!_]*") if p.is_dir() and p.name not in names()]
    problems += [f"params/{name} belongs to no notebook; rename or remove it." for name in strange]
    return list(dict.fromkeys(problems))


#: metadata of a settings field that a notebook need not declare; without a parameter it keeps its default
RARE = {"rare": True}


def pick(settings: type, parameters: dict[str, object], **fixed: object) -> Any:
    """Fill a settings dataclass with the parameters of the same names.

    Every field needs a parameter or, if the notebook deliberately has none, a value in ``fixed``, unless it is `RARE`.
    """
    given = {*parameters, *fixed}
    named = [f.name for f in dataclasses.fields(settings) if f.name in given or not f.metadata.get("rare")]
    if lost := [name for name in named if name not in parameters and name not in fixed]:
        raise ParameterError(
            f"{settings.__name__} has settings that no parameter reaches: {', '.join(lost)}; declare them in the "
            f"notebook's parameters cell or fix them by name in pick(...)."
        )
    if wrong := [name for name in fixed if name not in named or name in parameters]:
        raise ParameterError(f"pick({settings.__name__}, …, {wrong[0]}=…): it is a parameter or no setting; drop it.")
    return settings(**{name: fixed[name] if name in fixed else parameters[name] for name in named})
