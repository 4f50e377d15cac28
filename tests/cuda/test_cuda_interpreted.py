"""The CUDA runtime's host code with the real kernels in Triton's interpreter, in a process of its own.

The interpreter must be chosen before triton is imported: the files of ``interpreted/`` are a pytest run of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHECKS = Path(__file__).parent / "interpreted"


def cases() -> Iterator[Any]:
    """(file, marker) of every run; only some files have slow checks."""
    for path in sorted(CHECKS.glob("check_*.py")):
        yield path.stem, "not slow"
        if "pytest.mark.slow" in path.read_text("utf-8"):
            yield pytest.param(path.stem, "slow", marks=pytest.mark.slow)


@pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")
@pytest.mark.parametrize(("check", "which"), list(cases()))
def test_interpreted(check: str, which: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    command += ["-m", which, str(CHECKS / f"{check}.py")]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    report = f"{' '.join(command)}\n{ran.stdout}\n{ran.stderr}"
    assert ran.returncode == 0, report
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE), report
    assert "skipped" not in ran.stdout, report
