"""The installation of a TensorRT library: which distributions it consists of, which CUDA it was built for.

NVIDIA's wheels come in parts for each CUDA version, ``tensorrt-cu13`` with ``-bindings`` and ``-libs``, beside the
distribution ``tensorrt``, which only names the others. Those for CUDA 12 and for CUDA 13 hold files of the same names.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import mmap
import os
import re
import struct
from pathlib import Path
from typing import Any

from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines.tensorrt_api import release
from isnet_trt.errors import EngineUnavailable

_CUDAS = range(11, 20)
"""CUDA versions whose wheels are looked for."""
_DRIVERS = {12: 525, 13: 580}
"""Oldest Linux driver of a CUDA version (https://docs.nvidia.com/deploy/cuda-compatibility/)."""
_TOOLKIT = re.compile(rb"Cuda compilation tools, release (\d+)\.(\d+)")
"""What CUDA's compiler leaves in the libraries that it builds."""


def distributions(stem: str) -> dict[str, str]:
    """Distribution -> version of the installed parts of ``stem``: ``tensorrt`` or ``tensorrt-rtx``."""
    names = [f"{stem}-cu{cuda}{part}" for cuda in _CUDAS for part in ("", "-bindings", "-libs")]
    versions = {}
    for name in (stem, *names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def wheels_cuda(stem: str) -> int | None:
    """The CUDA version (12, 13, …) in the names of the installed wheels; None where they name none or several."""
    cudas = {int(match.group(1)) for name in distributions(stem) if (match := re.search(r"-cu(\d+)", name))}
    return cudas.pop() if len(cudas) == 1 else None


@functools.cache
def check_parts(stem: str, module: Any) -> None:
    """Check that what is installed of ``stem``, and what ``module`` loaded, is of one version and one CUDA.

    Raises:
        EngineUnavailable: it is not; the message names the parts.
    """
    parts = distributions(stem)
    cudas = {name.split("-cu")[1][:2] for name in parts if "-cu" in name}
    if len(cudas) > 1 or len({_number(version) for version in parts.values()}) > 1:
        names = ", ".join(f"{name} {version}" for name, version in parts.items())
        raise EngineUnavailable(
            f"the installed parts of {stem} do not belong together: {names}; they overwrite each other's files. "
            f"pip uninstall {' '.join(parts)}, then install one version for one CUDA version"
        )
    version, loaded = _number(str(module.__version__)), _loaded(_library(module))
    if loaded and loaded != version:
        raise EngineUnavailable(
            f"the Python module of {stem} is version {module.__version__}, but the process has loaded version "
            f"{'.'.join(map(str, loaded))} of {_path_of(_library(module))}; is another installation on "
            "LD_LIBRARY_PATH?"
        )


@functools.cache
def check_files(module: str) -> None:
    """Check that the shared objects in the wheels of ``module`` are whole, before any of them is loaded.

    A copy that broke off leaves a file that ends before its section headers, which linkers write last; loading it ends
    the process by SIGBUS.

    Raises:
        EngineUnavailable: a file is cut off or is no ELF file; the message names it.
    """
    for package in (f"{module}_libs", f"{module}_bindings"):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for path in sorted(Path(folder).glob("*.so*")):
                if reason := _cut_off(path):
                    raise EngineUnavailable(f"{path} {reason}: install {module} again, or copy its folder again")


def _cut_off(path: Path) -> str:
    """Why a shared object is not whole; empty if it is, or if it cannot be read (loading it says why)."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        header, size = file.read(64), os.fstat(file.fileno()).st_size  # Elf64_Ehdr
        if len(header) < 64 or not header.startswith(b"\x7fELF"):
            return f"is no shared object ({size} bytes)"
        offset, (entry, count) = struct.unpack_from("<Q", header, 40)[0], struct.unpack_from("<HH", header, 58)
        if size < offset + entry * count:
            return f"is cut off: it has {size} bytes of at least {offset + entry * count}"
    return ""


def _number(version: str) -> tuple[int, ...]:
    """Major, minor and patch of a version: the parts of one release may differ in what follows."""
    numbers = [int(part) for part in release(version).split(".")]
    return tuple([*numbers, 0, 0][:3])


def _library(module: Any) -> str:
    """Soname of the library that Python's module of TensorRT loads (Linux)."""
    return f"libnvinfer.so.{_number(str(module.__version__))[0]}"


def _loaded(soname: str) -> tuple[int, ...]:
    """Version of a library that this process has loaded; empty if it has not."""
    with contextlib.suppress(OSError, AttributeError):  # not loaded, or not Linux
        # RTLD_NOLOAD: looking must not load another one.
        number = int(ctypes.CDLL(soname, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).getInferLibVersion())
        return number // 10000, number // 100 % 100, number % 100
    return ()


def _path_of(name: str) -> str:
    """Path of a loaded library; its name where that cannot be seen."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text("utf-8", errors="replace").splitlines():
            if line.endswith(f"/{name}") or f"/{name}." in line:
                return line[line.index("/") :]
    return name


@functools.cache
def toolkit(module: Any) -> tuple[int, int] | None:
    """The CUDA toolkit, such as (13, 1), that the loaded library of ``module`` was built with; None: not known."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError, ValueError):
        file = stack.enter_context(Path(_path_of(_library(module))).open("rb"))
        content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        match = _TOOLKIT.search(content)
        return (int(match[1]), int(match[2])) if match else None
    return None


def driver_too_old(stem: str, gpu: Gpu, module: Any = None) -> str:
    """Why the driver of ``gpu`` cannot run an installed library; empty if it can, or if what it needs is not known.

    A library runs under every driver for its major version of CUDA or a later one ("CUDA Compatibility",
    https://docs.nvidia.com/deploy/cuda-compatibility/). Without ``module``, only the names of the wheels are asked.
    """
    cuda = wheels_cuda(stem)
    if cuda is None and module is not None:
        cuda = (toolkit(module) or (None,))[0]
    driver = re.search(r"\d+", gpu.driver)
    if cuda is None or driver is None or int(driver.group()) >= cuda:
        return ""
    exact = toolkit(module) if module is not None else None
    built = ".".join(map(str, exact)) if exact else str(cuda)
    version = f" {module.__version__}" if module is not None else ""
    oldest = f" ({_DRIVERS[cuda]} or newer)" if cuda in _DRIVERS else ""
    other = f", or {stem}-cu{driver.group()}, which is for this one" if int(driver.group()) in _DRIVERS else ""
    return (
        f"{stem}{version} was built for CUDA {built}, and the NVIDIA driver supports {gpu.driver} only: install a "
        f"driver for CUDA {cuda}{oldest}{other}"
    )
