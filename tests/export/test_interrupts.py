"""Ctrl-C while a library is at work that catches every exception."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable

import pytest

from isnet_trt.export.interrupts import interruptible


def swallow() -> None:
    """What torch's exporter does with it, and every destructor."""
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


def test_a_lost_interrupt_is_raised_at_the_end() -> None:
    before = signal.getsignal(signal.SIGINT)
    done = []

    def work() -> None:
        with interruptible():
            swallow()
            done.append("the library went on")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_became_another_error_is_one_again() -> None:
    def fail(before: Callable[[], None]) -> None:
        with interruptible():
            before()
            raise AttributeError("module 'torch._dynamo' has no attribute 'exc'")

    with pytest.raises(KeyboardInterrupt):
        fail(swallow)
    with pytest.raises(AttributeError):
        fail(lambda: None)


def test_nothing_changes_elsewhere() -> None:
    with interruptible():
        pass
    seen = []
    before = signal.getsignal(signal.SIGINT)

    def run() -> None:
        with interruptible():
            seen.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]
