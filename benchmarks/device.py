"""What a GPU and the processor's energy counter tell; None where there is none to ask."""

from __future__ import annotations

import contextlib
import csv
import shutil
import subprocess
from pathlib import Path

_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
    "clocks_event_reasons.active",
)
_RAPL = Path("/sys/class/powercap")


def _smi(*arguments: str) -> list[list[str]]:
    """Rows of nvidia-smi's answer; none where it is not there or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, *arguments, "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in row] for row in csv.reader(answer.splitlines()) if row]


def gpus() -> list[dict[str, str]]:
    """Each GPU's name, driver, memory (MiB), clocks (MHz), power limit (W), temperature (°C); empty without one.

    Source of the fields: ``nvidia-smi --help-query-gpu``.
    """
    rows = _smi(f"--query-gpu={','.join(_FIELDS)}") or _smi(f"--query-gpu={','.join(_FIELDS[:-1])}")
    return [dict(zip(_FIELDS, row, strict=False)) for row in rows]


def memory(pid: int) -> int | None:
    """Bytes of GPU memory that process ``pid`` holds, or None where no GPU says so."""
    rows = _smi("--query-compute-apps=pid,used_memory")
    held = [int(row[1]) for row in rows if row[0] == str(pid) and row[1].isdigit()]
    return sum(held) * 2**20 if held else None


def energy() -> dict[str, float]:
    """Joules counted so far: ``gpu`` by NVML (nvmlDeviceGetTotalEnergyConsumption), ``processor`` by RAPL.

    Only counters that can be read are in it; take the difference of two readings.
    """
    found = {"gpu": _nvml_energy(), "processor": _rapl_energy()}
    return {name: value for name, value in found.items() if value is not None}


def _nvml_energy() -> float | None:
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1000
    except Exception:  # whatever it is that NVML lacks here, there is no counter
        return None


def _rapl_energy() -> float | None:
    total, packages = 0.0, 0
    for counter in _RAPL.glob("*-rapl:?/energy_uj"):
        with contextlib.suppress(OSError, ValueError):
            total, packages = total + int(counter.read_text("ascii")) / 1e6, packages + 1
    return total if packages else None


def spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Joules between two readings; a counter that wrapped around in between is left out."""
    return {name: after[name] - before[name] for name in before if after.get(name, 0.0) >= before[name]}
