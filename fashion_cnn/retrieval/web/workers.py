"""A few threads for what takes the processor, and a short queue before them."""

from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from fashion_cnn.retrieval.web.refusals import Busy

Result = TypeVar("Result")


class Workers:
    """threads: so many pieces of work at once. waiting: so many more may wait; beyond them it is Busy at once, so that
    a crowd gets a quick refusal, where a long queue would make everyone wait for answers that nobody reads any more.
    """

    def __init__(self, *, threads: int, waiting: int) -> None:
        self._limiter = anyio.CapacityLimiter(threads)
        self._most = threads + waiting
        self._in_hand = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, in a thread. Raises Busy."""
        if self._in_hand >= self._most:
            raise Busy
        self._in_hand += 1
        try:
            return await run_sync(work, limiter=self._limiter)
        finally:
            self._in_hand -= 1
