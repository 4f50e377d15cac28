"""How long ONNX Runtime may compute one batch: a graph with a loop may never end, and Ctrl-C does not reach it."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from isnet_trt.errors import SettingsError, TimeLimitExceeded

LIMIT_VARIABLE = "ISNET_TRT_MAX_SECONDS"
"""Environment variable: the longest run of a network that has a loop, in seconds."""
_DEFAULT = 300


def time_limit() -> int:
    """Seconds of `LIMIT_VARIABLE`, or 300.

    Raises:
        SettingsError: the variable is no whole number from 1 to 999999.
    """
    text = os.environ.get(LIMIT_VARIABLE, "") or str(_DEFAULT)
    if not re.fullmatch(r"[1-9]\d{0,5}", text, re.ASCII):
        raise SettingsError(f"{LIMIT_VARIABLE} is {text!r}; write a whole number of seconds from 1 to 999999")
    return int(text)


@contextmanager
def limited(options: Any) -> Iterator[None]:
    """A run of ONNX Runtime with the RunOptions ``options``, which is ended at the limit.

    Raises:
        TimeLimitExceeded: it was.
    """
    seconds = time_limit()
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:  # ONNX Runtime's exceptions have no base class of their own
        if not options.terminate:
            raise
        raise TimeLimitExceeded(
            f"the network was still running after {seconds} s and was ended: does a Loop in its graph end? If it only "
            f"takes long, set {LIMIT_VARIABLE} to more seconds"
        ) from None
    finally:
        timer.cancel()
        timer.join()
        options.terminate = False
