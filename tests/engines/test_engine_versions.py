"""Which version of a library runs which engine."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from children import explained, run_python
from fake_libcuda import COMPILER

from isnet_trt.bundle import ENGINE
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines import tensorrt_family, tensorrt_install
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import Library
from isnet_trt.engines.select import Machine, choose
from isnet_trt.engines.tensorrt import LIBRARY
from isnet_trt.engines.tensorrt_api import runs_engine_of
from isnet_trt.errors import EngineUnavailable

GPU = Gpu("NVIDIA Double", "8.9", "CUDA 13.0")
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or COMPILER is None, reason="a C compiler on Linux makes the library"
)


@pytest.mark.parametrize(
    ("installed", "built", "compatible", "runs"),
    [
        ("10.13.3.9", "10.13.3.9", False, True),
        ("10.13.3.9.post1", "10.13.3.9", False, True),
        ("10.13.3.9.post1", "10.13.3.9", True, True),
        ("1.7.1.116", "1.7.1.116+cu13", False, True),
        ("1.7.1.116", "1.7.1.11", False, False),
        ("1.7.1", "1.7.1.116", False, False),
        ("", "1.7", False, False),
        ("10.14.0", "10.13.3.9", False, False),
        ("10.14.0", "10.13.3.9", True, True),
        ("10.9.1", "10.13.3.9", True, False),
        ("11.0.0", "10.13.3.9", True, False),
    ],
)
def test_runs_engine_of(installed: str, built: str, compatible: bool, runs: bool) -> None:
    assert runs_engine_of(installed, built, compatible) == runs


def test_the_manifest_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(LIBRARY), "installed_version", lambda self: "10.14.0")
    monkeypatch.setattr(tensorrt_family, "probe_gpu", lambda index=0: (GPU, ""))
    plain = EngineInfo("tensorrt", "10.13.3.9", ENGINE, ("8.9",), context="native")
    with pytest.raises(EngineUnavailable, match="runs only under the version that built it; pip install"):
        LIBRARY.check(plain)
    lasting = EngineInfo("tensorrt", "10.13.3.9", ENGINE, ("8.9",), context="native", version_compatible=True)
    assert LIBRARY.check(lasting) is GPU
    monkeypatch.setattr(type(LIBRARY), "installed_version", lambda self: "11.0.0")
    with pytest.raises(EngineUnavailable, match="or a later one of the same major version"):
        LIBRARY.check(lasting)


@pytest.mark.parametrize("version", ["10.6.0", "10.6", "10.7.0.23", "10.15.1.29", "10.16.0", "11.0.0.114", "11.2.1.2"])
def test_supported(version: str) -> None:
    assert LIBRARY.unsupported_version(version) == ""


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "10.0.1", "10.3.0.30", "10.5.0", "12.0.0", "7", "unknown"])
def test_unsupported(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error wherever it is met: choosing, loading, opening."""
    message = f"TensorRT {version} is installed, and isnet_trt supports TensorRT 10.6 and later 10.x, and 11.x: pip"
    module = type("Module", (), {"__version__": version})()
    monkeypatch.setattr(Library, "load", lambda self: module)
    monkeypatch.setattr(type(LIBRARY), "installed_version", lambda self: version)
    with pytest.raises(EngineUnavailable, match=re.escape(message)):
        LIBRARY.load()
    with pytest.raises(EngineUnavailable, match=re.escape(message)):
        choose("tensorrt", Machine(GPU))
    with pytest.raises(EngineUnavailable, match=re.escape(message)):
        LIBRARY.check(EngineInfo("tensorrt", version, ENGINE, ("8.9",)))
    assert message in choose("auto", Machine(GPU, "", {"tensorrt": version})).reason


def installed(folder: Path, *parts: str) -> None:
    """Distributions without files, as pip leaves their metadata."""
    for part in parts:
        name, version = part.split("==")
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")


TREE = ("tensorrt==10.15.1.29", "tensorrt-cu13==10.15.1.29", "tensorrt-cu13-bindings==10.15.1.29")


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ((*TREE, "tensorrt-cu12-libs==10.15.1.29"), ("tensorrt-cu12-libs 10.15.1.29", "tensorrt-cu13 10.15.1.29")),
        ((*TREE, "tensorrt-cu13-libs==10.6.0"), ("tensorrt-cu13-libs 10.6.0", "tensorrt-cu13-bindings 10.15.1.29")),
        (("tensorrt==11.2.1.2", *TREE[1:]), ("tensorrt 11.2.1.2", "tensorrt-cu13 10.15.1.29")),
    ],
)
def test_mixed_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...], named: tuple[str, ...]
) -> None:
    installed(tmp_path, *parts)
    monkeypatch.syspath_prepend(tmp_path)
    module = type("Module", (), {"__version__": "10.15.1.29"})()
    with pytest.raises(EngineUnavailable, match="do not belong together") as caught:
        tensorrt_install.check_parts("tensorrt", module)
    assert all(name in str(caught.value) for name in named)
    assert "pip uninstall tensorrt " in str(caught.value)


