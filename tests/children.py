"""Child processes of the tests: they import this checkout and its tests, whatever package is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with the checkout first on the path, and ``variables``."""
    paths = map(str, (CHECKOUT, CHECKOUT / "tests"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}


def run_python(*arguments: object, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` to its end, output as text; ``options`` are those of `subprocess.run`."""
    command = [sys.executable, *map(str, arguments)]
    options = {"env": environment(), **options}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


def start_python(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """``python ARGUMENTS`` in the background; its output is to be read from pipes."""
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    return subprocess.Popen(command, text=True, **{**pipes, **options})
