"""Ctrl-C and SIGTERM as a request to stop, which the training loop answers between two iterations."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Inside its ``with`` block SIGINT and SIGTERM set ``made`` instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where Python allows no signal handlers,
    nothing is changed.
    """

    def __init__(self) -> None:
        self.made = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.made:
            raise KeyboardInterrupt
        self.made = True
