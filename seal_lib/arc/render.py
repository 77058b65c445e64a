"""Renders tasks as the exact tokens that a model reads and is trained on, for chat and plain prompt sets alike.

This module ensures:

* Inference and training share the prompt to the token: an answer is tokenised by itself and appended, so that the
  boundary lies where generation starts.
* One BOS. Prompts are texts that an engine tokenises (``tokenizer(prompt)``); where that adds a BOS, the one from the
  chat template is removed. A tokenizer without a BOS gets none.
* No clock. Templates that print today's date get a fixed one instead (the authors' prompts change from day to day).
* No pads, hence none in the loss: neither the bank nor `seal_lib.training.finetune.train_alone` pads to a common length
  with labels, as the released code does.

Protocol ``authors`` adds the two other quirks of the released training text: the second BOS, and the trained assistant
header after the answer. This module needs a tokenizer but never a model; torch is imported only where an example is
made.
"""

from datetime import datetime
from typing import TYPE_CHECKING

from seal_lib.arc.augment import ARC_PROTOCOLS
from seal_lib.arc.examples import PuzzleExample
from seal_lib.arc.prompts import PuzzlePrompts
from seal_lib.arc.tasks import Task
from seal_lib.errors import DataError, must_be_one_of
from seal_lib.models.tokens import read_ids
from seal_lib.training import jobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: the tokens that carry loss, as in a self-edit's strategy
LOSS_ON = ("output", "all")
#: the fixed date of every prompt, which is the default of Llama-3's template
_DAY = datetime(2024, 7, 26)
#: variables for templates: a fixed date (``strftime_now`` hides the function of that name from transformers) and, for
#: templates that know it, the request not to open a block of thoughts
_VARIABLES = {"date_string": "26 Jul 2024", "strftime_now": _DAY.strftime, "enable_thinking": False}

#: (context, request), from `PuzzlePrompts`
_Parts = tuple[str, str]


def question_prompt(example: PuzzleExample, tokenizer: "PreTrainedTokenizerBase", prompts: PuzzlePrompts) -> str:
    """Return the text from which an answer is generated; the target's output is not in it."""
    return _prompt(prompts.question(example), tokenizer, prompts)


def self_edit_prompt(task: Task, tokenizer: "PreTrainedTokenizerBase", prompts: PuzzlePrompts) -> str:
    """Return the text from which a self-edit is generated: demonstrations only, never a test input."""
    return _prompt(prompts.write(task), tokenizer, prompts)


def completion_ids(task: Task, text: str, tokenizer: "PreTrainedTokenizerBase", prompts: PuzzlePrompts) -> list[int]:
    """Return a self-edit as a training target: its tokens and those that end the turn (plain sets: EOS).

    They follow the ids of `self_edit_prompt`, as in the pairs of `seal_lib.training.finetune.sft`. The template
    decides whether white space around ``text`` is kept or trimmed.

    Raises:
        DataError: a plain set is used with a tokenizer without EOS, or the chat template does not fit (see `_reply`).
    """
    if prompts.chat:
        return _tokens(_reply(prompts.write(task), text, tokenizer, prompts), tokenizer)
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no EOS token, so a self-edit cannot be ended; set tokenizer.eos_token.")
    return [*_tokens(text, tokenizer), tokenizer.eos_token_id]


def training_example(
    example: PuzzleExample,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: PuzzlePrompts,
    loss_on: str = "output",
    protocol: str = "clean",
) -> jobs.Example:
    """Return one training sequence: the prompt, then the answer up to its stop text, or the end of the turn in chat.

    Args:
        loss_on: ``output``: weight 1 on the answer's tokens, including the end of the turn, and 0 before. ``all``:
            weight 1 on all tokens.
        protocol: ``authors``: as released, the sequence also ends in an empty assistant header that is in the loss, and
            starts with a second BOS where template and tokenizer both give one. Plain sets have no template and are
            therefore the same in both protocols.

    Raises:
        DataError: ``loss_on`` or ``protocol`` is unknown, or the chat template does not fit (see `_reply`).
    """
    must_be_one_of("protocol", protocol, ARC_PROTOCOLS)
    return weighted(*ids(example, tokenizer, prompts, protocol == "authors"), loss_on)


