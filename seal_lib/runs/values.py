"""The values that a parameter may have, and one sentence for each way in which a value can be wrong.

Type and choices are declared in the notebook's cell (``int``, ``list[str]``, ``Literal["a", "b"]``, ``X | None``). The
range of a number follows from the parameter's name (`RANGES`), and so does the form of a few texts (`FORMS`).
"""

import ast
import difflib
import math
import re
from dataclasses import dataclass

from seal_lib.runs import yaml_files

SCALARS = {"int": int, "float": float, "str": str, "bool": bool}
_MAX_INT = 2**31 - 1


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``; ``above`` excludes ``low`` itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high and not (self.above and number == self.low)

    def __str__(self) -> str:
        low = f"above {self.low}" if self.above else f"from {self.low}"
        return low if self.high in (math.inf, _MAX_INT) else f"{low} to {self.high}"


SEED, COUNT, COUNT_OR_NONE = Range(0, 2**32 - 1), Range(1, _MAX_INT), Range(0, _MAX_INT)
POSITIVE, POSITIVE_OR_ZERO = Range(0, above=True), Range(0)
#: parameter name as a regular expression → its range (for a list: the range of each item); the first match counts
RANGES = {
    r"reward_seeds": COUNT,
    r"seeds?|\w+_seed": SEED,
    r"(\w+_)?(lr|alpha)|max_rate": POSITIVE,
    r"top_p": Range(0, 1, above=True),
    r"\w+_ratio|most_lost_\w+": Range(0, 1),
    r"temperature|\w+_weight_decay|(\w+_)?clip": POSITIVE_OR_ZERO,
    r"threshold": Range(),
    r"endpoint_seconds|budget": POSITIVE,
    r"slots|tokens_per_step|warmup|copies|passage_number|prior_skip|n_own|question_samples|finalists": COUNT_OR_NONE,
    r"(\w+_)?(epochs|batch|rank|tokens|steps|tries)|n_\w+|(max|cpt)_length|passage_words|show_\w+|lengths?": COUNT,
    r"sizes|merge_most|people|completions|guard_limit|counts|budgets|token_limit": COUNT,
    r"samples|rounds|edits|cap|workers|cards|documents|document_limit|questions|anchors|settings|endpoint_calls": COUNT,
}
#: parameter name → the form of its text, as a regular expression and in words
FORMS = {
    "pad_loss": (r"none|eos|full|probe:[1-9]\d*", "none, eos, full or probe:m, as in probe:64"),
    "authors_pads": (r"full|probe:[1-9]\d*", "full or probe:m, as in probe:64"),
    "writer": (r"policy|reference:\w+", "policy or reference:<name>"),
} | dict.fromkeys(
    ("judge_env", "external_env", "rater_env"), (r"|[A-Z][A-Z0-9_]{0,63}", "its NAME, in capitals; never a key itself")
)


def range_of(name: str) -> Range | None:
    """Return the range of a parameter of this name, or None if no range is known."""
    return next((numbers for pattern, numbers in RANGES.items() if re.fullmatch(pattern, name)), None)


