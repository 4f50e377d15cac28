"""The number of physical cores that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Physical cores within the process's affinity mask and its container's CPU quota; at least 1.

    ONNX Runtime's own default counts neither the quota nor a mask that was set after start.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    # macOS and Windows have no sched_getaffinity.
    if affinity is None:
        return os.cpu_count() or 1
    return max(1, min(_physical(affinity(0)), _quota()))


def _physical(cpus: Iterable[int], topology: Path = _TOPOLOGY) -> int:
    """Distinct cores among logical ``cpus``: hyper-threads of one core list the same siblings."""
    return len({_siblings(cpu, topology) for cpu in cpus})


def _siblings(cpu: int, topology: Path) -> str:
    try:
        return (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text("ascii").strip()
    except (OSError, ValueError):
        # Without a readable topology every logical CPU counts as a core of its own.
        return str(cpu)


def _quota(path: Path = _QUOTA) -> int:
    """The container's CPU quota (cgroup 2: "microseconds period" or "max period"), rounded up; huge without one."""
    try:
        allowed, period = path.read_text("ascii").split()
        return math.ceil(int(allowed) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return 1 << 16
