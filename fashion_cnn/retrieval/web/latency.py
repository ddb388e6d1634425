"""How long searches take, by stage: of the newest ones, in memory."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

STAGES = ("decode", "embed", "search", "attributes and thumbnails")
TOTAL = "total"


@dataclass
class Stopwatch:
    """milliseconds: of each stage of one search that was measured."""

    milliseconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measuring(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.milliseconds[stage] = (time.perf_counter() - begun) * 1000


@dataclass(frozen=True)
class Percentiles:
    """Of the newest searches that had this stage, in milliseconds."""

    stage: str
    count: int
    p50: float
    p95: float


class Latencies:
    """The newest `most` searches."""

    def __init__(self, most: int = 2000) -> None:
        self._by_stage: dict[str, deque[float]] = {stage: deque(maxlen=most) for stage in (*STAGES, TOTAL)}

    def add(self, watch: Stopwatch) -> None:
        for stage, milliseconds in watch.milliseconds.items():
            self._by_stage[stage].append(milliseconds)
        self._by_stage[TOTAL].append(sum(watch.milliseconds.values()))

    def totals(self) -> list[float]:
        return list(self._by_stage[TOTAL])

    def percentiles(self) -> list[Percentiles]:
        """Of each stage that any search had, the total last."""
        return [
            Percentiles(stage, len(values), _percentile(values, 0.5), _percentile(values, 0.95))
            for stage, values in ((stage, sorted(ring)) for stage, ring in self._by_stage.items())
            if values
        ]


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
