"""Many picture files at once: threads decode ahead of whoever takes the pictures."""

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from torch import Tensor

from fashion_cnn.pictures.decoding import UnreadablePictureError, decode
from fashion_cnn.pictures.preparation import Preparation

# Enough that the threads have work while a network looks at a batch.
_AHEAD = 1024

Read = Tensor | UnreadablePictureError


def read_pictures(paths: Iterable[Path], preparation: Preparation) -> Generator[tuple[Path, Read]]:
    """Each file with its prepared picture `(C, H, W)` uint8, or with the reason why it has none, in the given order."""

    def read(path: Path) -> Read:
        try:
            return preparation(decode(path, enough=preparation.enough))
        except UnreadablePictureError as error:
            return error

    # Pillow decodes and scales without holding Python's lock.
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
    try:
        left = iter(paths)
        ahead: deque[tuple[Path, Future[Read]]] = deque()
        ahead.extend((path, pool.submit(read, path)) for path in islice(left, _AHEAD))
        while ahead:
            path, future = ahead.popleft()
            yield path, future.result()
            ahead.extend((path, pool.submit(read, path)) for path in islice(left, 1))
    finally:
        pool.shutdown(cancel_futures=True)
