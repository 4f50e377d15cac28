"""Every kernel against its plain reference, in Triton's interpreter.

The interpreter must be chosen before triton is imported, for the whole process: the files of ``interpreted/`` are a
pytest run of their own.
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
def test_kernels_agree_with_their_references(which):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    command += ["-m", which, str(CHECKS)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    report = f"{' '.join(command)}\n{ran.stdout}\n{ran.stderr}"
    assert ran.returncode == 0, report
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE), report
    assert "skipped" not in ran.stdout, report


def test_every_module_with_kernels_has_its_check():
    kernels = Path(__file__).parents[2] / "kernels"
    modules = {path.stem for path in kernels.glob("*.py") if "@triton.jit" in path.read_text("utf-8")}
    assert len(modules) >= 6
    assert {path.stem.removeprefix("check_") for path in CHECKS.glob("check_*.py")} == modules