def test_parts_that_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repackaged parts too; the CUDA version is that of the wheels."""
    installed(tmp_path, *TREE, "tensorrt-cu13-libs==10.15.1.29.post1")
    monkeypatch.syspath_prepend(tmp_path)
    tensorrt_install.check_parts("tensorrt", type("Module", (), {"__version__": "10.15.1.29"})())
    assert tensorrt_install.wheels_cuda("tensorrt") == 13
    old, new = (Gpu("NVIDIA Double", "8.9", driver) for driver in ("CUDA 12.9", "CUDA 14.0"))
    assert "or tensorrt-cu12, which is for this one" in tensorrt_install.driver_too_old("tensorrt", old)
    assert tensorrt_install.driver_too_old("tensorrt", new) == ""
    assert LIBRARY.unsupported(old) == tensorrt_install.driver_too_old("tensorrt", old)
    choice = choose("auto", Machine(old, "", {"tensorrt": "10.15.1.29"}))
    assert choice.kind == "onnxruntime"
    assert "CUDA 13" in choice.reason
    assert "CUDA 12.9" in choice.reason


LOADED = """
import ctypes, sys
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines import tensorrt_install
from isnet_trt.errors import EngineUnavailable
ctypes.CDLL(sys.argv[1])
for version in ("10.15.1.29", "10.6.0"):
    module = type("Module", (), {"__version__": version})()
    try:
        tensorrt_install.check_parts("tensorrt", module)
        print("taken", tensorrt_install.toolkit(module))
        print(tensorrt_install.driver_too_old("tensorrt", Gpu("", "9.0", "CUDA 11.8"), module))
    except EngineUnavailable as error:
        print(error)
"""


@needs_compiler
def test_a_library_of_another_version_in_the_process(tmp_path: Path) -> None:
    """And the CUDA toolkit that it was built with, where no wheel names it."""
    source = (
        'int getInferLibVersion(void) { return 100600; }\nconst char *s = "Cuda compilation tools, release 12.6, V";'
    )
    (tmp_path / "nvinfer.c").write_text(source, "utf-8")
    library = tmp_path / "libnvinfer.so.10"
    options = ["-shared", "-fPIC", "-Wl,-soname,libnvinfer.so.10", str(tmp_path / "nvinfer.c"), "-o", str(library)]
    subprocess.run([str(COMPILER), *options], check=True)
    ran = run_python("-c", LOADED, library)
    assert ran.returncode == 0, explained(ran)
    mixed, taken, driver = ran.stdout.splitlines()
    assert f"module of tensorrt is version 10.15.1.29, but the process has loaded version 10.6.0 of {library}" in mixed
    assert taken == "taken (12, 6)"
    assert "tensorrt 10.6.0 was built for CUDA 12.6, and the NVIDIA driver supports CUDA 11.8 only" in driver


@pytest.mark.parametrize(
    ("content", "reason"),
    [(2000, "is cut off: it has 2000 bytes of at least 4128"), (0, r"is no shared object \(0 bytes\)")],
)
def test_a_shared_object_that_is_cut_off_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: int, reason: str
) -> None:
    """Loading it would end the process by SIGBUS."""
    tensorrt_install.check_files.cache_clear()
    libraries = tmp_path / "partial_libs"
    libraries.mkdir()
    # Elf64_Ehdr: two section headers of 64 bytes at 4000
    whole = struct.pack("<4s36xQ10xHH2x", b"\x7fELF", 4000, 64, 2) + bytes(4064)
    (libraries / "libwhole.so.1").write_bytes(whole)
    monkeypatch.syspath_prepend(tmp_path)
    tensorrt_install.check_files("partial")
    tensorrt_install.check_files.cache_clear()
    (libraries / "libpart.so.10").write_bytes(whole[:content])
    with pytest.raises(EngineUnavailable, match=rf"libpart.so.10 {reason}.*install partial again"):
        tensorrt_install.check_files("partial")
