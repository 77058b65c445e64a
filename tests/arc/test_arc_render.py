"""From tasks to tokens: one BOS, no clock, and labels that are exactly the answer, on small real tokenizers."""

import copy
import json
import subprocess
import sys
from datetime import datetime, timedelta
from functools import lru_cache

import pytest
from conftest import REPOSITORY
from fixtures_seal import real
from test_arc_examples import made

from seal_lib import models
from seal_lib.arc import prompts, render
from seal_lib.arc.data import load_tasks
from seal_lib.arc.examples import PuzzleExample, augmented, question
from seal_lib.arc.grids import answer_text, parse, question_text, to_text
from seal_lib.arc.self_edits import ORACLE, read
from seal_lib.arc.tasks import Pair, Task
from seal_lib.errors import DataError, ParameterError, SealError
from seal_lib.models.tokens import read_ids

#: in the manner of Llama-3: headers, BOS written out, today's date by default, messages trimmed
LLAMA = (
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% for m in messages %}{{ '<|head|>' + m.role + '<|/head|>\n\n' }}"
    "{% if m.role == 'system' %}{{ 'Today: ' + date_string + '\n\n' }}{% endif %}"
    "{{ m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
#: in the manner of ChatML: no BOS, a newline after every turn, messages as they are
CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
#: the same for a model that can be told not to think
THINKING = CHATML.replace("m.content", "('<think></think>' if m.role == 'assistant' else '') + m.content").replace(
    "{{ '<|start|>assistant\n' }}",
    "{{ '<|start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think></think>' }}{% endif %}",
)
#: kind → (template, text of the end of a turn, empty header after it)
KINDS = {
    "llama": (LLAMA, "<|eot|>", "<|head|>assistant<|/head|>\n\n"),
    "chatml": (CHATML, "<|end|>", "\n<|start|>assistant\n"),
    "thinking": (THINKING, "<|end|>", "\n<|start|>assistant\n<think></think>"),
    "plain": (None, "", ""),
    "plain-bos": (None, "", ""),
}
CHATTY = [kind for kind in KINDS if KINDS[kind][0]]


