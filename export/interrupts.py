"""Ctrl-C while a library is at work that may lose it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C inside ends the block with KeyboardInterrupt, at its end at the latest.

    torch's exporter, and whatever runs in a destructor, catch the exception, go on or fail with another one. Works on
    the main thread, the only one that may look at signals; elsewhere nothing changes.

    Raises:
        KeyboardInterrupt: the user asked for it.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        if asked:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt
