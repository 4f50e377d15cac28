"""A contender in a process of its own: its memory is its own, and what it does to the process harms no other.

The parent sends a picture and settings, the child sends labels, seconds, stages and memory. Thread pools of waiting
contenders sleep, so that only the one whose turn it is uses the cores.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.peers import Missing, Runner, Setup, load
from isnet_trt.settings import Inference

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
    """The parent's side: start the process, wait until it has loaded, ask it for runs.

    Raises:
        Missing: the contender cannot run here, or its process died; the message says why.
    """

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.setup = setup
        self._pipe, child_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_end, setup), daemon=True)
        # Libraries that read their number of threads when they are loaded find it in the child's environment.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(setup.threads))
        with mock.patch.dict(os.environ, threads):
            self._process.start()
        child_end.close()
        self.description: str = self._receive()

    def run(self, image: NDArray[np.uint8], inference: Inference, clear: bool = False) -> Run:
        """One picture; with ``clear`` also which pixels are clear, computed after the clock has stopped.

        Raises:
            Missing: it failed; the message says how.
        """
        with contextlib.suppress(OSError):  # the process died meanwhile: receiving says so
            self._pipe.send((image, inference, clear))
        return self._receive()

    def _receive(self) -> Any:
        try:
            good, content = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Missing(f"its process ended with status {self._process.exitcode}") from None
        if not good:
            raise Missing(content)
        return content

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def _serve(pipe: Connection, setup: Setup) -> None:
    """The child: load, then one run per request; whatever fails is sent to the parent as a message."""
    with contextlib.suppress(EOFError, KeyboardInterrupt), contextlib.ExitStack() as stack:
        runner: Runner | None = None
        with _failures_sent(pipe):
            runner = load(setup)
            stack.callback(runner.close)
            pipe.send((True, runner.description))
        loaded = settled_memory()
        while runner and (request := pipe.recv()) is not None:
            with _failures_sent(pipe):  # what cannot run one picture may well run the next
                pipe.send((True, _run(runner, loaded, *request)))


@contextlib.contextmanager
def _failures_sent(pipe: Connection) -> Iterator[None]:
    try:
        yield
    except Missing as error:
        pipe.send((False, str(error)))
    except Exception as error:  # any failure of a contender is its own; the others go on
        pipe.send((False, f"{type(error).__name__}: {error}"))


def _run(runner: Runner, loaded: int | None, image: NDArray[np.uint8], inference: Inference, clear: bool) -> Run:
    forget_peak()
    energy, start, cpu = machine.energy(), time.perf_counter(), time.process_time()
    output = runner.run(image, inference)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    joules = machine.energy_spent(energy, machine.energy())
    peak, device_memory = peak_memory(), machine.gpu_memory(os.getpid())
    mask = output.clear() if clear and output.clear else None
    return Run(output.labels, seconds, cpu, output.stages, loaded, peak, device_memory, joules, mask)


def settled_memory() -> int | None:
    """Resident bytes after garbage has been given back to the system."""
    gc.collect()
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
