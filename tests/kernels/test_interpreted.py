"""Every kernel against its plain reference, in Triton's interpreter.

The interpreter must be chosen before triton is imported, for the whole process: each file of ``interpreted/`` is a
pytest run of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = sorted((Path(__file__).parent / "interpreted").glob("check_*.py"))


@pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")
@pytest.mark.parametrize("path", CHECKS, ids=[path.stem.removeprefix("check_") for path in CHECKS])
def test_kernels_agree_with_their_references(path):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=check_*.py", path]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert ran.returncode == 0, f"{' '.join(map(str, command))}\n{ran.stdout}\n{ran.stderr}"


def test_there_is_a_check_of_every_kernel_module():
    modules = {"region_pool", "attention", "gather_windows", "accumulate", "finish", "device"}
    assert {path.stem.removeprefix("check_") for path in CHECKS} == modules
