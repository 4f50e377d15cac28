"""What a figure was measured on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from pathlib import Path

from benchmarks import device
from isnet_trt.engines.cores import usable_cores

_PACKAGES = (
    "isnet_trt",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "opencv-python",
    "openvino",
    "tensorrt",
    "tensorrt_rtx_cu13",
    "torch_tensorrt",
)
_CPU = Path("/sys/devices/system/cpu")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "ORT_NUM_THREADS")
UNKNOWN = "not available"
_LOAD = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else UNKNOWN
"""Runnable threads in the minute before this program began: well above 0 means that others were at work."""


def describe() -> dict[str, object]:
    """Processor, cores, clocks, memory, NUMA, GPU, system, versions, load before it and the command line.

    Only what has a bearing on a figure: no host name, no user, no path of this machine.
    """
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "clock": _clock(),
        "governor": _read(_CPU / "cpu0/cpufreq/scaling_governor") or UNKNOWN,
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "cpus_allowed": _allowed("Cpus"),
        "memory_nodes_allowed": _allowed("Mems"),
        "memory_gb": _memory_gb(),
        "load_before": _LOAD,
        "gpus": device.gpus() or UNKNOWN,
        "energy_counters": sorted(device.energy()) or UNKNOWN,
        "thread_settings": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "command": command(),
    }


def command() -> str:
    """The command line that is running, with its own module instead of a path."""
    return shlex.join(["python", "-m", _module(), *sys.argv[1:]])


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name


def _processor() -> str:
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.processor()


def _clock() -> str:
    """The cores' clock in MHz: what the frequency driver says, else what /proc/cpuinfo does."""
    scaled = _read(_CPU / "cpu0/cpufreq/scaling_cur_freq")
    if scaled:
        return f"{int(scaled) // 1000} MHz (largest {int(_read(_CPU / 'cpu0/cpufreq/cpuinfo_max_freq') or 0) // 1000})"
    stated = [line.split(":")[1] for line in _read(Path("/proc/cpuinfo")).splitlines() if line.startswith("cpu MHz")]
    return f"{float(stated[0]):.0f} MHz as stated; frequency driver {UNKNOWN}" if stated else UNKNOWN


def _allowed(what: str) -> str:
    """Numbers of the cores, or memory nodes, that taskset, numactl or a container leaves to this process."""
    found = re.search(rf"^{what}_allowed_list:\s+(\S+)", _read(Path("/proc/self/status")), re.MULTILINE)
    return found.group(1) if found else UNKNOWN


def _memory_gb() -> object:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    return UNKNOWN


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
