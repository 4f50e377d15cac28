"""How much memory ONNX Runtime may take in this process, and in constants that it computes while it opens a model."""

from __future__ import annotations

import functools
import os
import re
import threading
from pathlib import Path
from typing import Any

from isnet_trt.errors import SettingsError

LIMIT_VARIABLE = "ISNET_TRT_MAX_MEMORY"
"""Environment variable: the most bytes for ONNX Runtime's weights and tensors, such as ``8G``."""
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_QUOTAS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_FOLDED_SHARE, _FOLDED_LEAST = 16, 1 << 20
_LARGEST_STEP = 16 << 20
"""Bytes up to which the pool doubles what it takes at once. glibc never reuses blocks above 32 MiB: the next image
would map them anew, at a page fault for every 4 KiB."""
_lock = threading.Lock()
_FOLDED_KEY = "optimization.constant_folding_max_output_size_in_bytes"


def memory_limit() -> int:
    """Bytes of `LIMIT_VARIABLE`, or all that the machine or its container has; 0 where that is not known.

    Raises:
        SettingsError: the variable is no size.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return min(filter(None, (_installed(), *map(_quota, _QUOTAS))), default=0)
    match = re.fullmatch(r"(\d{1,18})([KMGT]?)(?:i?B)?", text.strip(), re.ASCII | re.IGNORECASE)
    if match is None or not int(match[1]):
        raise SettingsError(f"{LIMIT_VARIABLE} is {text!r}; write a number of bytes, or such as 800M or 8G")
    return int(match[1]) << _UNITS[match[2].upper()]


def _installed() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0


def _quota(path: Path) -> int:
    """The container's memory limit; 0 without one."""
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):  # no file of this cgroup version, or the word "max"
        return 0


def limit_memory(runtime: Any, options: Any) -> None:
    """Let a session with ``options`` take its memory on the host from one pool for all sessions, which is limited.

    A model may ask for any amount, whatever its size: beyond the limit its run fails, instead of the machine.
    """
    with _lock:  # threads that open sessions at once share one pool
        limited = _create_pool(runtime)
    if limited:
        options.add_session_config_entry("session.use_env_allocators", "1")


@functools.cache
def _create_pool(runtime: Any) -> bool:
    """Create the process's pool, once; False where there is no limit, or the application has a pool of its own."""
    limit = min(memory_limit(), 2**63 - 1)
    if not limit:
        return False
    # -1: the library's defaults.
    growth = dict.fromkeys(("arena_extend_strategy", "initial_chunk_size_bytes", "max_dead_bytes_per_chunk"), -1)
    growth["max_power_of_two_extend_bytes"] = _LARGEST_STEP
    try:
        kind = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
        arena = runtime.OrtMemoryInfo("Cpu", kind, 0, runtime.OrtMemType.DEFAULT)
        runtime.create_and_register_allocator(arena, runtime.OrtArenaCfg({"max_mem": limit, **growth}))
    # The exceptions of ONNX Runtime have no base class of their own.
    except Exception:
        return False
    return True


def limit_folding(options: Any, model_bytes: int) -> None:
    """Keep constants that are computed from a model's, while it is opened, in proportion to its size.

    Winograd filters and float32 copies of half-precision weights take up to eight times the weights' bytes; a graph of
    a kilobyte could ask for a constant of gigabytes. What is not folded is computed in every run.
    """
    options.add_session_config_entry(_FOLDED_KEY, str(_FOLDED_LEAST + _FOLDED_SHARE * model_bytes))
