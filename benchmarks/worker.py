"""A contender in a process of its own: its memory is its own, and what it does to the process harms no other.

Thread pools of waiting contenders sleep, so that only the one whose turn it is uses the cores.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.peers import Missing, Runner, Setup, load
from isnet_trt.settings import Inference

T = TypeVar("T")
_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Run:
    """One picture: its labels (H, W), wall seconds, stages, bytes of memory, and joules where a counter can be read.

    ``cpu`` is the seconds of all threads of the process together. ``peak`` is the largest resident set of the process
    during the run, ``loaded`` the one that it had when it was loaded, before its first picture (weights, libraries):
    ``peak - loaded`` is what the picture took. None where the system does not say.
    """

    labels: NDArray[Any]
    seconds: float
    cpu: float
    stages: dict[str, float] = field(default_factory=dict)
    loaded: int | None = None
    peak: int | None = None
    device_memory: int | None = None
    energy: dict[str, float] = field(default_factory=dict)
    clear: NDArray[np.bool_] | None = None


class Contender(contextlib.AbstractContextManager["Contender"]):
    """The parent's side of a process with a loaded contender.

    Raises:
        Missing: the contender cannot run here, or its process died; the message says why.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.process: multiprocessing.process.BaseProcess | None = None
        # Spawned: a forked child would start with this process's libraries and memory.
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        # Libraries that read their number of threads when they are loaded find it in the child's environment.
        with mock.patch.dict(os.environ, dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(setup.threads))):
            # The pool starts its process at the first call: it must be made under the patched environment.
            pid = self._call(os.getpid)
        # The pool keeps its process to itself, but a contender that dies is reported with its exit status.
        self.process = next(child for child in multiprocessing.active_children() if child.pid == pid)
        try:
            self.description = self._call(_load, setup)
        except Missing:
            self.__exit__()
            raise

    def run(self, image: NDArray[np.uint8], inference: Inference, clear: bool = False) -> Run:
        """One picture; with ``clear`` also which pixels are clear, computed after the clock has stopped.

        Raises:
            Missing: it failed; the message says how.
        """
        return self._call(_run, image, inference, clear)

    def _call(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            # The pool's own thread waits for the process: a second wait beside it may find no exit status.
            self._pool.shutdown()
            raise Missing(f"its process ended with status {self.process.exitcode if self.process else None}") from None
        except Missing:
            raise
        except Exception as error:  # any failure of a contender is its own; the others go on
            raise Missing(f"{type(error).__name__}: {error}") from None

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()


_loaded: tuple[Runner, int | None]
"""In the child: the contender, and the resident bytes once it was loaded."""


def _load(setup: Setup) -> str:
    global _loaded
    runner = load(setup)
    _loaded = runner, settled_memory()
    return runner.description


def _run(image: NDArray[np.uint8], inference: Inference, clear: bool) -> Run:
    runner, loaded = _loaded
    forget_peak()
    # The counters of energy are read outside the clock.
    energy, start, cpu = machine.energy(), time.perf_counter(), time.process_time()
    output = runner.run(image, inference)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    after = machine.energy()  # a counter that wrapped around in between is left out
    joules = {name: after[name] - energy[name] for name in energy if after.get(name, 0.0) >= energy[name]}
    peak, device_memory = peak_memory(), machine.gpu_memory(os.getpid())
    mask = output.clear() if clear and output.clear else None
    return Run(output.labels, seconds, cpu, output.stages, loaded, peak, device_memory, joules, mask)


def settled_memory() -> int | None:
    """Resident bytes after garbage has been given back to the system."""
    gc.collect()
    # Only glibc has malloc_trim.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def forget_peak() -> None:
    """Start a new peak: the kernel resets VmHWM when 5 is written to clear_refs (proc_pid_clear_refs(5))."""
    with contextlib.suppress(OSError):
        _REFS.write_text("5", "ascii")


def peak_memory() -> int | None:
    """Largest resident bytes since `forget_peak`; of the whole process where the kernel cannot reset it."""
    return _status("VmHWM")


def _status(name: str) -> int | None:
    try:
        line = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text("ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(line[1]) * 1024 if line else None
