"""The ARC self-edit: a JSON text that configures one training. It is read as a configuration or rejected with a reason.

The schema is the released code's, read strictly: the whole text is one JSON object, every key occurs exactly once and
there is no other, switches are true or false, the rate is a number and epochs an integer, both within limits. A text
that does not comply is rejected and earns nothing; its text and reason are kept. The released code instead resamples
without end, crashes, or evaluates an untrained adapter that may be rewarded.

Nothing is executed, and no text raises an exception. The prompts for self-edits are in ``prompts.yaml``.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.examples import BATCH, MAX_STEPS, steps

#: strategy in the JSON → the tokens that are in the loss
STRATEGIES = {"train_using_all_tokens": "all", "train_using_output_tokens": "output"}

#: reason why a self-edit earns nothing → its wording in messages; the reasons are counted
REASONS = {
    "empty": "there is no text",
    "too_long": "the text is longer than a configuration can be",
    "not_json": "the text is not one JSON value",
    "not_object": "a JSON object is expected here",
    "duplicate_key": "a key occurs twice",
    "missing_key": "a key is missing",
    "unknown_key": "a key is not in the schema",
    "wrong_type": "a value has the wrong type",
    "unknown_strategy": "the strategy is not one of the two",
    "out_of_range": "a number is outside its limits",
    "too_many_steps": "it would train for too many steps",
}
MAX_CHARACTERS = 4000
#: reasons of texts that are not JSON at all: the released code has these written again until they are
UNPARSED = ("empty", "too_long", "not_json")

_TRAINING = ("strategy", "learning_rate", "num_train_epochs")


def _all_of(properties: dict[str, dict]) -> dict:
    """Return the JSON Schema of an object with these keys and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_VALUES = {"type": "string", "enum": list(STRATEGIES)}, {"type": "number"}, {"type": "integer"}
#: the schema for engines that can constrain decoding
SCHEMA = _all_of(
    {
        "data_generation": _all_of({switch: {"type": "boolean"} for switch in SWITCHES}),
        "training": _all_of(dict(zip(_TRAINING, _VALUES, strict=True))),
    }
)


@dataclass(frozen=True)
class Config:
    """The configuration that a self-edit asks for; equal configurations are the same training, whatever their text."""

    switches: tuple[str, ...]  # the switches that are on, in the order of SWITCHES
    strategy: str  # one of STRATEGIES
    learning_rate: float
    epochs: int

    @property
    def loss_on(self) -> str:
        """The tokens in the loss: ``all`` or ``output``."""
        return STRATEGIES[self.strategy]

    def text(self) -> str:
        """Return the configuration as compact JSON, which `read` turns into an equal one."""
        training = dict(zip(_TRAINING, (self.strategy, self.learning_rate, self.epochs), strict=True))
        return json.dumps({"data_generation": {s: s in self.switches for s in SWITCHES}, "training": training})


#: the hand-made configuration of the released test-time training
ORACLE = Config(SWITCHES, "train_using_output_tokens", 1e-4, 2)


@dataclass(frozen=True)
class ConfigLimits:
    """A rate in (0, ``max_rate``], 1 to ``max_epochs`` epochs, and up to ``max_steps`` steps of ``batch`` examples."""

    max_rate: float = 1.0
    max_epochs: int = MAX_STEPS
    max_steps: int = MAX_STEPS
    batch: int = BATCH


DEFAULT = ConfigLimits()


@dataclass(frozen=True)
class Reading:
    """The result of reading a text: a configuration, or None with a key of `REASONS` and a sentence."""

    text: str
    config: Config | None
    reason: str = ""
    detail: str = ""


class _Rejected(Exception):
    """Carries (reason, detail) out of the checks below; it never leaves this module."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def read(text: str, limits: ConfigLimits = DEFAULT) -> Reading:
    """Read one self-edit. Never raises: any fault gives a rejection."""
    try:
        return Reading(text, _config(_json(text), limits))
    except _Rejected as error:
        return Reading(text, None, error.reason, f"{REASONS[error.reason]}: {error.detail}.")


def with_data(reading: Reading, examples: int, limits: ConfigLimits = DEFAULT) -> Reading:
    """Return the reading once the size of its training set is known: asking for too many steps is also a rejection."""
    if reading.config is None:
        return reading
    epochs = reading.config.epochs
    asked = steps(epochs, examples, limits.batch)
    if asked <= limits.max_steps:
        return reading
    detail = f"{epochs} epochs of {examples} examples are {asked} steps, allowed are {limits.max_steps}"
    return Reading(reading.text, None, "too_many_steps", f"{REASONS['too_many_steps']}: {detail}.")


def _json(text: str) -> object:
    if not isinstance(text, str):
        raise _Rejected("not_json", f"it is a {type(text).__name__}, not text")
    if not text.strip():
        raise _Rejected("empty", "nothing but white space")
    if len(text) > MAX_CHARACTERS:
        raise _Rejected("too_long", f"{len(text)} characters, at most {MAX_CHARACTERS}")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
    except RecursionError:
        raise _Rejected("not_json", "nested too deeply") from None
    except ValueError as error:  # also a number of more digits than Python converts
        raise _Rejected("not_json", " ".join(str(error).split())[:80]) from None


def _unique(pairs: list[tuple[str, object]]) -> dict:
    if len(dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Rejected("duplicate_key", _short(next(key for key in keys if keys.count(key) > 1)))
    return dict(pairs)


def _constant(name: str) -> float:
    raise _Rejected("not_json", f"{name} is not a JSON number")


def _short(value: object) -> str:
    shown = ascii(value)  # a lone surrogate must not break whoever writes the reason down
    return shown if len(shown) <= 60 else shown[:60] + "…"


def _object(value: object, where: str, keys: Iterable[str]) -> dict:
    if not isinstance(value, dict):
        raise _Rejected("not_object", f"{where} is {_short(value)}")
    for key in keys:
        if key not in value:
            raise _Rejected("missing_key", f"{where} has no {key}")
    for key in value:
        if key not in keys:
            raise _Rejected("unknown_key", f"{where} has {_short(key)}")
    return value


def _config(value: object, limits: ConfigLimits) -> Config:
    whole = _object(value, "the text", ("data_generation", "training"))
    data = _object(whole["data_generation"], "data_generation", SWITCHES)
    training = _object(whole["training"], "training", _TRAINING)
    for switch in SWITCHES:
        if not isinstance(data[switch], bool):
            raise _Rejected("wrong_type", f"{switch} is {_short(data[switch])}, not true or false")
    strategy, rate, epochs = (training[key] for key in _TRAINING)
    if not isinstance(strategy, str):
        raise _Rejected("wrong_type", f"strategy is {_short(strategy)}, not text")
    if strategy not in STRATEGIES:
        raise _Rejected("unknown_strategy", _short(strategy))
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise _Rejected("wrong_type", f"learning_rate is {_short(rate)}, not a number")
    if isinstance(epochs, bool) or not isinstance(epochs, int):
        raise _Rejected("wrong_type", f"num_train_epochs is {_short(epochs)}, not an integer")
    # 1e999 is read as infinity and fails here; an int is compared before it is converted to a float
    if not 0 < rate <= limits.max_rate or not math.isfinite(rate):
        raise _Rejected("out_of_range", f"learning_rate is {_short(rate)}, allowed above 0 up to {limits.max_rate}")
    if not 1 <= epochs <= limits.max_epochs:
        raise _Rejected("out_of_range", f"num_train_epochs is {_short(epochs)}, allowed 1 to {limits.max_epochs}")
    return Config(tuple(s for s in SWITCHES if data[s]), strategy, float(rate), epochs)
