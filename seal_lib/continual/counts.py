"""What the notebooks of the forgetting study will do, counted from their parameters (see :mod:`seal_lib.plan.counts`).

The update rules' classes need torch, so what decides their cost is repeated here as data, :data:`RULES`; a test holds
it against the classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from seal_lib import paths
from seal_lib.errors import ParameterError
from seal_lib.plan import counts, lengths
from seal_lib.plan.counts import Work, asking, writing

#: see :class:`seal_lib.continual.lab.Lab` and :class:`seal_lib.continual.rules.GatedMerge`
ANCHOR_TOKENS, GATE_TEXTS, GATE_READINGS = 48, 24, 7


@dataclass(frozen=True)
class Rule:
    """What an update rule costs beside plain training.

    ``grid``: of the settings notebook 16 tries, what changes the cost (``m`` sequences more a step, ``epochs``,
    ``texts`` written before an edit); the first is the default. ``more``: what the m are (``past``, ``own``,
    ``anchors``, ``both``). ``factors``: an eigendecomposition per group of layers and edit, or ``once``.
    """

    grid: tuple[dict, ...] = ({},) * 4
    trains: bool = True
    retrains: bool = False
    more: str = ""
    factors: str = ""
    reads: float = 0.0  # texts of its own read per edit


_M24 = ({"m": 2}, {"m": 4}, {"m": 2}, {"m": 4})
RULES: dict[str, Rule] = {
    "frozen": Rule(({},), trains=False),
    "passage_in_context": Rule(({},), trains=False),
    "rag": Rule(trains=False),
    "sequential_authors": Rule(),
    "sequential": Rule(),
    "low_lr": Rule(),
    "few_epochs": Rule(({"epochs": 4}, {"epochs": 2}, {"epochs": 3}, {"epochs": 6})),
    "delta_scaling": Rule(),
    "freeze_lower": Rule(),
    "replay": Rule(_M24, more="past"),
    "generative_replay": Rule(
        ({"m": 2, "texts": 96}, {"m": 4, "texts": 96}, {"m": 4, "texts": 96}, {"m": 4, "texts": 192}), more="own"
    ),
    "kl": Rule(({"m": 4},) * 4, more="anchors"),
    "kl_replay": Rule(({"m": 3},) * 4, more="both"),
    "l2": Rule(),
    "ewc": Rule(reads=30.0),  # gradients of the edit's documents, dense: about three readings each
    "o_lora": Rule(),
    "null_space_calibration": Rule(factors="once"),
    "null_space": Rule(factors="edit"),
    "null_space_replay": Rule(({"m": 2}, {"m": 2}, {"m": 4}, {"m": 4}), more="past", factors="once"),
    "inflora": Rule(factors="edit"),
    "merge_sum": Rule(),
    "merge_mean": Rule(),
    "ties": Rule(),
    "gated_merge": Rule(({"texts": GATE_TEXTS},) * 4, reads=float(GATE_TEXTS * GATE_READINGS)),
    "isolation": Rule(),
    "isolation_oracle": Rule(({},)),
    "joint": Rule(({}, {}, {}, {"epochs": 5}), retrains=True),
}


def plain(name: str) -> str:
    """The rule of an arm: without ``_own`` and ``_live``."""
    return name.removesuffix("_own").removesuffix("_live")


def run_arm(
    p: Mapping, name: str, streams: int, *, full_rows: Sequence[int] | None = None, knobs: Mapping | None = None,
    phase: str = "",
) -> list[Work]:  # fmt: skip
    """One arm over ``streams`` streams (:func:`seal_lib.continual.study.run_arm`)."""
    if plain(name) not in RULES:
        raise ParameterError(f"arms: {name!r} is not one of {', '.join(RULES)}.")
    rule, text, phase = RULES[plain(name)], lengths.profile(p["passages"]), phase or name
    knobs = dict(rule.grid[0]) | dict(knobs or {})
    length, slots = p["length"], p["slots"]
    chunk = max(n for n in range(1, min(slots, streams) + 1) if streams % n == 0)
    full = [k for k in range(length + 1) if full_rows is None or k in full_rows]
    made = [k for k in range(1, length + 1) if not rule.retrains or k in full]
    per_passage = min(p["questions"] or text.questions, text.questions)
    work: list[Work] = []
    if rule.trains:
        work += _training(p, name, rule, text, streams, made, knobs, chunk, phase)
    if name.endswith("_live"):
        work.append(writing(f"{phase}/write", p, streams * length, 1, text))
    asked = streams * (len(full) * (length * per_passage + p["n_prior"]))
    asked += streams * per_passage * len([k for k in made if k not in full])
    shown = plain(name) in ("passage_in_context", "rag")
    single = chunk if rule.trains and "isolation" not in name else 0
    at_once = chunk * (length * per_passage + p["n_prior"])
    work.append(asking(f"{phase}/ask", p, asked, text, shown, adapters=single, at_once=at_once))
    if rule.trains:  # drift: a quarter of the anchors under the current weights
        reads = streams * len([k for k in full if k]) * p["anchors"] / 4
        work.append(Work("read", f"{phase}/drift", reads, reads * anchor(text), targets=p["targets"], rank=p["rank"]))
    return work


def anchor(text: lengths.Text) -> float:
    """Tokens of a text the model writes from an opening."""
    return min(text.anchor, ANCHOR_TOKENS + 2)


def _training(p, name, rule, text, streams, made, knobs, chunk, phase) -> list[Work]:
    source = "policy" if p["writer"] == "policy" or name != plain(name) else p["writer"].partition(":")[2]
    documents, tokens = text.training(source)
    authors = plain(name) == "sequential_authors"
    pads = "probe:16" if authors else p["pad_loss"]
    each = counts.pad_tokens(pads, tokens / documents)
    epochs, m = knobs.get("epochs", p["epochs"]), knobs.get("m", 0)
    edits = sum(made) if rule.retrains else len(made)  # retraining after edit k trains on k of them
    steps = epochs * max(1.0, documents / p["batch"]) * edits
    past = (len(made) - 1) / len(made)  # the first edit has no past
    again = counts.pad_tokens(p["pad_loss"], tokens / documents)  # a document of an earlier edit
    extra = {"past": past * again, "own": anchor(text), "anchors": anchor(text), "": 0.0}
    extra["both"] = extra["past"] + extra["anchors"]
    sequences = {"past": past, "both": 1 + past}.get(rule.more, 1.0) * m
    count, tokens = streams * len(made), epochs * documents * each * edits + steps * m * extra[rule.more]
    work = [
        Work(
            "train", phase, count, streams * tokens,
            steps=streams * steps, slots=chunk, batch=round(p["batch"] + sequences),
            targets="qv" if authors else p["targets"], rank=p["rank"],
        )
    ]  # fmt: skip
    if rule.more in ("anchors", "both"):  # the teacher's distributions, once per edit
        reads = count * p["anchors"]
        work.append(Work("read", f"{phase}/teacher", reads, reads * anchor(text), targets=p["targets"], rank=p["rank"]))
    if "texts" in knobs:
        texts = count * knobs["texts"]
        work.append(Work("write", f"{phase}/own texts", texts, texts * (anchor(text) - 2), 2.0, anchor(text)))
    if rule.reads:
        work.append(Work("read", f"{phase}/reads", count * rule.reads, count * rule.reads * anchor(text),
                         targets=p["targets"], rank=p["rank"]))  # fmt: skip
    if rule.factors:
        times = 1 + (count if rule.factors == "edit" else 0)
        work.append(Work("factor", f"{phase}/null space", times, targets=p["targets"]))
    return work


def _streams(p: Mapping, streams: int, writer: str, phase: str = "write") -> list[Work]:
    """Self-edits written once, and the anchors."""
    text = lengths.profile(p["passages"])
    return [writing(phase, p, streams * p["length"], 1, text)] if writer == "policy" else []


def _anchors(p: Mapping) -> Work:
    text, n = lengths.profile(p["passages"]), p["anchors"]
    return Work("write", "anchors", n, n * (anchor(text) - 2), 2.0, anchor(text))


def tuned(p: Mapping) -> dict[str, dict]:
    """The knobs that an arm's cost hangs on, from ``knobs_file``."""
    if not p.get("knobs_file"):
        return {}
    file = Path(paths.given(p["knobs_file"]))
    found = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    kept = ("m", "epochs", "texts")
    return {rule: {k: v for k, v in row.items() if k in kept} for rule, row in (found or {}).items()}


