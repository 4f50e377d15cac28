"""The real cuda-bindings, and the real pycuda where it is installed, on a driver library made for the test.

Processes of their own: the driver library is found when a process starts.
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import fake_libcuda
import pytest
from children import explained

HERE = Path(__file__).parent
pytestmark = fake_libcuda.NEEDED


def check(folder: Path, backend: str, rest: str = "") -> None:
    """on_fake_driver.py; ``rest`` are the functions that only exist."""
    ran = fake_libcuda.run(folder, HERE / "on_fake_driver.py", backend, rest=rest)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "as it should be\n", ""), explained(ran)


def test_cuda_bindings(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver")
    check(tmp_path, "cuda-bindings")


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="pycuda is not installed")
def test_pycuda(tmp_path: Path) -> None:
    check(tmp_path, "pycuda", "".join(f"NONE({name})\n" for name in _unimplemented()))


def _unimplemented() -> list[str]:
    """Driver functions that pycuda is linked to and that fake_driver.c lacks."""
    spec = importlib.util.find_spec("pycuda")
    assert spec is not None
    ((module,),) = [list(Path(place).glob("_driver*.so")) for place in spec.submodule_search_locations or ()]
    symbols = subprocess.run(["nm", "-D", "--undefined-only", str(module)], capture_output=True, text=True, check=True)
    linked = {line.split()[-1] for line in symbols.stdout.splitlines() if line.split()[-1].startswith("cu")}
    source = (HERE / "fake_driver.c").read_text("utf-8")
    return [
        name for name in sorted(linked) if f" {name}(" not in source and f"V2({name.removesuffix('_v2')}," not in source
    ]
