"""One rule for every random draw: a seed comes from the run's seed, the unit's id and the purpose.

So the same unit gets the same numbers whatever its batch, order or worker, and two purposes of one unit never share
a stream.
"""

import hashlib
import random


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts, e.g. ``derive_seed(run_seed, passage.id, "sample", 3)``.

    Independent of ``PYTHONHASHSEED`` and of the platform.
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def rng(*parts: object) -> random.Random:
    """A ``random.Random`` seeded by `derive_seed`."""
    return random.Random(derive_seed(*parts))
