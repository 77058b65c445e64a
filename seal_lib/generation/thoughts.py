"""Remove the reasoning that a model writes before its answer."""

import re

_NAMES = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad)"
_OPEN, _CLOSE = rf"[<\[◁]\s*{_NAMES}\s*[>\]▷]", rf"[<\[◁]\s*/\s*{_NAMES}\s*[>\]▷]"
_MARK = re.compile(rf"({_OPEN})|{_CLOSE}", re.IGNORECASE)


def without_thoughts(text: str) -> tuple[str, int]:
    """Return the text without its ``<think>…</think>`` blocks (or ``[THINK]`` and similar marks), and their number.

    A block that is never closed was cut off by the token limit, so the rest of the text is removed. A closing mark
    without an opening one ends a block that began with the text: the opening mark was in the prompt.
    """
    if not (marks := list(_MARK.finditer(text))):
        return text, 0
    kept, depth, count, at = "", 0, 0, 0
    for mark in marks:
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
