"""Seconds of work on the GPU by its own events, through PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import stats

Work = Callable[[int], object]
"""Queues work on the current stream; takes the number of the call, so that inputs may differ from call to call."""
ROUNDS, WARM = 15, 3
WARM_SECONDS = 0.2
"""Work goes on at least this long before it is timed: an idle GPU has clocked itself down, and takes some hundredth of
a second to be back at its full clock."""
HELD = 50_000_000
"""Cycles for which a stream is held, some 30 ms: what is queued meanwhile then runs without gaps."""
LEAST_SECONDS = 2e-3
"""A round lasts at least this long, far above what the events resolve (0.5 µs, CUDA runtime API, event management)."""


def seconds(work: Work, rounds: int | None = None, captured: bool = True) -> stats.Spread:
    """The spread over ``rounds`` of the seconds of one call, after `warm`.

    ``captured``: calls are replayed from a CUDA graph, so that Python's own time per launch does not count; work that
    a graph cannot hold is timed as it is queued.
    """
    warm(work)
    calls = max(1, min(200, round(LEAST_SECONDS / max(once(work, 0), 1e-7))))
    replay = _graph(work, calls) if captured else lambda: [work(number) for number in range(calls)]
    replay()
    return stats.spread([once(lambda _: replay(), number) / calls for number in range(rounds or ROUNDS)])


def captured(work: Work) -> Work:
    """One call, replayed from a CUDA graph."""
    warm(work)
    replay = _graph(work, 1)
    return lambda _: replay()


def warm(work: Work) -> None:
    """Call and wait for it, a few times and for `WARM_SECONDS`."""
    end, number = time.perf_counter() + WARM_SECONDS, 0
    while number < WARM or time.perf_counter() < end:
        work(number)
        torch.cuda.synchronize()
        number += 1


def hold(stream: Any) -> None:
    """Keep a stream busy, so that what is queued next does not wait for Python between one launch and the other."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(HELD)


def once(work: Work, number: int) -> float:
    """Seconds of one call, by events around it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work(number)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _graph(work: Work, calls: int) -> Callable[[], Any]:
    """``calls`` calls as one CUDA graph; PyTorch captures on a stream of its own, which is current meanwhile."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(calls):
            work(number)
    return graph.replay


def sets(size: int, cache: int) -> int:
    """How many input sets of ``size`` bytes to take in turn, so that none is still in a cache of ``cache`` bytes."""
    return max(1, min(16, -(-2 * cache // max(size, 1))))
