"""The CUDA runtime's host code with the real kernels in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interpreter import NEEDED, run_checks, runs


@NEEDED
@pytest.mark.parametrize(("path", "which"), runs(Path(__file__).parent / "interpreted"))
def test_interpreted(path: Path, which: str) -> None:
    run_checks(path, which)
