"""Load items in threads ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(load: Callable[[int], T], indices: Iterable[int], readers: int) -> Iterator[tuple[int, Future[T]]]:
    """Each index with its ``load(index)``, in order; ``readers`` threads load as many items ahead.

    Reading and resizing release Python's lock. ``result()`` raises what loading raised.
    """
    with ThreadPoolExecutor(readers) as pool:
        waiting: deque[tuple[int, Future[T]]] = deque()
        try:
            for index in indices:
                waiting.append((index, pool.submit(load, index)))
                if len(waiting) > readers:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()
