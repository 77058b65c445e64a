"""Fills the slots of a prompt template."""


def fill(template: str, **values: str) -> str:
    """Replace ``{slot}`` by value, once each; braces inside values stay as they are."""
    pieces = [template]
    for slot, value in values.items():
        pieces = [part for piece in pieces for part in _split(piece, "{" + slot + "}", value)]
    return "".join(str(piece) for piece in pieces)


class _Value(str):
    """Text already filled in; never searched for slots again."""


def _split(piece: str, slot: str, value: str) -> list[str]:
    if isinstance(piece, _Value):
        return [piece]
    head, *rest = piece.split(slot)
    return [head] + [part for tail in rest for part in (_Value(value), tail)]
