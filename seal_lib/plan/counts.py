"""Counts the work of a notebook from its parameters: self-edits to write, adapters to train, questions to answer.

One function per notebook in :data:`COUNTS`, which follows the loop that the notebook runs (:mod:`seal_lib.loops`; the
continual ones are in :mod:`seal_lib.plan.continual`). Units follow from the parameters alone and are exact; tokens come
from recorded lengths (``lengths``) and are as good as those. Knows no model, no device and no price
(:mod:`seal_lib.plan.costs`); loads neither data nor torch.
"""

from collections.abc import Callable, Mapping

from seal_lib.errors import ParameterError
from seal_lib.plan import continual, lengths
from seal_lib.plan.work import CACHE_TOKENS, ROWS, Phase, arm, asking, finetuning, round_, trials, writing

# ---------------------------------------------------------------------------------------------- notebooks


def tour(p: Mapping) -> list[Phase]:
    text = lengths.profile(p["passages"])
    n, samples = p["n_passages"], p["samples"]
    work = [w for name in ("frozen", "passage_in_context", "passage_only") for w in arm(name, p, n, name, text)]
    work += [writing("edits", p, n, samples, text), *trials("scores", p, n * samples, text)]
    work += round_("round_1", p, text)
    return [*work, writing("edits_after", p, n, samples, text), *trials("after", p, n * samples, text)]


def one_edit(p: Mapping) -> list[Phase]:
    text = lengths.profile(p["passages"])
    twice = [w for _ in range(2) for w in trials("trial", p, 1, text)][:3]  # trained twice, asked once
    return [writing("write", p, 1, 1, text), *twice, asking("before", p, text.questions, text, at_once=text.questions)]


def by_hand(p: Mapping) -> list[Phase]:
    p = {**p, "targets": "all-linear", "slots": 1}
    text = lengths.profile(p["passages"])
    return [*arm("before", p, p["n_passages"], "own_untrained", text), *round_("practice", p, text),
            *arm("after", p, p["n_passages"], "own_untrained", text)]  # fmt: skip


def self_edits(p: Mapping) -> list[Phase]:
    return [writing("sample", p, p["n_passages"], p["samples"], lengths.profile(p["passages"]))]


def single_passage(p: Mapping) -> list[Phase]:
    text = lengths.profile(p["passages"])
    found = [(name, arm(f"evaluate/{name}", p, p["n_passages"], name, text)) for name in p["arms"]]
    loops = {name: len(p["seeds"]) if name == "own_untrained" else 1 for name in p["arms"]}  # sampled once per seed
    return [w.times(loops[name]) for name, several in found for w in several]


def restem(p: Mapping) -> list[Phase]:
    text, practice = lengths.profile(p["passages"]), lengths.profile(p["practice"])
    n, rounds = p["n_passages"], p["rounds"]
    loop = arm("evaluate/own_untrained", p, n, "own_untrained", text)
    for index in range(1, rounds + 1):
        loop += round_(f"seal_round_{index}", p, practice)
        loop += trials(f"seal_round_{index}/fresh_seed", p, p["n_practice"], practice)
        loop += arm(f"evaluate/seal_round_{index}", p, n, "own_untrained", text)
    if p["random_control"]:
        for index in range(1, rounds + 1):
            loop += round_(f"random_round_{index}", p, practice, blind=True)
        loop += arm("evaluate/random_edit_sft", p, n, "own_untrained", text)
    controls = [w for name in p["controls"] for w in arm(f"evaluate/{name}", p, n, name, text)]
    return controls + [w.times(len(p["seeds"])) for w in loop]


def other_models(p: Mapping) -> list[Phase]:
    return restem({**p, "controls": [], "seeds": [0], "random_control": True}) * (1 + len(p["other_models"]))


