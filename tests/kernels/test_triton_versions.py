"""All kernels compiled with another version of Triton than the one installed; run by ``make test-triton``.

TRITON_SITE is the folder of that version, as ``pip install --target`` makes it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from children import explained

from isnet_trt.cuda.architectures import KERNEL_TARGETS

SITE = os.environ.get("TRITON_SITE", "")
ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SITE, reason="TRITON_SITE is not set (make test-triton)")]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Python with the other Triton before the one installed."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join((SITE, str(ROOT)))
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=1800)


def test_it_is_the_other_version() -> None:
    ran = run("-c", "import triton; print(triton.__file__)")
    assert Path(ran.stdout.strip()).is_relative_to(Path(SITE).resolve()), ran.stderr


@pytest.mark.parametrize("arch", KERNEL_TARGETS)
def test_the_kernels_of_150_classes_compile_without_a_spill(arch: int, tmp_path: Path) -> None:
    options = ("--classes", "150", "--jobs", str(os.cpu_count() or 1), "--out", str(tmp_path))
    ran = run("-m", "isnet_trt.kernels.compile", "--arch", f"sm_{arch}", *options)
    assert ran.returncode == 0, explained(ran)
    assert (tmp_path / f"sm_{arch}" / "launch.json").is_file()


def test_the_attention_with_specialised_warps_compiles() -> None:
    ran = run("-m", "isnet_trt.kernels.compile", "--arch", "sm_90", "--only", "attention_specialised")
    assert ran.returncode == 0, explained(ran)