def edits(p: Mapping) -> list[Work]:
    """Notebook 13."""
    known = tuned(p)
    work = [*_streams(p, p["n_sequences"], p["writer"]), _anchors(p)]
    for name in p["arms"]:
        work += run_arm(p, name, p["n_sequences"], knobs=known.get(plain(name)))
    if p["n_own"]:
        work += _streams(p, p["n_own"], "policy", "write_own")
        for name in p["own_arms"]:
            work += run_arm(p, name, p["n_own"], knobs=known.get(plain(name)))
    return work


def mitigations(p: Mapping) -> list[Work]:
    """Notebook 14."""
    known = tuned(p)
    work = [*_streams(p, p["n_sequences"], p["writer"]), _anchors(p)]
    return work + [w for name in p["arms"] for w in run_arm(p, name, p["n_sequences"], knobs=known.get(plain(name)))]


def retention(p: Mapping) -> list[Work]:
    """Notebook 15."""
    known, rows = tuned(p), [0, *p["lengths"]]
    work = [*_streams(p, p["n_sequences"], p["writer"]), _anchors(p)]
    for name in p["arms"]:
        work += run_arm(p, name, p["n_sequences"], full_rows=rows, knobs=known.get(plain(name)))
    return work


def tuning(p: Mapping) -> list[Work]:
    """Notebook 16: every setting of every rule."""
    work = [*_streams(p, p["n_sequences"], p["writer"]), _anchors(p)]
    for name in p["arms"]:
        if name not in RULES:
            raise ParameterError(f"arms: {name!r} is not one of {', '.join(RULES)}.")
        for n, knobs in enumerate(RULES[name].grid):
            work += run_arm(
                p, name, p["n_sequences"], full_rows=[0, p["length"]], knobs=knobs, phase=f"tuning/{name}.{n}"
            )  # fmt: skip
    return work
