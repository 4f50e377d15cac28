"""Work on several things at once, answers in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from isnet_trt.errors import EngineError

Thing = TypeVar("Thing")
Begun = TypeVar("Begun")
Answer = TypeVar("Answer")


def in_turn(
    things: Iterable[Thing], begin: Callable[[Thing], Begun], finish: Callable[[Begun], Answer], ahead: int
) -> Iterator[Answer]:
    """``finish(begin(thing))`` of each, with up to ``ahead`` more begun before one is finished.

    What fails is raised where its answer would have come, after all answers before it. What was begun is finished in
    any case, also when nobody asks for more.
    """
    waiting: deque[Begun] = deque()
    failure: Exception | None = None
    source = iter(things)
    try:
        while failure is None:
            try:
                waiting.append(begin(next(source)))
            except StopIteration:
                break
            except Exception as error:
                failure = error
            if len(waiting) > ahead:
                yield finish(waiting.popleft())
        while waiting:
            yield finish(waiting.popleft())
    finally:
        while waiting:
            with suppress(EngineError):
                finish(waiting.popleft())
    if failure is not None:
        raise failure
