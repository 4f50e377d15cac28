"""Submit the next items before the results of the first are collected."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from isnet_trt.errors import EngineError

Item = TypeVar("Item")
Job = TypeVar("Job")
Result = TypeVar("Result")


def prefetch(
    items: Iterable[Item], submit: Callable[[Item], Job], collect: Callable[[Job], Result], depth: int
) -> Iterator[Result]:
    """Yield ``collect(submit(item))`` of each item, in order, with up to ``depth`` further items submitted.

    An exception is raised where the item's result would have come, after all results before it. Every submitted job
    is collected, also when the iterator is closed early.
    """
    jobs: deque[Job] = deque()
    failure: Exception | None = None
    source = iter(items)
    try:
        while failure is None:
            try:
                jobs.append(submit(next(source)))
            except StopIteration:
                break
            except Exception as error:
                failure = error
            if len(jobs) > depth:
                yield collect(jobs.popleft())
        while jobs:
            yield collect(jobs.popleft())
    finally:
        while jobs:
            # After an early end nobody takes the results, but collecting gives their memory back.
            with suppress(EngineError):
                collect(jobs.popleft())
    if failure is not None:
        raise failure
