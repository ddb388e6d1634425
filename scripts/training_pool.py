"""Trainings of a study in processes of their own, each on one thread."""

import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TypeVar

Job = TypeVar("Job", bound=tuple[Any, ...])


def run_in_processes(
    function: Callable[..., Any], jobs: Sequence[Job], processes: int
) -> Generator[tuple[int, Job, Any]]:
    """Call `function(*job)` for each job. When the iterator is closed, the trainings that are running are ended.

    Args:
        function: a function of a module, which imports torch only when it is called.
        jobs: arguments of the calls.
        processes: calls at a time.

    Yields:
        The number of calls that are done, from 1, and the job and the result of the last of them.
    """
    # Read by torch when a process imports it.
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),)
    )
    try:
        futures = {pool.submit(function, *job): job for job in jobs}
        for number, future in enumerate(as_completed(futures), start=1):
            yield number, futures[future], future.result()
    except BaseException:
        # Trainings that have started are lost: they would keep the command waiting.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        raise
    pool.shutdown()


def _end_with(parent: int) -> None:
    """End this process when the command that started it is gone, so that no training goes on alone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
