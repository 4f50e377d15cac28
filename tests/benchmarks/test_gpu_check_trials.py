"""The GPU check's comparisons in Triton's interpreter, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILES = Path(__file__).parent / "interpreted"
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_comparisons_pass_what_is_right_and_find_what_is_planted(which):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    ran = subprocess.run(
        [*command, "-m", which, str(FILES)], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=1200
    )
    report = f"{ran.stdout}\n{ran.stderr}"
    assert ran.returncode == 0, report
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE), report
    assert "skipped" not in ran.stdout, report
