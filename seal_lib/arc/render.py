"""Tasks → the exact tokens a model reads and is trained on, for chat and plain prompt sets alike.

This module ensures:

* Inference and training share the prompt to the token: an answer is tokenised by itself and appended, so that the
  boundary lies where generation starts.
* One BOS. Prompts are texts that an engine tokenises (``tokenizer(prompt)``); where that adds a BOS, the one written by
  the chat template is taken off. A tokenizer that has none gets none.
* No clock. Templates that print today's date get a fixed one instead (the authors' prompts change from day to day).
* No pads, hence none in the loss: neither the bank nor `seal_lib.training.finetune.train_alone` pads to a common
  length with labels, as the released code does.

Protocol ``authors`` adds the two other quirks of the released training text, the second BOS and the trained assistant
header after the answer. Needs a tokenizer, never a model; torch is imported only where an example is made.
"""

from datetime import datetime
from typing import TYPE_CHECKING

from seal_lib.arc.augment import ARC_PROTOCOLS
from seal_lib.arc.examples import PuzzleExample
from seal_lib.arc.prompts import Prompts
from seal_lib.arc.tasks import Task
from seal_lib.errors import DataError
from seal_lib.models.tokens import read_ids
from seal_lib.training import jobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: which tokens carry loss, as in a self-edit's strategy
LOSS_ON = ("output", "all")
#: the day every prompt is written on; the one Llama-3's template falls back to
_DAY = datetime(2024, 7, 26)
#: variables for templates: a date instead of the clock's (a variable hides the function of the same name that
#: transformers offers), and, where they know the word, not to open a block of thoughts
_VARIABLES = {"date_string": "26 Jul 2024", "strftime_now": _DAY.strftime, "enable_thinking": False}

#: (what is said before, what is asked), from `Prompts`
_Parts = tuple[str, str]


def question_prompt(example: PuzzleExample, tokenizer: "PreTrainedTokenizerBase", prompts: Prompts) -> str:
    """The text that an answer is generated from; the target's output is not in it."""
    return _prompt(prompts.question(example), tokenizer, prompts)


def self_edit_prompt(task: Task, tokenizer: "PreTrainedTokenizerBase", prompts: Prompts) -> str:
    """The text that a self-edit is generated from: demonstrations only, never a test input."""
    return _prompt(prompts.write(task), tokenizer, prompts)


def prompt_ids(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of a prompt, exactly as the engines tokenise it."""
    return read_ids(prompt, tokenizer)


def completion_ids(task: Task, text: str, tokenizer: "PreTrainedTokenizerBase", prompts: Prompts) -> list[int]:
    """A written self-edit as training target: its tokens and those that end the turn (plain sets: EOS).

    Follows `prompt_ids` of `self_edit_prompt`, as the pairs of `seal_lib.training.finetune.sft` want
    it. White space around ``text`` is the template's to keep or trim.
    """
    if prompts.chat:
        return _tokens(_reply(prompts.write(task), text, tokenizer, prompts), tokenizer)
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no EOS token, so a self-edit cannot be ended; set tokenizer.eos_token.")
    return [*_tokens(text, tokenizer), tokenizer.eos_token_id]


def training_example(
    example: PuzzleExample,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Prompts,
    loss_on: str = "output",
    protocol: str = "clean",
) -> jobs.Example:
    """One training sequence: the prompt, then the answer up to its stop text (chat sets: and the end of the turn).

    Args:
        loss_on: ``output``: weight 1 on the answer's tokens, end of the turn included, and 0 before. ``all``: on all.
        protocol: ``authors``: as released, the sequence also ends in an empty assistant header that is in the loss, and
            starts with a second BOS where template and tokenizer both give one. Plain sets have no template and so
            are the same in either protocol.
    """
    if loss_on not in LOSS_ON:
        raise DataError(f"loss_on: {loss_on!r} is not one of {', '.join(LOSS_ON)}.")
    if protocol not in ARC_PROTOCOLS:
        raise DataError(f"protocol: {protocol!r} is not one of {', '.join(ARC_PROTOCOLS)}.")
    before, answer = _ids(example, tokenizer, prompts, protocol == "authors")
    first = 1.0 if loss_on == "all" else 0.0
    return jobs.Example([*before, *answer], weights=[first] * len(before) + [1.0] * len(answer))


def tokens(example: PuzzleExample, tokenizer: "PreTrainedTokenizerBase", prompts: Prompts) -> int:
    """Length of the clean training sequence in tokens, answer included; for limits on over-long tasks."""
    before, answer = _ids(example, tokenizer, prompts)
    return len(before) + len(answer)


def _ids(
    example: PuzzleExample, tokenizer: "PreTrainedTokenizerBase", prompts: Prompts, authors: bool = False
) -> tuple[list[int], list[int]]:
    """(tokens of the prompt, tokens of the answer)."""
    parts, answer = prompts.question(example), prompts.answer(example.target.output)
    if not prompts.chat:  # generation ends at the stop text, so no EOS is needed
        return prompt_ids("".join(parts), tokenizer), _tokens(answer, tokenizer)
    written = _render(_messages(parts), tokenizer, prompts)
    prompt = _without_bos(written, tokenizer)
    second = [tokenizer.bos_token_id] if authors and prompt != written else []
    reply = _reply(parts, answer, tokenizer, prompts, header=authors)
    return [*second, *prompt_ids(prompt, tokenizer)], _tokens(reply, tokenizer)


def _tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _messages(parts: _Parts, *reply: str) -> list[dict[str, str]]:
    said = zip(("system", "user", "assistant"), (*parts, *reply), strict=False)
    return [{"role": role, "content": text} for role, text in said]


def _prompt(parts: _Parts, tokenizer: "PreTrainedTokenizerBase", prompts: Prompts) -> str:
    if not prompts.chat:
        return "".join(parts)
    return _without_bos(_render(_messages(parts), tokenizer, prompts), tokenizer)


def _without_bos(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """``text`` without the BOS written at its start, if tokenising will put one there anyway."""
    if tokenizer.bos_token_id is None or tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return text
    return text.removeprefix(tokenizer.bos_token)


def _reply(
    parts: _Parts, text: str, tokenizer: "PreTrainedTokenizerBase", prompts: Prompts, header: bool = False
) -> str:
    """The text that a reply adds to its prompt: the reply, then the end of the turn.

    White space after the end of the turn (ChatML has a newline) is left off, since generation has ended before it.
    With ``header`` it stays and the header of a further assistant turn follows.

    Raises:
        DataError: the template writes a prompt otherwise once it has a reply, rewrites replies, or does not end them.
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
    chat: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", prompts: Prompts, generation: bool = True
) -> str:
    """The tokenizer's own template, with the date fixed; BOS as the template has it."""
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
