"""Runs scripts of the tests on the driver library that is made from tests/cuda/fake_driver.c."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from children import environment, run_python

SOURCE = Path(__file__).parent / "cuda" / "fake_driver.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")
NEEDED = [
    pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="a C compiler on Linux makes the driver"),
    pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver"),
]


def compile_driver(folder: Path, rest: str = "") -> dict[str, str]:
    """Compile the driver into ``folder``; returns the environment of a process that is to have it.

    ``rest`` are the functions that only exist.
    """
    (folder / "fake_driver_rest.h").write_text(rest, "utf-8")
    library = folder / "libcuda.so.1"
    command = [str(COMPILER), "-shared", "-fPIC", "-w", f"-I{folder}", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, str(SOURCE), "-o", str(library), "-ldl"], check=True)
    return {"LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}


def run(
    folder: Path, script: Path, *arguments: str, rest: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """``script`` with the driver in ``folder``; see `compile_driver` for ``rest``."""
    variables = {**compile_driver(folder, rest), **variables}
    return run_python("-W", "error::UserWarning", script, *arguments, env=environment(**variables), timeout=300)
