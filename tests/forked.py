"""Work in a forked child that is not allowed to hang."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
from children import PATIENCE

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
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with os.fdopen(reader) as pipe:
                message = pipe.read()
            assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}: {message}"
            return message
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    return pytest.fail("the child hangs")
