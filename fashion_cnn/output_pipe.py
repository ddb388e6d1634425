"""Standard output that someone else may stop reading, such as `head`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Exit without a word, as the system's own programs do, where whoever reads standard output has enough of it."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python writes what is left once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
