"""Questions that the model writes itself, with the passage in view.

`seal_lib.store.learning` keeps a question if the model, asked afresh with the passage in view and without the text in
which it wrote the question, gives the same answer again. In the made world, where the truth is known, a test measures
how often kept ones are right; elsewhere self-agreement is no proof.
"""

import re
from collections.abc import Sequence

from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation.thoughts import without_thoughts
from seal_lib.grading.graders import is_blank, normalise
from seal_lib.knowledge.prompts import Prompts
from seal_lib.loops.policy import Policy
from seal_lib.records import Passage, Question
from seal_lib.runs.work import Count, uncounted
from seal_lib.seeds import derive_seed

_LABEL = re.compile(r"^[\s>*_#•–-]*(?:(?:question|answer|q|a)\s*\d*[*_\s]*[:.)]|\d+[.)])?[\s*_]*", re.IGNORECASE)


def found_in(text: str) -> list[Question]:
    """Return the questions of a text with their answers, on one line or on the next, however they are marked.

    Of questions with the same words the first is kept; those without an answer are left out.
    """
    lines = [_LABEL.sub("", line).strip() for line in without_thoughts(text)[0].splitlines()]
    lines = [line for line in lines if line]
    found: dict[str, Question] = {}
    for number, line in enumerate(lines):
        asked, mark, answer = line.partition("?")
        if not mark:
            continue
        answer = _LABEL.sub("", answer).strip(" *_") or (lines[number + 1] if number + 1 < len(lines) else "")
        answer = answer.removesuffix(".")
        if not is_blank(answer) and "?" not in answer:
            found.setdefault(normalise(asked), Question(f"{asked.strip()}?", answer))
    return list(found.values())


def write(
    policy: Policy,
    passages: Sequence[Passage],
    prompts: Prompts,
    sampling: Sampling,
    seed: int,
    count: Count = uncounted,
) -> dict[str, list[Question]]:
    """Return passage id → the distinct questions and answers that the model wrote about it in ``sampling.n`` texts."""
    requests = [Request(prompts.write(passage), derive_seed(seed, passage.id, "questions")) for passage in passages]
    texts = policy.generator().generate(requests, sampling)
    count(generated=sum(done.tokens for several in texts for done in several))
    written = {}
    for passage, several in zip(passages, texts, strict=True):
        distinct: dict[str, Question] = {}
        for question in (q for done in several for q in found_in(done.text)):
            distinct.setdefault(normalise(question.question), question)
        written[passage.id] = list(distinct.values())
    return written
