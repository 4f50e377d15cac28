"""Builds the C library and the C and C++ programs of the tests and examples with CMake, and runs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from children import environment, explained

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
TOOLS = ("cmake", "cc", "c++")
WARNINGS = ("-DCMAKE_C_FLAGS=-Wall -Wextra -Werror", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Werror")

needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)) or not (Path(sysconfig.get_path("include")) / "Python.h").is_file(),
    reason=f"{', '.join(TOOLS)} or Python's headers are not installed here",
)


def build(source: Path, folder: Path, *options: str) -> Path:
    """Build the CMake project ``source`` in ``folder``; return ``folder``."""
    configure = ["cmake", "-S", source, "-B", folder, f"-DPython3_EXECUTABLE={sys.executable}", *options]
    for command in (configure, ["cmake", "--build", folder, "--parallel", "2"]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, explained(result)
    return folder


def run(program: Path, *arguments: object, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with `children.environment`; a variable of None is not set."""
    command = [str(program), *map(str, arguments)]
    env = {name: value for name, value in {**environment(), **variables}.items() if value is not None}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=env)


def answers(program: Path, *arguments: object, **variables: str) -> list[tuple[int, str]]:
    """The (status, message) lines that a program prints; it must end with status 0 and leave stderr empty."""
    result = run(program, *arguments, **variables)
    assert (result.returncode, result.stderr) == (0, ""), explained(result)
    pairs = [line.partition(" ") for line in result.stdout.splitlines()]
    return [(int(status), message) for status, _, message in pairs]
