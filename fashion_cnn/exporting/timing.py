"""How long one image takes."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def latencies(answers: Mapping[str, Callable[[], Any]], *, rounds: int = 5, times: int = 100) -> dict[str, float]:
    """Median seconds of each call; they take turns, so that a busy machine treats them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in answers}
    for round_number in range(rounds + 1):
        for name, answer in answers.items():
            for _ in range(times if round_number else 10):
                started = time.perf_counter()
                answer()
                if round_number:
                    seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
