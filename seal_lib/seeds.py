"""Seeds of all random draws, derived from the run's seed, the unit's id and the purpose.

A unit therefore gets the same numbers whatever its batch, order or worker, and two purposes of one unit never share a
stream.
"""

import hashlib
import random


def derive_seed(*parts: object) -> int:
    """Derive a 63-bit seed from any printable parts, e.g. ``derive_seed(run_seed, passage.id, "sample", 3)``.

    The seed does not depend on ``PYTHONHASHSEED`` or on the platform.
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def rng(*parts: object) -> random.Random:
    """Return a ``random.Random`` seeded by `derive_seed`."""
    return random.Random(derive_seed(*parts))
