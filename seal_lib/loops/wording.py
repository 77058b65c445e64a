"""Prompt templates: fill the slots of a text."""


def fill(template: str, **values: str) -> str:
    """Replace every ``{slot}`` by its value; braces inside values stay as they are."""
    pieces = [template]
    for slot, value in values.items():
        pieces = [part for piece in pieces for part in _split(piece, "{" + slot + "}", value)]
    return "".join(str(piece) for piece in pieces)


class _Value(str):
    """A value that was filled in, which is not searched for slots again."""


def _split(piece: str, slot: str, value: str) -> list[str]:
    if isinstance(piece, _Value):
        return [piece]
    head, *rest = piece.split(slot)
    return [head] + [part for tail in rest for part in (_Value(value), tail)]
