"""Typed parameters: what a notebook declares, what a YAML file says, and one sentence for each way they can disagree.

The notebook's first code cell is tagged ``parameters`` and holds nothing but lines of the form
``name: type = literal  # comment``. That cell is the schema: it is read with ``ast`` and never executed. A scale is a
flat file ``params/<notebook>/<scale>.yaml``. Order of precedence, weakest first: the cell's defaults, the scale's file,
``<scale>-<word>.yaml`` when the environment says ``SET=<word>``, and single values given by ``--set key=value``. The
scale ``smoke`` is ``seedling.yaml`` with ``smoke.yaml`` on top, if there is one.

Knows nothing of runs or papermill. Example: ``resolve("11_single_passage", "seedling", {"seed": "3"})``.
"""

import ast
import dataclasses
import difflib
import io
import json
import math
import os
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

import yaml

from seal_lib import paths
from seal_lib.errors import ParameterError

SCALAR_TYPES = {"int": int, "float": float, "str": str, "bool": bool}
FORM = "`name: type = literal  # comment`"


@dataclass(frozen=True)
class Type:
    """``kind`` is int, float, str, bool or list; ``item`` is a list's element type; ``optional`` allows None."""

    kind: str
    item: "Type | None" = None
    optional: bool = False

    def __str__(self) -> str:
        text = f"list[{self.item}]" if self.kind == "list" else self.kind
        return f"{text} | None" if self.optional else text


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell."""

    name: str
    type: Type
    default: object
    help: str


def names() -> list[str]:
    """Every notebook by name, in file order; copies that JupyterLab made (``…-Copy1``) and drafts are none."""
    return sorted(path.stem for path in paths.notebooks().glob("*.ipynb") if re.fullmatch(r"\d\d_\w+", path.stem))


def scales(notebook: str) -> list[str]:
    """The scales a notebook has a file for (overlays such as ``seedling-full`` are not scales)."""
    found = (path.stem for path in (paths.params() / notebook).glob("*.yaml"))
    return sorted(stem for stem in found if "-" not in stem)


def sets(notebook: str = "*") -> list[str]:
    """The words that ``SET=`` takes: the overlays ``<scale>-<word>.yaml`` of one notebook, or of all."""
    return sorted({path.stem.partition("-")[2] for path in paths.params().glob(f"{notebook}/*-*.yaml")})


def find(name: str) -> str:
    """The notebook meant by ``name``: exact, or a prefix that fits one notebook only (``11``)."""
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
    """The code cells of a notebook as ``{"source": str, "tags": list}``."""
    path = paths.notebooks() / f"{notebook}.ipynb"
    if not path.exists():
        find(notebook)
        raise ParameterError(f"{paths.short(path)} does not exist; give the notebook's full name.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ParameterError(f"{path.name} is not a notebook: {error}; restore it with git.") from error
    code = [cell for cell in content.get("cells", []) if cell.get("cell_type") == "code"]
    return [{"source": "".join(c["source"]), "tags": c.get("metadata", {}).get("tags", [])} for c in code]


# ---------------------------------------------------------------------------------------------- the tagged cell


def declared(notebook: str) -> list[Parameter]:
    """The parameters a notebook declares, in the order of its tagged cell."""
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
    comments = _comments(source)
    found = [_declaration(notebook, node, source, comments) for node in body]
    doubles = {p.name for p in found if [q.name for q in found].count(p.name) > 1}
    if doubles:
        raise ParameterError(f"{notebook}.ipynb declares {sorted(doubles)[0]!r} twice; keep one line.")
    return found


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def _declaration(notebook: str, node: ast.stmt, source: str, comments: dict[int, str]) -> Parameter:
    line = (ast.get_source_segment(source, node) or "").splitlines()[0]
    where = f"{notebook}.ipynb, parameters cell, line {node.lineno} ({line})"
    if isinstance(node, ast.Assign):
        raise ParameterError(f"{where} has no type; write {FORM}.")
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.value is None:
        raise ParameterError(f"{where} is not a parameter; this cell holds only lines {FORM}.")
    help_text = comments.get(node.lineno) or comments.get(node.end_lineno or node.lineno)
    if not help_text:
        raise ParameterError(f"{where} has no comment; write {FORM}.")
    kind = _parse_type(node.annotation)
    if kind is None:
        raise ParameterError(f"{where} has an unusable type; use int, float, str, bool, list[...] or X | None.")
    try:
        value = ast.literal_eval(node.value)
    except ValueError as error:
        # papermill adds its cell after this one, so a computed value would be made from the defaults
        raise ParameterError(f"{where} is computed; write a literal here and compute in the next cell.") from error
    problem, value = fit(value, kind)
    if problem:
        raise ParameterError(f"{where}: the default{_joint(problem)}{problem}.")
    return Parameter(node.target.id, kind, value, help_text)


def _parse_type(node: ast.expr) -> Type | None:
    if isinstance(node, ast.Name) and node.id in SCALAR_TYPES:
        return Type(node.id)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "list":
        item = _parse_type(node.slice)
        return Type("list", item) if item else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        none = isinstance(node.right, ast.Constant) and node.right.value is None
        left = _parse_type(node.left) if none else None
        return Type(left.kind, left.item, optional=True) if left else None
    return None


def fit(value: object, kind: Type) -> tuple[str, object]:
    """Check a value against a type: ``("", value)`` with whole numbers made floats, or ``("is ...; do ...", None)``."""
    if value is None:
        return ("", None) if kind.optional else (f"is null; give a value of type {kind}", None)
    if isinstance(value, dict):
        return "is a nested mapping, and parameters are flat; give each value its own key", None
    if kind.kind == "list":
        if not isinstance(value, list):
            return f"={value!r} is not a list; write [{value}]", None
        fitted = [fit(item, kind.item) for item in value]
        problem = next((f"[{i}]{_joint(text)}{text}" for i, (text, _) in enumerate(fitted) if text), "")
        return problem, None if problem else [item for _, item in fitted]
    if type(value) is SCALAR_TYPES[kind.kind]:
        if isinstance(value, float) and not math.isfinite(value):
            return f"={value} is not a finite number; give one", None
        return "", value
    if kind.kind == "float" and type(value) is int:
        return "", float(value)
    return _mismatch(value, kind), None


def _joint(problem: str) -> str:
    return "" if problem[0] in "=[" else " "


def _mismatch(value: object, kind: Type) -> str:
    if isinstance(value, bool) and kind.kind == "str":
        return f"={value} is a truth value (YAML reads yes, no, on and off so); put the text in quotes"
    if isinstance(value, str) and kind.kind in ("int", "float"):
        number = _number(value)
        if number is None:
            return f"={value!r} is text; write a number of type {kind}"
        if kind.kind == "float":
            return f"={value!r} is text; write {_yaml_float(value, number)}"
        return f"={value!r} is text; write {int(number) if number == int(number) else 'a whole number'}"
    if isinstance(value, float) and kind.kind == "int":
        return f"={value!r} is a float; write {'a whole number' if value % 1 else int(value)}"
    if kind.kind == "bool":
        return f"={value!r} is not a truth value; write true or false"
    if kind.kind == "str" and hasattr(value, "isoformat"):
        return f"={value} is a date; put the text in quotes"
    if kind.kind == "str" and isinstance(value, int | float):
        return f'={value} is a number; write "{value}"'
    return f"={value!r} has type {type(value).__name__} where {kind} is wanted; change it"


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _yaml_float(text: str, number: float) -> str:
    """The same number as YAML 1.1 reads it: a dot and a signed exponent."""
    match = re.fullmatch(r"\s*([+-]?\d+)(\.\d*)?[eE]([+-]?)(\d+)\s*", text)
    return f"{match[1]}{match[2] or '.0'}e{match[3] or '+'}{match[4]}" if match else repr(number)


def _from_text(text: str, kind: Type) -> object:
    """What ``--set key=text`` means for a parameter of this type; what cannot be read stays text."""
    if kind.optional and text.lower() in ("null", "none"):
        return None
    if kind.kind == "str":
        return text
    if kind.kind == "list":
        try:
            return yaml.load(text, _Loader)
        except yaml.YAMLError:
            return text
    if kind.kind == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind.kind == "int":
        return int(text) if re.fullmatch(r"[+-]?\d[\d_]*", text) else text
    number = _number(text)
    return text if number is None else number


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its silent surprises: no duplicate keys, no octal 012, no base-60 1:30."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [str(loader.construct_object(key, deep=True)) for key, _ in node.value]
    double = next((key for key in keys if keys.count(key) > 1), None)
    if double is not None:
        problem = f"the key {double!r} stands twice; keep one"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return dict(zip(keys, [loader.construct_object(value, deep=True) for _, value in node.value], strict=True))


def _plain_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    if ":" in node.value or re.match(r"[+-]?0\d", node.value):
        problem = f"{node.value} would be read as octal or base 60; write a decimal number or put it in quotes"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _plain_int)


def load(path: Path) -> dict[str, object]:
    """Read one flat YAML file; an empty file is an empty dict."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ParameterError(f"{paths.short(path)}{line}: {getattr(error, 'problem', None) or error}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ParameterError(f"{paths.short(path)} holds a {type(content).__name__}; write lines `key: value`.")
    return content


