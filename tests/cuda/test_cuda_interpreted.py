"""The CUDA runtime's host code with the real kernels in Triton's interpreter, in a process of its own.

The interpreter must be chosen before triton is imported: the files of ``interpreted/`` are a pytest run of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).parent / "interpreted"


@pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
@pytest.mark.parametrize("check", sorted(path.stem for path in CHECKS.glob("check_*.py")))
def test_interpreted(check: str, which: str) -> None:
    if which == "slow" and "pytest.mark.slow" not in (CHECKS / f"{check}.py").read_text("utf-8"):
        pytest.skip("none of its checks is slow")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    command += ["-m", which, str(CHECKS / f"{check}.py")]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    report = f"{' '.join(command)}\n{ran.stdout}\n{ran.stderr}"
    assert ran.returncode == 0, report
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE), report
    assert "skipped" not in ran.stdout, report
