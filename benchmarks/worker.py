"""A contender in a process of its own: its memory is its alone, and what it does to the process harms no other.

The parent sends a picture and settings, the child answers with labels, seconds, stages and memory. Thread pools of
waiting contenders sleep, so that only the one whose turn it is uses the cores.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import device
from benchmarks.peers import Missing, Runner, Setup, load
from isnet_trt.settings import Inference

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Run:
    """One picture: its labels, wall seconds, stages, bytes of memory, and joules where a counter tells them.

    ``cpu`` is the seconds of all the process's threads together.

    ``peak`` is the process's largest resident set during the run, ``loaded`` the one it had when it was loaded, before
    its first picture (weights, libraries): ``peak - loaded`` is what the picture took. None where the system does not
    say.
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


class Contender:
    """The parent's side: starts the process, waits until it has loaded, asks it for runs.

    Raises:
        Missing: the contender cannot run here, or its process died; the message says why.
    """

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.setup = setup
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
        with _threads(setup.threads):
            self._process.start()
        theirs.close()
        self.description: str = self._answer()

    def run(self, image: NDArray[np.uint8], inference: Inference, clear: bool = False) -> Run:
        """One picture; with ``clear`` also which pixels are clear, worked out after the clock has stopped.

        Raises:
            Missing: it failed; the message says how.
        """
        with contextlib.suppress(OSError):  # it has died meanwhile: there is no answer either
            self._pipe.send((image, inference, clear))
        return self._answer()

    def _answer(self) -> Any:
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

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Libraries that read their number of threads when they are loaded find it in the child's environment."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(count)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection, setup: Setup) -> None:
    """The child: load, then one answer per request."""
    runner: Runner | None = None
    try:
        runner = load(setup)
        pipe.send((True, runner.description))
        loaded = settled_memory()
        while (job := pipe.recv()) is not None:
            pipe.send(_attempt(runner, loaded, job))
    except (EOFError, KeyboardInterrupt):
        pass
    except Missing as error:
        pipe.send((False, str(error)))
    except Exception as error:  # any failure of a contender is its own; the others go on
        pipe.send((False, f"{type(error).__name__}: {error}"))
    finally:
        if runner is not None:
            runner.close()


def _attempt(runner: Runner, loaded: int | None, job: tuple) -> tuple[bool, Any]:
    try:
        return True, _run(runner, loaded, *job)
    except Exception as error:  # what cannot run one picture may well run the next
        return False, f"{type(error).__name__}: {error}"


def _run(runner: Runner, loaded: int | None, image: NDArray[np.uint8], inference: Inference, clear: bool) -> Run:
    forget_peak()
    energy, start, cpu = device.energy(), time.perf_counter(), time.process_time()
    answer = runner.run(image, inference)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    used = device.spent(energy, device.energy())
    peak, held = peak_memory(), device.memory(os.getpid())
    mask = answer.clear() if clear and answer.clear else None
    return Run(answer.labels, seconds, cpu, answer.stages, loaded, peak, held, used, mask)


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
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text("ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def open_all(setups: Sequence[Setup]) -> tuple[list[Contender], list[tuple[str, str]]]:
    """The contenders that can run here, in order, and (name, why) of those that cannot."""
    opened, missing = [], []
    for setup in tqdm(setups, desc="loading", unit="contender", disable=None, leave=False):
        try:
            opened.append(Contender(setup))
        except Missing as error:
            missing.append((setup.name, str(error)))
    return opened, missing
