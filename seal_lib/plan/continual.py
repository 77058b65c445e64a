"""Counts the work of the forgetting study's notebooks from their parameters (see :mod:`seal_lib.plan.counts`).

What a rule costs beside plain training is declared by the rule (:class:`seal_lib.continual.rules.base.RuleCost`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from seal_lib.errors import ParameterError
from seal_lib.plan import lengths
from seal_lib.plan import work as pieces
from seal_lib.plan.work import Phase, asking, writing
from seal_lib.report.arms import plain
from seal_lib.runs.values import did_you_mean

if TYPE_CHECKING:
    from seal_lib.continual.rules.base import Rule


def rule_of(name: str) -> "type[Rule]":
    """The update rule of an arm; imports torch."""
    from seal_lib.continual.rules import RULES

    if plain(name) not in RULES:
        hint = did_you_mean(plain(name), list(RULES)) or "choose from these."
        raise ParameterError(f"arms: {name!r} is not one of {', '.join(RULES)}; {hint}")
    return RULES[plain(name)]


def settings(rule: "type[Rule]") -> int:
    """How many settings notebook 16 will try about: the default, two neighbours a knob, and two steps upwards."""
    knobs = len(rule.ladders)
    return 1 + 2 * knobs + 2 * (knobs > 0)


def run_arm(
    p: Mapping, name: str, streams: int, *, full_rows: Sequence[int] | None = None, phase: str = ""
) -> list[Phase]:
    """One arm over ``streams`` streams (:func:`seal_lib.continual.study.run_arm`)."""
    rule, text, phase = rule_of(name), lengths.profile(p["passages"]), phase or name
    length, slots = p["length"], p["slots"]
    chunk = max(n for n in range(1, min(slots or streams, streams) + 1) if streams % n == 0)
    full = [k for k in range(length + 1) if full_rows is None or k in full_rows]
    made = [k for k in range(1, length + 1) if not rule.retrains or k in full]
    per_passage = min(p["questions"] or text.questions, text.questions)
    work: list[Phase] = []
    if rule.trains:
        work += _training(p, name, rule, text, streams, made, chunk, phase)
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
        work.append(
            Phase("read", f"{phase}/drift", reads, reads * anchor(p, text), targets=p["targets"], rank=p["rank"])
        )
    return work


def anchor(p: Mapping, text: lengths.Text) -> float:
    """Tokens of a text the model writes from an opening."""
    return min(text.anchor, p["anchor_tokens"] + 2)


def _training(
    p: Mapping,
    name: str,
    rule: "type[Rule]",
    text: lengths.Text,
    streams: int,
    trained: Sequence[int],
    chunk: int,
    phase: str,
) -> list[Phase]:
    source = "policy" if p["writer"] == "policy" or name != plain(name) else p["writer"].partition(":")[2]
    documents, tokens = text.training(source)
    authors = plain(name) == "sequential_authors"
    pads = p["authors_pads"] if authors else p["pad_loss"]
    each = pieces.pad_tokens(pads, tokens / documents)
    epochs, m, cost = p["epochs"], rule.knobs.get("m", 0), rule.cost
    edits = sum(trained) if rule.retrains else len(trained)  # retraining after edit k trains on k of them
    steps = epochs * max(1.0, documents / p["batch"]) * edits
    past = (len(trained) - 1) / len(trained)  # the first edit has no past
    again = pieces.pad_tokens(p["pad_loss"], tokens / documents)  # a document of an earlier edit
    extra = {"past": past * again, "own": anchor(p, text), "anchors": anchor(p, text), "": 0.0}
    extra["both"] = extra["past"] + extra["anchors"]
    sequences = {"past": past, "both": 1 + past}.get(cost.more, 1.0) * m
    count, tokens = streams * len(trained), epochs * documents * each * edits + steps * m * extra[cost.more]
    work = [
        Phase(
            "train", phase, count, streams * tokens,
            steps=streams * steps, slots=chunk, batch=round(p["batch"] + sequences),
            targets="qv" if authors else p["targets"], rank=p["rank"],
        )
    ]  # fmt: skip
    if cost.more in ("anchors", "both"):  # the teacher's distributions, once per edit
        reads = count * p["anchors"]
        work.append(
            Phase("read", f"{phase}/teacher", reads, reads * anchor(p, text), targets=p["targets"], rank=p["rank"])
        )
    if own_texts := rule.knobs.get("texts", cost.texts):
        texts = count * own_texts
        work.append(Phase("write", f"{phase}/own texts", texts, texts * (anchor(p, text) - 2), 2.0, anchor(p, text)))
    if cost.reads:
        work.append(Phase("read", f"{phase}/reads", count * cost.reads, count * cost.reads * anchor(p, text),
                         targets=p["targets"], rank=p["rank"]))  # fmt: skip
    if cost.factors:
        times = 1 + (count if cost.factors == "edit" else 0)
        work.append(Phase("factor", f"{phase}/null space", times, targets=p["targets"]))
    return work


def _streams(p: Mapping, streams: int, writer: str, phase: str = "write") -> list[Phase]:
    """Self-edits written once, and the anchors."""
    text = lengths.profile(p["passages"])
    return [writing(phase, p, streams * p["length"], 1, text)] if writer == "policy" else []


def _anchors(p: Mapping) -> Phase:
    text, n = lengths.profile(p["passages"]), p["anchors"]
    return Phase("write", "anchors", n, n * (anchor(p, text) - 2), 2.0, anchor(p, text))


def _arms(p: Mapping, names: Sequence[str], streams: int, **options: object) -> list[Phase]:
    """Some arms (:func:`seal_lib.continual.study.run_arms`), and the unedited model's own notes if an arm has them."""
    own = any(name.endswith("_own") for name in names)
    work = _streams(p, streams, "policy", "write_own") if own else []
    return work + [w for name in names for w in run_arm(p, name, streams, **options)]


def edits(p: Mapping) -> list[Phase]:
    """Notebook 13."""
    work = [*_streams(p, p["n_sequences"], p["writer"]), _anchors(p), *_arms(p, p["arms"], p["n_sequences"])]
    return work + (_arms(p, p["own_arms"], p["n_own"]) if p["n_own"] else [])


def mitigations(p: Mapping) -> list[Phase]:
    """Notebook 14."""
    return [*_streams(p, p["n_sequences"], p["writer"]), _anchors(p), *_arms(p, p["arms"], p["n_sequences"])]


def retention(p: Mapping) -> list[Phase]:
    """Notebook 15."""
    work = [*_streams(p, p["n_sequences"], p["writer"]), _anchors(p)]
    return work + _arms(p, p["arms"], p["n_sequences"], full_rows=[0, *p["lengths"]])


def tuning(p: Mapping) -> list[Phase]:
    """Notebook 16: about :func:`settings` settings of every rule."""
    work = [*_streams(p, p["n_sequences"], p["writer"]), _anchors(p)]
    for name in p["arms"]:
        for n in range(min(settings(rule_of(name)), p["settings"])):
            work += run_arm(p, name, p["n_sequences"], full_rows=[0, p["length"]], phase=f"tuning/{name}.{n}")
    return work