def arc_self_edits(p: Mapping) -> list[Phase]:
    from seal_lib.arc.examples import CAP

    puzzle = lengths.profile(p["tasks"])
    held, practice = number(p["tasks"], p.get("ids")), number(p["practice"], p.get("practice_ids"))
    examples = puzzle.of(min(p["cap"], CAP))
    steps = min(p["max_steps"], puzzle.epochs * examples / p["batch"])
    together = (p.get("tokens_per_step") or 1 << 30) / (p["batch"] * puzzle.example)  # slots that one step serves
    views = {"full": 1.0, "leave_one_out": puzzle.subsets, "all": puzzle.views}[p["views"]]

    def answers(phase: str, tasks: float, adapters: bool) -> Phase:
        rows = max(1, min(ROWS, int(CACHE_TOKENS // (puzzle.ask_longest + p["answer_tokens"])), round(tasks * views)))
        long = p["answer_tokens"] if not adapters else min(puzzle.answer_longest, p["answer_tokens"])
        own = {"adapters": max(1, round(rows / views)), "targets": p["targets"], "rank": p["rank"]} if adapters else {}
        units, each = tasks * views, min(puzzle.answer, p["answer_tokens"])
        return Phase("answer", phase, units, units * each, puzzle.ask, long, rows=rows, **own)

    def attempts(phase: str, count: float) -> list[Phase]:
        train = Phase(
            "train", phase, count, count * steps * p["batch"] * puzzle.example, steps=count * steps,
            slots=max(1, min(p["slots"], int(together), round(count))), batch=p["batch"], targets=p["targets"],
            rank=p["rank"],
        )  # fmt: skip
        return [train, answers(phase, count, True)]

    def write(phase: str, texts: float) -> Phase:
        rows = max(1, min(ROWS, int(CACHE_TOKENS // (puzzle.write + p["edit_tokens"])), round(texts)))
        edit = min(puzzle.edit, p["edit_tokens"])
        return Phase("write", phase, texts, texts * edit, puzzle.write, p["edit_tokens"], rows=rows)

    def evaluate(name: str) -> list[Phase]:
        texts = held * p["edits"]
        tried = attempts(f"evaluate/{name}", texts * puzzle.accepted * puzzle.distinct)
        return [write(f"evaluate/{name}/write", texts), *tried]

    fixed = [answers("evaluate/icl", held, False)] + (attempts("evaluate/oracle", held) if p["oracle"] else [])
    pair = puzzle.write + min(puzzle.edit, p["edit_tokens"])
    if "documents" in p:  # notebook 23 makes its untrained policy first, and tries three configurations on all tasks
        opening = finetuning("opening", {**p, "sft_epochs": 1}, p["documents"], pair)
        fixed = [opening, answers("evaluate/icl", held, False), *attempts("ways", 3 * (held + practice))]
    texts, loop = practice * p["samples"], evaluate("own_untrained")
    kept = texts * puzzle.kept
    learn = finetuning("learn", p, kept, pair)
    for index in range(1, p["rounds"] + 1):
        loop += [write(f"seal_round_{index}/sample", texts)]
        scored = attempts(f"seal_round_{index}/score", texts * puzzle.accepted * puzzle.distinct)
        loop += [w.times(p["reward_seeds"]) for w in scored]
        if p["reward"] == "improvement":
            loop += [answers(f"seal_round_{index}/frozen", practice, False)]
        again = attempts(f"seal_round_{index}/fresh_seed", kept * puzzle.distinct)
        loop += [learn, *again, *evaluate(f"seal_round_{index}")]
    controls = ["random_config_sft"] * p["random_control"] + ["dealt_config_sft"] * ("documents" in p)  # notebook 23
    for name in controls:
        loop += [learn, *evaluate(name)]
    return fixed + [w.times(len(p["seeds"])) for w in loop]


def other_puzzle_models(p: Mapping) -> list[Phase]:
    loop = arc_self_edits({**p, "oracle": "", "seeds": [0], "random_control": True})
    return [w for w in loop if w.phase != "evaluate/icl"] * (1 + len(p["other_models"]))


def number(source: str, ids: list[str] | None) -> int:
    """Number of tasks in a source or a list of ids; a folder of ARC-AGI-1 holds 400."""
    if ids is not None:
        return len(ids)
    return int(source.rpartition(":")[2]) if source.startswith("world:") else 400


def nothing(p: Mapping) -> list[Phase]:
    return []


#: notebook → what it will do
COUNTS: dict[str, Callable[[Mapping], list[Phase]]] = {
    "00_tour": tour,
    "01_one_self_edit": one_edit,
    "02_restem_by_hand": by_hand,
    "10_self_edits": self_edits,
    "11_single_passage": single_passage,
    "12_restem_rounds": restem,
    "13_continual_edits": continual.edits,
    "14_continual_mitigations": continual.mitigations,
    "15_retention_over_time": continual.retention,
    "16_continual_tuning": continual.tuning,
    "17_other_models": other_models,
    "18_graders": nothing,  # answers of a run that is there; a judge elsewhere is asked twice about each
    "20_arc_tasks": nothing,
    "21_arc_self_edits": arc_self_edits,
    "22_arc_results": nothing,
    "23_arc_reading_puzzles": arc_self_edits,
    "24_other_puzzle_models": other_puzzle_models,
    "80_audit_released": nothing,
    "91_figures": nothing,
}


def of(notebook: str, parameters: Mapping) -> list[Phase]:
    """The work of a notebook with these parameters.

    Raises:
        ParameterError: the notebook has no row in :data:`COUNTS`.
    """
    if notebook not in COUNTS:
        raise ParameterError(f"{notebook} is not counted; add a row to COUNTS in seal_lib/plan/counts.py.")
    return COUNTS[notebook](parameters)


def totals(work: list[Phase]) -> dict[str, float]:
    """Units and tokens by what they are: ``written``, ``trainings``, ``steps``, ``answers``, and their tokens."""

    def total(kind: str, value: str) -> float:
        return sum(getattr(w, value) for w in work if w.kind == kind)

    return {
        "written": total("write", "units"), "written_tokens": total("write", "tokens"),
        "trainings": total("train", "units"), "steps": total("train", "steps"),
        "trained_tokens": total("train", "tokens"), "answers": total("answer", "units"),
        "answered_tokens": total("answer", "tokens"), "sft_steps": total("sft", "steps"),
        "sft_tokens": total("sft", "tokens"), "read_tokens": total("read", "tokens"),
    }  # fmt: skip
