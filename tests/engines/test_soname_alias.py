"""A second name for a loaded library, each case in a process of its own."""

from __future__ import annotations

import platform
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from children import CHECKOUT, explained, run_python
from marks import builds_rtx

from isnet_trt.engines.soname_alias import alias_object, load_alias

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="no second names here"
)

MATHS = """
import ctypes
from isnet_trt.engines.soname_alias import load_alias
try:
    ctypes.CDLL("libnumbers.so")
except OSError:
    load_alias("libnumbers.so", "libm.so.6")
cosine = ctypes.CDLL("libnumbers.so").cos
cosine.restype, cosine.argtypes = ctypes.c_double, [ctypes.c_double]
assert cosine(0.0) == 1.0
"""


def test_a_library_answers_to_its_second_name() -> None:
    ran = run_python("-c", MATHS)
    assert ran.returncode == 0, explained(ran)


def test_nothing_is_left(tmp_path: Path) -> None:
    ran = run_python("-c", MATHS, env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin"}, cwd=CHECKOUT)
    assert ran.returncode == 0, explained(ran)
    assert list(tmp_path.iterdir()) == []


def test_many_processes_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        codes = [ran.returncode for ran in pool.map(run_python, ["-c"] * 8, [MATHS] * 8)]
    assert codes == [0] * 8


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_the_object_is_for_the_machine(machine: str, number: int) -> None:
    data = alias_object("libone.so", "libone.so.7", machine)
    assert data[:4] == b"\x7fELF"
    assert struct.unpack_from("<2H", data, 16) == (3, number)
    assert b"\0libone.so\0libone.so.7\0" in data
    assert len(data) < 1000


def test_a_library_that_is_not_there() -> None:
    with pytest.raises(OSError, match=r"libnowhere\.so\.9"):
        load_alias("libnowhere.so", "libnowhere.so.9")


RTX = """
import ctypes
{first}
from isnet_trt.engines.tensorrt_rtx import LIBRARY
library = LIBRARY.load()
{then}
LIBRARY.allow_plugins(library)
LIBRARY.allow_plugins(library)
assert ctypes.CDLL("libtensorrt_rtx.so").getPrivateApi_INTERNAL
"""


@builds_rtx
@pytest.mark.parametrize("first", ["", "import tensorrt_rtx"])
def test_the_parsers_library_is_found(first: str) -> None:
    ran = run_python("-c", RTX.format(first=first, then=""))
    assert ran.returncode == 0, explained(ran)


FOREIGN = """
from isnet_trt.engines.soname_alias import load_alias
load_alias("libtensorrt_rtx.so", "libm.so.6")
"""
BROKEN = """
from isnet_trt.engines import tensorrt_rtx
def load_alias(*names): raise OSError("read-only file system")
tensorrt_rtx.load_alias = load_alias
"""


@builds_rtx
@pytest.mark.parametrize(("then", "message"), [(FOREIGN, "getPrivateApi_INTERNAL"), (BROKEN, "read-only file system")])
def test_what_cannot_work_is_refused_in_words(then: str, message: str) -> None:
    ran = run_python("-c", RTX.format(first="", then=then))
    assert ran.returncode == 1, explained(ran)
    error = ran.stderr.splitlines()[-1]
    assert error.startswith("isnet_trt.errors.EngineUnavailable: TensorRT-RTX 1.")
    assert message in error
    assert error.endswith("use --context native, or add a link of that name beside libtensorrt_rtx.so.1")
