"""Reduce a model's output to its answer: remove the reasoning before it and any text after the end of its turn."""

import re

_NAMES = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad|analysis)"
_OPEN = rf"[<\[◁]\s*{_NAMES}\s*[>\]▷]|<\|(?:begin_of_thought|START_THINKING)\|>|<\|channel>thought"
_CLOSE = rf"[<\[◁]\s*/\s*{_NAMES}\s*[>\]▷]|<\|(?:end_of_thought|END_THINKING)\|>|<channel\|>"
_MARK = re.compile(rf"({_OPEN})|{_CLOSE}", re.IGNORECASE)
#: gpt-oss names the channel of each message, by control tokens or, where a tokenizer removed them, by words alone
_CHANNEL = re.compile(r"<\|channel\|>(?:analysis|commentary)|\A(?:analysis|commentary)(?=[A-Z])")
_FINAL = re.compile(r"<\|channel\|>final[^<\n]*<\|message\|>|assistantfinal")
#: control tokens that begin a turn, with its role, or end it, for tokenizers that leave them in the text
_BEGIN = re.compile(
    r"\s*(?:<\|(?:im_start|start|start_header_id)\|>|<start_of_turn>|<\|turn>)?(?:assistant|model)?"
    r"(?:<\|(?:end_header_id|message|assistant)\|>|(?<=assistant)\n|(?<=model)\n)"
)
_END = re.compile(
    r"<\|(?:im_end|im_start|eot_id|eom_id|end_of_text|endoftext|end_of_turn|end|return|call|start_header_id|user|turn"
    r"|END_OF_TURN_TOKEN|END_RESPONSE)\|>|<(?:end_of_turn|start_of_turn|turn\||eos)>|<\|turn>|</s>|<｜end▁of▁sentence｜>"
)


def without_thoughts(text: str) -> tuple[str, int]:
    """Return the text without reasoning and without what follows the model's turn, and the number of blocks removed.

    Reasoning is ``<think>…</think>`` and similar marks (``[THINK]``, …), and the channels of gpt-oss other than the
    final one. What follows the end of the turn counts as a block if it holds a letter or a digit.

    A block that is never closed was cut off by the token limit, so the rest of the text is removed. A closing mark
    without an opening one ends a block that began with the text: the opening mark was in the prompt.
    """
    text, channels = _said(text)
    text, turns = _own_turn(text)
    kept, depth, count, at = "", 0, channels + turns, 0
    for mark in _MARK.finditer(text):
        if mark[1]:
            if not depth:
                kept += text[at : mark.start()]
                count += 1
            depth += 1
        elif depth:
            depth -= 1
        else:  # a closing mark without an opening one
            kept, count = "", count + 1
        at = mark.end()
    return (kept if depth else kept + text[at:]), count


def _said(text: str) -> tuple[str, int]:
    """Return (the text of the final channel, 1) for a text in gpt-oss channels, otherwise (the text, 0).

    The final channel is what follows its last mark, "" without such a mark. A text without other channels only loses a
    final mark at its start.
    """
    if not _CHANNEL.search(text):
        last = _FINAL.match(text)
        return (text[last.end() :] if last else text), 0
    return ([text[mark.end() :] for mark in _FINAL.finditer(text)] or [""])[-1], 1


def _own_turn(text: str) -> tuple[str, int]:
    """Return the text before the first control token that ends a turn, and 1 if anything is said after it, else 0.

    The control tokens that begin the turn are removed too.
    """
    begin = _BEGIN.match(text)
    text = text[begin.end() :] if begin else text
    end = _END.search(text)
    if not end:
        return text, 0
    return text[: end.start()], int(any(character.isalnum() for character in _END.sub("", text[end.end() :])))
