"""Wall-clock time of calls, and rounds in which several are interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def interleaved(runs: Sequence[Callable[[], T]], rounds: Iterable[int], label: str) -> list[list[T]]:
    """Results of each callable: every round calls each one once, rounds of odd number in reverse order.

    A drift of the machine's speed then favours none of them.
    """
    samples: list[list[T]] = [[] for _ in runs]
    pairs = list(zip(runs, samples, strict=True))
    for number in tqdm(rounds, desc=label, unit="round", disable=None, leave=False):
        for run, results in reversed(pairs) if number % 2 else pairs:
            results.append(run())
    return samples


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