# ---------------------------------------------------------------------------------------------- the whole set


def did_you_mean(word: str, known: list[str]) -> str:
    """``did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def resolve(notebook: str, scale: str, overrides: dict[str, object] | None = None) -> dict[str, object]:
    """Every parameter of a notebook at a scale, checked, in the order of its cell.

    Args:
        overrides: single values; text is read by the declared type, as ``--set`` gives it.

    Raises:
        ParameterError: one sentence naming file, key and value, and what to write instead.
    """
    wanted = os.environ.get("SET", "")
    if wanted and wanted not in (known := sets()):
        write = " or ".join(f"SET={word}" for word in known)
        raise ParameterError(f"SET={wanted} is not known; write {write or 'no SET at all'} or leave it out.")
    files = _files(notebook, scale, wanted)
    return _overlay(notebook, [*files, ("--set", overrides or {})])


def smoke(notebook: str) -> dict[str, object]:
    """The set of seconds that tests run: ``seedling.yaml`` with ``smoke.yaml`` on top if it exists."""
    return resolve(notebook, "smoke")


def _overlay(notebook: str, layers: list[tuple[str, dict]]) -> dict[str, object]:
    known = {parameter.name: parameter for parameter in declared(notebook)}
    values = {name: parameter.default for name, parameter in known.items()}
    for source, content in layers:
        for key, value in content.items():
            if key not in known:
                hint = did_you_mean(key, list(known)) or f"it has {', '.join(known) or 'none'}."
                raise ParameterError(f"{source}: {key!r} is not a parameter of {notebook}; {hint}")
            if source == "--set" and isinstance(value, str):
                value = _from_text(value, known[key].type)
            problem, fitted = fit(value, known[key].type)
            if problem:
                raise ParameterError(f"{source}: {key}{_joint(problem)}{problem}.")
            values[key] = fitted
    return values


def _files(notebook: str, scale: str, overlay: str) -> list[tuple[str, dict]]:
    folder = paths.params() / notebook
    stems = ["seedling", "smoke"] if scale == "smoke" else [scale, f"{scale}-{overlay}"] if overlay else [scale]
    if not (folder / f"{stems[0]}.yaml").exists():
        have = ", ".join(scales(notebook)) or "none"
        raise ParameterError(f"{paths.short(folder)}/{stems[0]}.yaml does not exist; {notebook} has scales: {have}.")
    present = [folder / f"{stem}.yaml" for stem in stems if (folder / f"{stem}.yaml").exists()]
    return [(paths.short(path), load(path)) for path in present]


def check_all() -> list[str]:
    """Problems of every notebook at every scale it has a file for; an empty list means all is well."""
    problems: list[str] = []
    known = names()
    for notebook in known:
        have = scales(notebook) or ["seedling"]
        for scale in dict.fromkeys([*have, "smoke"] if "seedling" in have else have):
            for overlay in ("", *sets(notebook)):
                try:
                    _overlay(notebook, _files(notebook, scale, overlay))
                except ParameterError as error:
                    problems.append(str(error))
    folders = [path.name for path in paths.params().glob("*") if path.is_dir()]
    problems += [f"params/{name} belongs to no notebook; rename or remove it." for name in folders if name not in known]
    return list(dict.fromkeys(problems))


def pick(settings: type, parameters: dict[str, object], **fixed: object):
    """A settings dataclass filled with the parameters of the same names; what is no parameter must be named here.

    Args:
        fixed: fields that the notebook deliberately has no parameter for.

    Raises:
        ParameterError: a field that no parameter reaches, or a fixed one that is not needed.
    """
    named = [field.name for field in dataclasses.fields(settings)]
    if lost := [name for name in named if name not in parameters and name not in fixed]:
        raise ParameterError(
            f"{settings.__name__} has settings that no parameter reaches: {', '.join(lost)}; declare them in the "
            f"notebook's parameters cell or fix them by name in pick(...)."
        )
    if wrong := [name for name in fixed if name not in named or name in parameters]:
        raise ParameterError(f"pick({settings.__name__}, …, {wrong[0]}=…): it is a parameter or no setting; drop it.")
    return settings(**{name: fixed[name] if name in fixed else parameters[name] for name in named})
