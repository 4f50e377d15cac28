"""Work in a forked child that is not allowed to hang."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

PATIENCE = 60
"""Seconds after which a child counts as hanging."""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def in_child(work: Callable[[], str]) -> str:
    """What ``work`` returns, or what it raises, in a forked child; the test fails where that hangs or dies."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            message = work()
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(writer, message.encode())
        os._exit(0)
    os.close(writer)
    for _ in range(PATIENCE * 50):
        if os.waitpid(child, os.WNOHANG)[0]:
            with os.fdopen(reader) as pipe:
                return pipe.read()
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    return pytest.fail("the child hangs")
