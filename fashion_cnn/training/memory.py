"""How the C library hands out the memory of the activations, which come and go with every step."""

import ctypes
import sys

# The numbers of glibc's <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next step; whether it could be told so.

    Else it gives large blocks back to the system, which zeroes them anew, page by page, for each step: on two
    cores that took a third of the training of `model=baseline`, a sixth of `model=small`. Costs some 60 MB.
    Without effect where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_TRIM_THRESHOLD, -1) and mallopt(_M_MMAP_MAX, 0))
