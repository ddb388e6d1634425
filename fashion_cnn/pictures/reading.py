"""Many picture files at once: threads decode ahead of whoever takes the pictures."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from fashion_cnn.pictures.decoding import UnreadablePictureError, decode
from fashion_cnn.pictures.preparation import Preparation

# Enough that the threads have work while a network looks at a batch.
_AHEAD = 1024

Read = Tensor | UnreadablePictureError
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_pictures(paths: Iterable[Path], preparation: Preparation) -> Generator[tuple[Path, Read]]:
    """Each file with its prepared picture `(C, H, W)` uint8, or with the reason why it has none, in the given order."""

    def read(path: Path) -> Read:
        try:
            return preparation(decode(path, enough=preparation.enough))
        except UnreadablePictureError as error:
            return error

    return read_ahead(paths, read)


def read_ahead(items: Iterable[Item], read: Callable[[Item], Result]) -> Generator[tuple[Item, Result]]:
    """Each item with what `read` makes of it, in the given order; threads do so ahead of whoever takes them."""
    # Pillow decodes and scales without holding Python's lock.
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
    try:
        left = iter(items)
        ahead: deque[tuple[Item, Future[Result]]] = deque()
        ahead.extend((item, pool.submit(read, item)) for item in islice(left, _AHEAD))
        while ahead:
            item, future = ahead.popleft()
            yield item, future.result()
            ahead.extend((item, pool.submit(read, item)) for item in islice(left, 1))
    finally:
        pool.shutdown(cancel_futures=True)
