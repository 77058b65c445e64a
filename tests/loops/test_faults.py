"""Self-edits nobody would want to train on: each is a clean trial or a counted outcome, within bounded time."""

import math
import time
from dataclasses import replace

import pytest
from fixtures_seal import DOMAIN, INNER, candidate, digest, made, seedling, trials_of

from seal_lib.loops.outer import reward_of
from seal_lib.loops.settings import OuterLoop
from seal_lib.loops.updates import Group, kept_of
from seal_lib.records import PassageTrial, SelfEdit, to_dict

BINARY = bytes(range(256)) * 20
FAULTS = {
    "empty": "",
    "white space": " \n\t\r\n\u3000\u00a0\n",
    "rules only": "---\n---\n----",
    "thoughts only": "<think>Hm. What could I write?</think>",
    "thoughts cut off": "<think>Hm. " * 50,
    "fences and tables": "```\n|---|---|\n```\n<notes>\n</notes>",
    "100 kB in one line": "All work and no play. " * 4700,
    "one huge word": "x" * 100_000,
    "binary": BINARY.decode("utf-8", errors="replace"),
    "nul bytes": "\0" * 3000,
    "only punctuation": "?!... ,;: -- '' \"\" ()[]{}" * 20,
    "lone surrogates made safe": b"\xed\xa0\x80 \xff\xfe text".decode("utf-8", errors="replace"),
    "other scripts": "北京は首都ではない。 مرحبا \U0001f600\U0001f468\u200d\U0001f469 e\u0301 \u202eabc",
    "template slots": "{title} {passage} {text} {0} %s ${x} {{}}",
    "special tokens": "<eos><pad><eos> text <|endoftext|> </s> <s>",
    "code": "__import__('os').system('false')\n<script>alert(1)</script>\n; DROP TABLE passages",
    "question marks only": "Question 1:\nAnswer:\nQuestion 2:\nAnswer:",
}
SETTINGS = replace(INNER, epochs=1, batch=1)


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_strange_self_edit_is_a_clean_trial_or_a_counted_outcome(name: str) -> None:
    model, _ = seedling()
    before, text, begun = digest(model), FAULTS[name], time.monotonic()
    passage = made(1)[0]
    neighbour = candidate(passage, passage.references["gold"], "neighbour")
    (strange, sane) = trials_of([candidate(passage, text), neighbour], SETTINGS)
    assert time.monotonic() - begun < 60
    documents = DOMAIN.documents(passage, text)
    empty = len(documents) == 1  # the passage
    assert strange.outcome in (("empty_edit",) if empty else ("ok", "diverged"))
    assert strange.edit.text == text
    assert strange.steps == len(documents) or strange.outcome == "diverged"
    assert strange.outcome == "diverged" or len(strange.answers) == len(passage.questions)
    assert sane.outcome == "ok" and digest(model) == before
    row = to_dict(strange)
    assert PassageTrial.from_dict(row).edit.text == text  # the record keeps it, whatever it is
    assert math.isnan(strange.accuracy) or 0 <= strange.accuracy <= 1
    assert "<script>" not in strange._repr_html_()


@pytest.mark.slow
def test_one_line_repeated_500_times_is_500_documents_and_ends() -> None:
    passage, begun = made(1)[0], time.monotonic()
    line = passage.references["gold"].split("\n")[0]
    repeated = candidate(passage, "\n".join([line] * 500))
    (trial,) = trials_of([repeated], SETTINGS)
    assert trial.steps == 501 and trial.outcome in ("ok", "diverged") and time.monotonic() - begun < 90


def test_a_limit_bounds_what_a_runaway_self_edit_costs() -> None:
    passage = made(1)[0]
    runaway = candidate(passage, "\n".join(f"{i}. line" for i in range(20_000)))  # 230 kB
    (trial,) = trials_of([runaway], replace(SETTINGS, document_limit=30))
    assert trial.steps == 31 and len(trial.edit.text) > 200_000


def test_special_tokens_in_a_text_are_text_not_tokens() -> None:
    """What a model or a file wrote must not end or pad a training document from within."""
    tokenizer, passage = seedling()[1], made(1)[0]
    (example, _) = DOMAIN.examples(candidate(passage, "a <eos> b <pad> c"), tokenizer)
    assert list(example.ids).count(tokenizer.eos_token_id) == 1  # the one at the end
    assert tokenizer.pad_token_id not in example.ids


def test_a_round_of_strange_edits_keeps_the_one_that_can_be_learnt_from() -> None:
    passage = made(1)[0]
    texts = ["", FAULTS["binary"], passage.references["gold"], FAULTS["only punctuation"]]
    edits = [SelfEdit(f"{passage.id}/{k}", passage.id, text, "policy") for k, text in enumerate(texts)]
    group = [replace(candidate(passage, edit.text), id=edit.id, edit=edit) for edit in edits]
    trials, outer = trials_of(group, INNER), OuterLoop()
    rewards = tuple(reward_of([t], math.nan, outer.reward) for t in trials)
    kept = kept_of([Group(passage, tuple(edits), tuple((t,) for t in trials), rewards)], outer, seed=0)
    assert [e.text for e in kept] == [passage.references["gold"]] and len(rewards) == 4
    assert [t.outcome for t in trials][0] == "empty_edit"
