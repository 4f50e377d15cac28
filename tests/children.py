"""Child processes of the tests: they import this checkout and its tests, whatever package is installed."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
PATIENCE = 600
"""Seconds after which something counts as hanging: many times what it takes on the slowest and busiest machine."""
_LAST = 8000
"""Characters of an output that a message shows."""


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with the checkout first on the path, and ``variables``."""
    paths = map(str, (CHECKOUT, CHECKOUT / "tests"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}


def run_python(
    *arguments: object, timeout: float = PATIENCE, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` to its end, output as text; ``options`` are those of `subprocess.run`."""
    command = [sys.executable, *map(str, arguments)]
    options = {"env": environment(), **options}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    assert not check or ran.returncode == 0, explained(ran)
    return ran


def start_python(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """``python ARGUMENTS`` in the background; its output is to be read from pipes."""
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    return subprocess.Popen(command, text=True, **{**pipes, **options})


def explained(ran: subprocess.CompletedProcess[str] | subprocess.CalledProcessError | subprocess.TimeoutExpired) -> str:
    """Command, exit status and output of a process, as the message of an assertion about it."""
    command = ran.args if isinstance(ran, subprocess.CompletedProcess) else ran.cmd
    lines = [command if isinstance(command, str) else shlex.join(map(str, command))]
    lines.append(f"exit status {getattr(ran, 'returncode', 'none: it took too long')}")
    for name, output in (("stdout", ran.stdout), ("stderr", ran.stderr)):
        text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
        lines.append(f"--- {name}\n{text[-_LAST:]}")
    return "\n".join(lines)


def wait_until(
    condition: Callable[[], bool], reason: Callable[[], object] = lambda: "", interval: float = 0.01
) -> None:
    """Wait for the condition; the test fails with the ``reason`` if it does not come to hold."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, reason()
        time.sleep(interval)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens at.

    They lie below those that Linux gives to connections and to listeners at port 0 (from 32768 on), so that no other
    process is given one before the test's server listens at it.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            ports.append(port)
    return ports
