"""Triton's interpreter, which must be chosen before triton is imported, for a whole process: files ``check_*.py`` are
pytest runs of their own, started by tests through `run_checks`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NEEDED = pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")


def runs(folder: Path) -> list[Any]:
    """(file, marker) of every run of a folder's checks; only some files have slow ones."""
    params = []
    for path in sorted(folder.glob("check_*.py")):
        params.append(pytest.param(path, "not slow", id=path.stem))
        if "pytest.mark.slow" in path.read_text("utf-8"):
            params.append(pytest.param(path, "slow", id=f"{path.stem}-slow", marks=pytest.mark.slow))
    return params


def run_checks(path: Path, which: str) -> None:
    """Run the checks of a file that the marker expression ``which`` chooses; none may fail or be skipped."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    command += ["-m", which, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, cwd=ROOT)
    report = f"{' '.join(command)}\n{ran.stdout}\n{ran.stderr}"
    assert ran.returncode == 0, report
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE), report
    assert "skipped" not in ran.stdout, report


def use_interpreter() -> None:
    """Check that `run_checks` started this process; one thread; round fused multiply-adds once, as a GPU does."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "run this file through the test that starts its own process"
    import torch
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    torch.set_num_threads(1)

    def fma(builder: Any, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        total = x.data.astype(np.float64) * y.data + z.data
        return TensorHandle(total.astype(z.data.dtype), z.dtype.scalar)

    # Interpreters up to Triton 3.7 at least round the product as well; that of 3.9 does not and stays as it is.
    factor, term = (TensorHandle(np.float32([v]), tl.float32) for v in (1 + 2**-12, -1 - 2**-11))
    if InterpreterBuilder.create_fma(InterpreterBuilder(), factor, factor, term).data[0] != 2**-24:
        InterpreterBuilder.create_fma = fma