@lru_cache
def tokenizer(kind: str):
    """A byte-level BPE tokenizer trained on grid text; BOS, end of turn and template are those of ``kind``."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    with_bos = kind in ("llama", "plain-bos")
    special = ["<|begin|>", "<|head|>", "<|/head|>", "<|eot|>", "<|start|>", "<|end|>"]
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    texts = [f"{question_text(p.input)}{answer_text(p.output)}\n" for n in (3, 4) for p in made(n).train]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    if with_bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", raw.token_to_id("<|begin|>"))]
        )
    made_ = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=KINDS[kind][1] or "<|end|>")
    if with_bos:
        made_.bos_token = "<|begin|>"
    if KINDS[kind][0]:
        made_.chat_template = KINDS[kind][0]
    return made_


def wording(kind: str) -> prompts.PuzzlePrompts:
    return prompts.load("chat" if kind in CHATTY else "base")


def text_of(kind: str, ids) -> str:
    return tokenizer(kind).decode(list(ids), clean_up_tokenization_spaces=False)


def labelled(example) -> list[int]:
    return [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]


def leave_one_out() -> list[PuzzleExample]:
    return [e for n in (2, 3, 5) for e in augmented(made(n).train, 1, ())]


def asked(kind: str, example: PuzzleExample) -> list[int]:
    """Tokens of the inference prompt, as the engine makes them."""
    return tokenizer(kind)(render.question_prompt(example, tokenizer(kind), wording(kind)))["input_ids"]


# ---------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("kind", KINDS)
def test_the_labelled_tokens_are_the_answer_and_its_end_and_nothing_else(kind) -> None:
    for example in leave_one_out():
        prompt = asked(kind, example)
        trained = render.training_example(example, tokenizer(kind), wording(kind), "output")
        assert trained.ids[: len(prompt)] == prompt and set(trained.weights) == {0.0, 1.0}
        assert trained.weights == [0.0] * len(prompt) + [1.0] * (len(trained.ids) - len(prompt))
        assert text_of(kind, labelled(trained)) == to_text(example.target.output) + "#" + KINDS[kind][1]
        assert [*prompt, *render.ids(example, tokenizer(kind), wording(kind))[1]] == trained.ids
        whole = render.training_example(example, tokenizer(kind), wording(kind), "all")
        assert whole.ids == trained.ids and whole.weights == [1.0] * len(whole.ids)


@pytest.mark.parametrize(("kind", "clean", "authors"), [("llama", 1, 2), ("chatml", 0, 0), ("plain-bos", 1, 1)])
def test_the_authors_protocol_has_a_second_bos_and_trains_on_an_empty_header(kind, clean, authors) -> None:
    begin = tokenizer(kind).convert_tokens_to_ids("<|begin|>")
    for example in leave_one_out():
        prompt = asked(kind, example)
        assert prompt.count(begin) == clean and prompt[:clean] == [begin] * clean
        ours, theirs = (
            render.training_example(example, tokenizer(kind), wording(kind), "output", p) for p in ("clean", "authors")
        )
        assert ours.ids.count(begin) == clean and theirs.ids.count(begin) == authors
        assert theirs.ids[:authors] == [begin] * authors
        extra = KINDS[kind][2]
        assert theirs.ids[authors - clean :][: len(ours.ids)] == ours.ids
        assert text_of(kind, labelled(theirs)) == text_of(kind, labelled(ours)) + extra
        whole = render.training_example(example, tokenizer(kind), wording(kind), "all", "authors")
        assert whole.ids == theirs.ids and set(whole.weights) == {1.0}


def test_the_authors_text_is_what_tokenising_the_rendered_conversation_gives() -> None:
    kind = "llama"
    for example in leave_one_out():
        said, ask = wording(kind).question(example)
        answer = wording(kind).answer(example.target.output)
        chat = [("system", said), ("user", ask), ("assistant", answer)]
        text = tokenizer(kind).apply_chat_template(
            [{"role": role, "content": content} for role, content in chat],
            tokenize=False,
            add_generation_prompt=True,
            date_string="26 Jul 2024",
        )
        trained = render.training_example(example, tokenizer(kind), wording(kind), "output", "authors")
        assert trained.ids == tokenizer(kind)(text)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_self_edit_is_trained_to_its_end_token(kind) -> None:
    task, own = made(3), tokenizer(kind)
    prompt = render.self_edit_prompt(task, own, wording(kind))
    ids = render.completion_ids(task, ORACLE.text(), own, wording(kind))
    assert ids[-1] == own.eos_token_id and own.bos_token_id not in ids
    assert text_of(kind, ids) == ORACLE.text() + own.eos_token
    assert read(text_of(kind, ids[:-1])).config == ORACLE  # what an engine hands back of these tokens
    assert read_ids(prompt, own) == own(prompt)["input_ids"]
    assert read_ids(prompt, own).count(own.convert_tokens_to_ids("<|begin|>")) == (own.bos_token is not None)
    spread = "\n" + json.dumps(json.loads(ORACLE.text()), indent=2) + " \n"
    assert read(text_of(kind, render.completion_ids(task, spread, own, wording(kind))[:-1])).config == ORACLE
    assert text_of(kind, render.completion_ids(task, "", own, wording(kind))) == own.eos_token


def test_a_bos_is_kept_where_only_the_template_writes_it() -> None:
    quiet = copy.deepcopy(tokenizer("chatml"))
    quiet.bos_token = "<|begin|>"
    quiet.chat_template = "{{ bos_token }}" + CHATML
    example = leave_one_out()[0]
    prompt = quiet(render.question_prompt(example, quiet, wording("chatml")))["input_ids"]
    assert prompt[0] == quiet.bos_token_id and prompt.count(quiet.bos_token_id) == 1
    trained = render.training_example(example, quiet, wording("chatml"), "output", "authors")
    assert trained.ids.count(quiet.bos_token_id) == 1  # tokenising the authors' way adds none either


# --------------------------------------------------------------------------------------------- content


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_shows_every_demonstration_and_not_the_answer(kind) -> None:
    task = made(5)
    text = render.question_prompt(question(task, 0), tokenizer(kind), wording(kind))
    for pair in task.train:
        assert f"{to_text(pair.input)} -> {to_text(pair.output)}#" in text
    assert text.count("#") == wording(kind).instruction.count("#") + 5
    assert text.count(to_text(task.tests[0])) == 1 and to_text(task.solutions[0]) not in text
    unknown = Task(task.id, task.train, task.tests)
    assert text == render.question_prompt(question(unknown, 0), tokenizer(kind), wording(kind))


@pytest.mark.parametrize("name", ["seedling", "base", "chat"])
def test_a_self_edit_prompt_never_shows_a_test(name) -> None:
    chosen, own = prompts.load(name), tokenizer("llama" if name == "chat" else "plain")
    train = tuple(Pair(((k, k + 1), (k + 2, 0)), ((k,),)) for k in (1, 2, 3))
    task = Task("t", train, (((9, 8, 7),),), (((7, 9, 9),),))
    text = render.self_edit_prompt(task, own, chosen)
    shown = to_text if name == "seedling" else prompts.GRIDS["rows"]
    for pair in train:
        assert shown(pair.input) in text and shown(pair.output) in text
    assert not any(line in text for line in ("9 8 7", "7 9 9"))
    changed = Task("t", train, (((0,),), ((5, 5),)), ())
    assert render.self_edit_prompt(changed, own, chosen) == text
    with pytest.raises(DataError, match="task none has no demonstration"):
        render.self_edit_prompt(Task("none", (), task.tests), own, chosen)


def test_the_seedling_texts() -> None:
    chosen, own = prompts.load("seedling"), tokenizer("plain")
    task = Task("t", (Pair(((1, 2),), ((2, 1),)), Pair(((3,), (4,)), ((5,),))), (((6,),),), (((7,),),))
    first = "[[1 2]] -> [[2 1]]#\n"
    asked_ = PuzzleExample(task.train[:1], task.train[1])
    assert render.question_prompt(asked_, own, chosen) == first + "[[3]\n [4]] -> "
    assert render.self_edit_prompt(task, own, chosen) == first + "[[3]\n [4]] -> [[5]]#\nconfiguration:\n"
    assert render.question_prompt(PuzzleExample((), task.train[0]), own, chosen) == "[[1 2]] -> "


@pytest.mark.parametrize("template", [LLAMA, LLAMA.replace("date_string +", "strftime_now('%d %b %Y') +")])
def test_prompts_do_not_depend_on_the_day(monkeypatch, template) -> None:
    from transformers.utils import chat_template_utils

    own = copy.deepcopy(tokenizer("llama"))
    own.chat_template = template
    plain, made_ = set(), set()
    example = leave_one_out()[0]
    for days in (0, 1, 400):

        class Clock(datetime):
            @classmethod
            def now(cls, days=days):
                return datetime.now() + timedelta(days=days)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        plain.add(own.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False))
        ids = tuple(render.training_example(example, own, wording("llama")).ids)
        texts = (
            render.question_prompt(example, own, wording("llama")),
            render.self_edit_prompt(made(3), own, wording("llama")),
        )
        made_.add((*texts, ids, tuple(render.completion_ids(made(3), "{}", own, wording("llama")))))
        assert all(f"{Clock.now():%d %b %Y}" not in text and "Today: 26 Jul 2024\n" in text for text in texts)
    assert len(plain) == 3 and len(made_) == 1  # the template by itself does follow the clock


# ---------------------------------------------------------------------------------------------- errors


def test_templates_that_training_cannot_match_are_refused_in_one_sentence() -> None:
    example, chat = leave_one_out()[0], prompts.load("chat")
    for template, words in (
        (None, "has no chat template.*'base'"),
        (CHATML.replace("m.content + '<|end|>' + '\n'", "m.content"), "does not end the assistant's turn"),
        (CHATML.replace("m.content", "m.content | replace('#', '')"), "rewrites the assistant's text"),
        (CHATML.replace("{% for", "{{ messages | length }}{% for"), "differently once it has a reply"),
        ("{{ raise_exception('no system role') }}", "refuses the messages .no system role"),
    ):
        own = copy.deepcopy(tokenizer("chatml"))
        own.chat_template = template
        with pytest.raises(DataError, match=words) as caught:
            render.training_example(example, own, chat)
        assert "'chat'" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_words_are_refused() -> None:
    example, own = leave_one_out()[0], tokenizer("plain")
    for more, words in ((("outputs",), "loss_on: 'outputs'"), (("all", "author"), "protocol: 'author'")):
        with pytest.raises(DataError, match=words):
            render.training_example(example, own, prompts.load("base"), *more)
    endless = copy.deepcopy(own)
    endless.eos_token = None
    with pytest.raises(DataError, match="no EOS"):
        render.completion_ids(made(2), "{}", endless, prompts.load("base"))


GOOD = {
    "chat": False,
    "instruction": "",
    "persona": None,
    "self_edit": "{demonstrations}now:",
    "demonstration": "{input}={output};",
    "grid": "rows",
    "stop": "!",
}


def test_a_file_of_the_user_adds_to_the_sets_and_wins(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"mine": GOOD, "base": GOOD}))
    mine, own = prompts.load("mine", str(file)), tokenizer("plain")
    task = Task("t", (Pair(((1, 2),), ((3,),)),), (((4,),),), (((5,),),))
    assert render.self_edit_prompt(task, own, mine) == "1 2\n=3\n;now:"
    assert render.question_prompt(question(task, 0), own, mine) == "[[1 2]] -> [[3]]!\n[[4]] -> "
    assert text_of("plain", labelled(render.training_example(question(task, 0), own, mine))) == "[[5]]!"
    assert prompts.load("base", str(file)).stop == "!" and prompts.load("base").stop == "#"
    assert prompts.load("chat", str(file)) == prompts.load("chat")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"self_edit": "now:"}, "self_edit: the slot {demonstrations} is missing"),
        ({"demonstration": "{input}"}, "demonstration: the slot {output} is missing"),
        ({"instructions": ""}, "instructions missing or unknown"),
        ({"chat": "no"}, "chat: 'no' is not true or false"),
        ({"instruction": None}, "instruction: None is not text"),
        ({"grid": "table"}, "grid: 'table' is not one of array, rows"),
        ({"persona": "You"}, "persona: a chat set needs a text here and any other set null"),
        ({"chat": True}, "persona: a chat set needs a text here"),
        ({"stop": ""}, "stop: '' can occur in a grid"),
        ({"stop": "]]"}, "stop: ']]' can occur in a grid"),
    ],
)
def test_a_broken_set_is_named_in_one_sentence(tmp_path, change, words) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"mine": GOOD | change}))
    with pytest.raises(DataError) as caught:
        prompts.load("mine", str(file))
    assert words in str(caught.value) and "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_prompt_file_is_named(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    for content, words in (("mine: {chat: 'x", "not YAML"), ("- a", "expected `name:"), ("mine: 3", "expected `name:")):
        file.write_text(content)
        with pytest.raises(SealError, match=f"mine.yaml.*{words}"):
            prompts.load("mine", str(file))
    with pytest.raises(ParameterError, match="absent.yaml does not exist"):
        prompts.load("mine", str(tmp_path / "absent.yaml"))
    with pytest.raises(DataError, match="'yours' is not one of base, chat, seedling"):
        prompts.load("yours")


def test_rendering_does_not_load_torch() -> None:
    code = "import sys, seal_lib.arc.render; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout == "[]\n", done.stderr


# ------------------------------------------------------------------------------------------- real data


def test_every_real_task_goes_through_the_shipped_tokenizer() -> None:
    files = [str(real("arc", f"arc-agi_training_{kind}.json")) for kind in ("challenges", "solutions")]
    from transformers import AutoTokenizer

    own, chosen = AutoTokenizer.from_pretrained(models.resolve("seedling-knowledge")[0]), prompts.load("seedling")
    tasks = load_tasks(*files)
    assert len(tasks) == 400
    for task in tasks:
        text = render.self_edit_prompt(task, own, chosen)
        assert text.count("#\n") == len(task.train) and text.endswith("#\nconfiguration:\n")
        for test in range(len(task.tests)):
            example = question(task, test)
            trained = render.training_example(example, own, chosen)
            assert parse(own.decode(labelled(trained))).grid == task.solutions[test]
            assert trained.ids[: trained.weights.index(1.0)] == read_ids(
                render.question_prompt(example, own, chosen), own
            )
