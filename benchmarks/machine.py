"""What a figure was measured on: processor, GPU, energy counters, versions and command line."""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from isnet_trt.engines.cores import usable_cores

_PACKAGES = (
    *("isnet_trt", "torch", "onnxruntime", "onnxruntime-gpu", "numpy", "opencv-python", "opencv-python-headless"),
    *("openvino", "tensorrt", "tensorrt_rtx_cu13", "torch_tensorrt", "ray"),
)
_CPU, _RAPL = Path("/sys/devices/system/cpu"), Path("/sys/class/powercap")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "ORT_NUM_THREADS")
# Named by `nvidia-smi --help-query-gpu`; drivers before 535 do not know the last one.
_GPU_FIELDS = (
    *("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem"),
    *("power.limit", "temperature.gpu", "clocks_event_reasons.active"),
)
UNKNOWN = "not available"
_LOAD = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else UNKNOWN
"""Runnable threads in the minute before this program began: well above 0 means that others were at work."""


def describe() -> dict[str, object]:
    """Processor, cores, clocks, memory, NUMA, GPU, system, versions, load before it and the command line.

    Only what has a bearing on a figure: no host name, no user, no path of this machine.
    """
    import psutil

    frequency = psutil.cpu_freq()
    largest = f" (largest {frequency.max:.0f})" if frequency and frequency.max else ""
    clock = f"{frequency.current:.0f} MHz{largest}" if frequency else UNKNOWN
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "clock": clock,
        "governor": _read(_CPU / "cpu0/cpufreq/scaling_governor") or UNKNOWN,
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "cpus_allowed": _allowed("Cpus"),
        "memory_nodes_allowed": _allowed("Mems"),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": _LOAD,
        "gpus": gpus() or UNKNOWN,
        "energy_counters": sorted(energy()) or UNKNOWN,
        "thread_settings": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": _versions(_PACKAGES),
        "command": command(),
    }


def command() -> str:
    """The command line that is running, with its own module instead of a path."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    return shlex.join([*start, *sys.argv[1:]])


def _processor() -> str:
    names = re.findall(r"^model name\s*: (.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return f"{names[0]} ({len(names)} cores)" if names else platform.processor()


def _allowed(what: str) -> str:
    """Numbers of the cores, or memory nodes, that taskset, numactl or a container leaves to this process."""
    numbers = re.search(rf"^{what}_allowed_list:\s+(\S+)", _read(Path("/proc/self/status")), re.MULTILINE)
    return numbers[1] if numbers else UNKNOWN


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""


def _versions(packages: Iterable[str]) -> dict[str, str]:
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _nvidia_smi(*arguments: str) -> list[list[str]]:
    """Rows of nvidia-smi's output; none where it is not installed or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, *arguments, "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in row] for row in csv.reader(output.splitlines()) if row]


def gpus() -> list[dict[str, str]]:
    """Each GPU's name, driver, memory (MiB), clocks (MHz), power limit (W), temperature (°C); empty without one."""
    queries = (_GPU_FIELDS, _GPU_FIELDS[:-1])
    rows = next(filter(None, (_nvidia_smi(f"--query-gpu={','.join(fields)}") for fields in queries)), [])
    return [dict(zip(_GPU_FIELDS, row, strict=False)) for row in rows]


def gpu_memory(pid: int) -> int | None:
    """Bytes of GPU memory that process ``pid`` holds, or None where no GPU says so."""
    rows = _nvidia_smi("--query-compute-apps=pid,used_memory")
    mebibytes = [int(row[1]) for row in rows if row[0] == str(pid) and row[1].isdigit()]
    return sum(mebibytes) * 2**20 if mebibytes else None


def energy() -> dict[str, float]:
    """Joules counted so far: ``gpu`` by NVML (nvmlDeviceGetTotalEnergyConsumption), ``processor`` by RAPL.

    It holds only counters that can be read; take the difference of two readings.
    """
    joules = {"gpu": _nvml_energy(), "processor": _rapl_energy()}
    return {name: value for name, value in joules.items() if value is not None}


def _nvml_energy() -> float | None:
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1000
    except Exception:  # whatever it is that NVML lacks here, there is no counter
        return None


def _rapl_energy() -> float | None:
    joules = []
    for counter in _RAPL.glob("*-rapl:?/energy_uj"):
        with contextlib.suppress(OSError, ValueError):
            joules.append(int(counter.read_text("ascii")) / 1e6)
    return sum(joules) if joules else None
