"""What a reasoning model says before it answers is no part of what it wrote."""

import re

_NAMES = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad)"
_OPEN, _CLOSE = rf"[<\[◁]\s*{_NAMES}\s*[>\]▷]", rf"[<\[◁]\s*/\s*{_NAMES}\s*[>\]▷]"
_MARK = re.compile(rf"({_OPEN})|{_CLOSE}", re.IGNORECASE)


def without_thoughts(text: str) -> tuple[str, int]:
    """(the text without ``<think>…</think>``, how many such blocks were taken out); ``[THINK]`` and the like too.

    A block that is never closed was cut by the limit of tokens: all after it goes. A close without an opening, which
    the prompt held, ends a block that began with the text.
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
        else:  # closes what nothing in the text opened
            kept, count = "", count + 1
        at = mark.end()
    return (kept if depth else kept + text[at:]), count
