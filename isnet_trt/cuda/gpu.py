"""Find out which NVIDIA GPUs this machine has, without importing any CUDA package.

Only the driver library is opened (CUDA driver API: cuInit, cuDeviceGetCount, …): where there is none, this returns at
once, and nothing can abort the process.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

from isnet_trt.errors import EngineUnavailable

_LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
_HINTS = {
    34: "; it is the stub that the CUDA toolkit has for linkers: take its folder off LD_LIBRARY_PATH",
    100: "; is the GPU visible (nvidia-smi, CUDA_VISIBLE_DEVICES, a container's --gpus)?",
    802: "; is NVIDIA's Fabric Manager running?",
    803: "; its version is not that of the loaded kernel module: restart the machine, or give the container the driver "
    "of its host",
    804: "; the CUDA forward compatibility package does not support this GPU: take its folder off LD_LIBRARY_PATH",
    999: "; restart the machine, or load the kernel module nvidia_uvm again",
}
"""What to do about a status of the driver (CUresult of the CUDA driver API)."""
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR} and _MULTIPROCESSOR_COUNT of the CUDA driver API
_MAJOR, _MINOR, _MULTIPROCESSORS = 75, 76, 16


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU: name, compute capability such as "8.9", the CUDA version that the driver supports, its size, and
    its number as CUDA_VISIBLE_DEVICES counts."""

    name: str
    compute_capability: str
    driver: str
    multiprocessors: int = 1
    index: int = 0

    @property
    def label(self) -> str:
        """The name; with the number where it is not the first GPU."""
        return f"{self.name} (cuda:{self.index})" if self.index else self.name


class _NoGpu(Exception):
    """The reason why no GPU can be used."""


def find_gpu(index: int = 0) -> Gpu | None:
    """GPU number ``index``, or None where there is no driver or no such device."""
    return probe_gpu(index)[0]


def probe_gpu(index: int = 0, library: str = _LIBRARY) -> tuple[Gpu | None, str]:
    """GPU number ``index`` (as CUDA_VISIBLE_DEVICES counts), or None and the reason."""
    try:
        return _query(_Driver(library), index), ""
    except _NoGpu as reason:
        return None, str(reason)


def require_gpu(index: int) -> Gpu:
    """GPU number ``index``, which a user named.

    Raises:
        EngineUnavailable: there is none; the message lists the GPUs of the machine.
    """
    gpu, reason = probe_gpu(index)
    if gpu is None:
        raise EngineUnavailable(f"device 'cuda:{index}' cannot be used: {reason}")
    return gpu


class _Driver:
    """The driver library, its status codes as `_NoGpu`."""

    def __init__(self, library: str) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            reason = str(error).removesuffix(": cannot open shared object file: No such file or directory")
            missing = " is missing" if reason == library else ""
            raise _NoGpu(f"no NVIDIA driver is installed ({reason}{missing})") from None

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver; raise `_NoGpu` for any status but CUDA_SUCCESS."""
        try:
            status = getattr(self._library, name)(*arguments)
        except AttributeError:
            raise _NoGpu(f"the NVIDIA driver library has no {name}: it is broken or not NVIDIA's") from None
        if status:
            raise _NoGpu(f"the NVIDIA driver answers {self._error(status)} to {name}{_HINTS.get(status, '')}")

    def number(self, name: str, *arguments: object) -> int:
        """The integer that a function of the driver writes through its first argument."""
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def _error(self, status: int) -> str:
        text = ctypes.c_char_p()
        get_name = getattr(self._library, "cuGetErrorName", None)
        named = get_name is not None and not get_name(status, ctypes.byref(text))
        return f"{text.value.decode()} ({status})" if named and text.value else f"error {status}"


def _query(driver: _Driver, index: int) -> Gpu:
    driver.call("cuInit", 0)
    count = driver.number("cuDeviceGetCount")
    if not 0 <= index < count:
        raise _NoGpu(_missing(driver, count, index))
    device = driver.number("cuDeviceGet", index)
    major, minor, multiprocessors = (
        driver.number("cuDeviceGetAttribute", attribute, device) for attribute in (_MAJOR, _MINOR, _MULTIPROCESSORS)
    )
    version = driver.number("cuDriverGetVersion")
    supported = f"CUDA {version // 1000}.{version % 1000 // 10}"
    return Gpu(_name(driver, device), f"{major}.{minor}", supported, multiprocessors, index)


def _name(driver: _Driver, device: int) -> str:
    name = ctypes.create_string_buffer(256)
    driver.call("cuDeviceGetName", name, len(name), device)
    return name.value.decode(errors="replace")


def _missing(driver: _Driver, count: int, index: int) -> str:
    """The message for a GPU that is not among the ``count`` GPUs that the driver shows; it lists these."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hint = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
    if count == 0:
        return f"the NVIDIA driver shows 0 GPUs{hint}"
    names = (f"cuda:{i} ({_name(driver, driver.number('cuDeviceGet', i))})" for i in range(count))
    return f"there is no cuda:{index}; this machine has {count} GPU{'s' * (count > 1)}: {', '.join(names)}{hint}"