def weighted(before: list[int], answer: list[int], loss_on: str) -> jobs.Example:
    """Return the training sequence of `ids` with its loss weights; see `training_example`."""
    must_be_one_of("loss_on", loss_on, LOSS_ON)
    first = 1.0 if loss_on == "all" else 0.0
    return jobs.Example([*before, *answer], weights=[first] * len(before) + [1.0] * len(answer))


def ids(
    example: PuzzleExample, tokenizer: "PreTrainedTokenizerBase", prompts: PuzzlePrompts, authors: bool = False
) -> tuple[list[int], list[int]]:
    """Return (tokens of the prompt, tokens of the answer); ``authors``: with the quirks of that protocol."""
    parts, answer = prompts.question(example), prompts.answer(example.target.output)
    if not prompts.chat:  # generation ends at the stop text, so no EOS is needed
        return read_ids("".join(parts), tokenizer), _tokens(answer, tokenizer)
    written = _render(_messages(parts), tokenizer, prompts)
    prompt = _without_bos(written, tokenizer)
    second = [tokenizer.bos_token_id] if authors and prompt != written else []
    reply = _reply(parts, answer, tokenizer, prompts, header=authors)
    return [*second, *read_ids(prompt, tokenizer)], _tokens(reply, tokenizer)


def _tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _messages(parts: _Parts, *reply: str) -> list[dict[str, str]]:
    said = zip(("system", "user", "assistant"), (*parts, *reply), strict=False)
    return [{"role": role, "content": text} for role, text in said]


def _prompt(parts: _Parts, tokenizer: "PreTrainedTokenizerBase", prompts: PuzzlePrompts) -> str:
    if not prompts.chat:
        return "".join(parts)
    return _without_bos(_render(_messages(parts), tokenizer, prompts), tokenizer)


def _without_bos(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return ``text`` without the BOS at its start if the tokenizer will add one anyway."""
    if tokenizer.bos_token_id is None or tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return text
    return text.removeprefix(tokenizer.bos_token)


def _reply(
    parts: _Parts, text: str, tokenizer: "PreTrainedTokenizerBase", prompts: PuzzlePrompts, header: bool = False
) -> str:
    """Return the text that a reply adds to its prompt: the reply, then the end of the turn.

    White space after the end of the turn (ChatML has a newline) is removed, since generation has ended before it. With
    ``header`` it stays, and the header of a further assistant turn follows.

    Raises:
        DataError: the template writes a prompt differently once it has a reply, rewrites replies, or does not end them.
    """
    prompt = _render(_messages(parts), tokenizer, prompts)
    closed = _render(_messages(parts, text), tokenizer, prompts, generation=False)
    whole = _render(_messages(parts, text), tokenizer, prompts) if header else closed
    reply = closed.removeprefix(prompt)
    fault = ""
    if not closed.startswith(prompt) or not whole.startswith(closed):
        fault = "writes a prompt differently once it has a reply"
    elif not reply.lstrip().startswith(text.strip()):
        fault = "rewrites the assistant's text"
    elif reply.strip() == text.strip():
        fault = "does not end the assistant's turn"
    if fault:
        raise DataError(
            f"prompts {prompts.name!r}: the tokenizer's chat template {fault}, so training would not match generation; "
            "mend the template or use a set with chat: false, such as 'base'."
        )
    return whole.removeprefix(prompt) if header else reply.rstrip()


def _render(
    chat: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", prompts: PuzzlePrompts, generation: bool = True
) -> str:
    """Return the chat as the tokenizer's own template renders it, with the fixed date and the template's BOS, if any.

    Raises:
        DataError: the tokenizer has no template, or the template refuses the messages.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            f"prompts {prompts.name!r} is for chat models, but this tokenizer has no chat template; "
            "use a set with chat: false, such as 'base'."
        )
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation, **_VARIABLES)
    except TemplateError as error:
        raise DataError(
            f"prompts {prompts.name!r}: the tokenizer's chat template refuses the messages ({error}); "
            "use a set with chat: false, such as 'base'."
        ) from error
