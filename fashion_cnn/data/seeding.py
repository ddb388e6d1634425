"""Independent random streams out of one seed."""

import random


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed that depends on all `parts`, such as a purpose, the run's seed and the epoch.

    The same in every process and Python version; neighbouring seeds give unrelated streams.
    """
    return random.Random("/".join(map(str, parts))).getrandbits(63)
