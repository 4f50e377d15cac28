"""The real cuda-bindings, and the real pycuda where it is installed, on a driver library made for the test.

Processes of their own: the driver library is found when a process starts.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="a C compiler on Linux makes the driver"),
    pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver"),
]


def run(folder: Path, which: str, rest: str) -> subprocess.CompletedProcess[str]:
    """on_fake_driver.py with the driver in ``folder``; ``rest`` are the functions that only exist."""
    (folder / "fake_driver_rest.h").write_text(rest, "utf-8")
    library = folder / "libcuda.so.1"
    command = [str(COMPILER), "-shared", "-fPIC", "-w", f"-I{folder}", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, str(HERE / "fake_driver.c"), "-o", str(library), "-ldl"], check=True)
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    found = {"LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(library), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-W", "error::UserWarning", str(HERE / "on_fake_driver.py"), which]
    return subprocess.run(script, capture_output=True, text=True, env=os.environ | found, timeout=300)


def test_cuda_bindings(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver")
    ran = run(tmp_path, "bindings", "")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "as it should be\n", "")


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="pycuda is not installed")
def test_pycuda(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("pycuda")
    assert spec is not None
    ((module,),) = [list(Path(place).glob("_driver*.so")) for place in spec.submodule_search_locations or ()]
    symbols = subprocess.run(["nm", "-D", "--undefined-only", str(module)], capture_output=True, text=True, check=True)
    wanted = {line.split()[-1] for line in symbols.stdout.splitlines() if line.split()[-1].startswith("cu")}
    source = (HERE / "fake_driver.c").read_text("utf-8")
    rest = [
        name for name in sorted(wanted) if f" {name}(" not in source and f"V2({name.removesuffix('_v2')}," not in source
    ]
    ran = run(tmp_path, "pycuda", "".join(f"NONE({name})\n" for name in rest))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "as it should be\n", "")