def did_you_mean(word: str, known: list[str]) -> str:
    """Return ``did you mean 'x'?`` for the closest known word, or "" if none is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class Type:
    """The declared type of a parameter."""

    kind: str  # int, float, str, bool or list
    item: "Type | None" = None  # of a list
    optional: bool = False  # whether None is allowed
    choices: tuple[str, ...] = ()  # the texts that are allowed; empty for any text

    def __str__(self) -> str:
        text = f"list[{self.item}]" if self.kind == "list" else " or ".join(self.choices) or self.kind
        return f"{text} | None" if self.optional else text

    def read(self, text: str) -> object:
        """Return the value that ``--set key=text`` means for this type; a text that cannot be read stays text."""
        if self.optional and text.lower() in ("null", "none"):
            return None
        if self.kind == "list":
            try:
                return yaml_files.parse(text)
            except ValueError:
                return text
        if self.kind == "bool":
            return {"true": True, "false": False}.get(text.lower(), text)
        if self.kind == "int":
            return int(text) if re.fullmatch(r"[+-]?\d[\d_]{0,30}", text) and not text.endswith("_") else text
        number = _number(text) if self.kind == "float" else None
        return text if number is None else number


def parse_type(node: ast.expr) -> Type | None:
    """Return the type that an annotation declares, or None if it is not a supported one."""
    if isinstance(node, ast.Name) and node.id in SCALARS:
        return Type(node.id)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "list":
        item = parse_type(node.slice)
        return Type("list", item) if item else None
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        words = [word.value for word in inside if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        return Type("str", choices=tuple(words)) if len(words) == len(inside) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        none = isinstance(node.right, ast.Constant) and node.right.value is None
        left = parse_type(node.left) if none else None
        return Type(left.kind, left.item, True, left.choices) if left else None
    return None


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell."""

    name: str
    type: Type
    default: object
    help: str

    def fit(self, value: object) -> tuple[str, object]:
        """Check a value: return ``("", value)``, or ``("name=… is wrong; do ….", None)``.

        Whole numbers become floats where the type is float.
        """
        problem, fitted = _typed(value, self.type)
        problem = problem or self._unfit(fitted)
        if not problem:
            return "", fitted
        return f"{self.name}{'' if problem[0] in '=[' else ' '}{problem}{'' if problem.endswith('?') else '.'}", None

    def _unfit(self, value: object) -> str:
        """Say what is wrong with a value of the right type, or return ""."""
        several = value if isinstance(value, list) else [value]
        if value == [] and self.default != []:
            return f"is an empty list; name at least one{', or null for all' if self.type.optional else ''}"
        twice = next((item for item in several if several.count(item) > 1), None)
        if twice is not None:
            return f"={_shown(value)}: {twice!r} stands twice; keep one"
        for item in several:
            if isinstance(item, str):
                if "\0" in item:
                    return f"={_shown(item)} holds a NUL character; take it out"
                form, words = FORMS.get(self.name, (None, ""))
                if form and not re.fullmatch(form, item):
                    shown = "" if self.name.endswith("_env") else f"={_shown(item)}"  # may be the secret
                    return f"{shown} is not one of its forms; write {words}".lstrip()
                if not item.strip() and self.default != "":
                    return f"={_shown(item)} is an empty text; write one"
            elif isinstance(item, int | float) and not isinstance(item, bool):
                allowed = range_of(self.name)
                if allowed and item not in allowed:
                    null = ", or null for all" if self.type.optional else ""
                    return f"={_shown(item)} is out of range; give a number {allowed}{null}"
        return ""


def _typed(value: object, kind: Type) -> tuple[str, object]:
    if value is None:
        return ("", None) if kind.optional else (f"is null; give a value of type {kind}", None)
    if isinstance(value, dict):
        return "is a nested mapping, and parameters are flat; give each value its own key", None
    if kind.item is not None:  # a list
        if not isinstance(value, list):
            return f"={_shown(value)} is not a list; write [{str(value).strip('[] ')}]", None
        fitted = [_typed(item, kind.item) for item in value]
        wrong = next(((i, text) for i, (text, _) in enumerate(fitted) if text), None)
        if wrong:
            return f"[{wrong[0]}]{'' if wrong[1][0] in '=[' else ' '}{wrong[1]}", None
        return "", [item for _, item in fitted]
    if type(value) is SCALARS[kind.kind]:
        if isinstance(value, float) and not math.isfinite(value):
            return f"={value} is not a finite number; give one", None
        if kind.choices and value not in kind.choices:
            hint = did_you_mean(str(value), list(kind.choices))
            return f"={_shown(value)} is not one of {', '.join(kind.choices)}; {hint or 'choose one of them'}", None
        return "", value
    if kind.kind == "float" and type(value) is int and abs(value) <= _MAX_INT:
        return "", float(value)
    return _mismatch(value, kind), None


def _mismatch(value: object, kind: Type) -> str:
    if kind.kind in ("int", "float") and isinstance(value, str | float | int) and not isinstance(value, bool):
        number = _number(value)
        what = "text" if isinstance(value, str) else type(value).__name__
        if number is None or abs(number) > _MAX_INT or kind.kind == "int" and number % 1:
            write = (
                f"a number of type {kind}" if number is None else "a whole number" if number % 1 else "a smaller one"
            )
        else:
            write = str(int(number)) if kind.kind == "int" else repr(number)
        return f"={_shown(value)} is {what}; write {write}"
    if kind.kind == "bool":
        return f"={_shown(value)} is not a truth value; write true or false"
    if kind.kind == "str" and isinstance(value, int | float):
        return f"={value} is {'a truth value' if isinstance(value, bool) else 'a number'}; put the text in quotes"
    return f"={_shown(value)} has type {type(value).__name__} where {kind} is wanted; change it"


def _number(value: str | float) -> float | None:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _shown(value: object) -> str:
    """Return the value as text for a message, cut to one short line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
