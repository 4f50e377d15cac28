"""Small real checks for the runner: right, wrong, raising, aborting, hanging, starting children, lacking something."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time

from benchmarks.gpu_check.check import Answer, CannotRun, Check, Setup


def good(answer: Answer, setup: Setup) -> None:
    answer.figure("process", os.getpid())
    answer.figure("seed", setup.seed)
    answer.row(case="one", value=1.5)


def later(answer: Answer, setup: Setup) -> None:
    answer.figure("process", os.getpid())
    answer.figure("what good found", setup.figure("good", "seed"))
    answer.figure("what nobody found", setup.figure("nobody", "seed"))
    answer.missing("a part", "its library is not here")


def wrong(answer: Answer, setup: Setup) -> None:
    answer.require(True, "this is right")
    answer.require(False, "the sum is off by 3")
    answer.row(case="after", value=2)


def raising(answer: Answer, setup: Setup) -> None:
    answer.row(case="before", value=1)
    raise ZeroDivisionError("no number of parts")


def aborting(answer: Answer, setup: Setup) -> None:
    answer.row(case="before", value=1)
    print("terminate called without an active exception", file=sys.stderr, flush=True)
    os.abort()


def hanging(answer: Answer, setup: Setup) -> None:
    answer.row(case="before", value=1)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    answer.figure("child", child.pid)
    time.sleep(600)


def crashing(answer: Answer, setup: Setup) -> None:
    ctypes.string_at(0)


def deadlocked(answer: Answer, setup: Setup) -> None:
    """Inside a library that keeps Python's lock."""
    answer.row(case="before", value=1)
    ctypes.PyDLL(None).sleep(600)


def wordy(answer: Answer, setup: Setup) -> None:
    raise RuntimeError(
        "CUDA error: misaligned address\nCUDA kernel errors might be | asynchronous.\n\nCompile with more."
    )


def growing(answer: Answer, setup: Setup) -> None:
    """Finds something, and more later."""
    answer.row(case="early", value=1)
    answer.require(False, "the first part is off")
    time.sleep(600)


def lacking(answer: Answer, setup: Setup) -> None:
    raise CannotRun("compute capability 1.0 has no matrix units")


def slow(answer: Answer, setup: Setup) -> None:
    answer.figure("run", (setup.folder / "runs").read_text("utf-8") if (setup.folder / "runs").exists() else "0")
    time.sleep(0.2)


CHECKS = (
    Check("good", "a check that passes", good),
    Check("wrong", "a check that finds something wrong", wrong),
    Check("raising", "a check that raises", raising),
    Check("aborting", "a check whose process aborts", aborting),
    Check("hanging", "a check that does not end", hanging, limit=3),
    Check("crashing", "a check whose process crashes", crashing),
    Check("deadlocked", "a check that keeps Python's lock for ever", deadlocked, limit=2),
    Check("wordy", "a check that fails in several lines", wordy),
    Check("growing", "a check that finds something and goes on", growing),
    Check("lacking", "a check that cannot run here", lacking),
    Check("needing", "a check that needs what is not installed", good, ("onnxruntime-cuda",)),
    Check("alone", "a check in a process of its own", good, alone=True),
    Check("later", "a check that uses what another found", later),
    Check("slow", "a check of some time", slow, quick=False, rank=99),
    Check("first", "what is worth most", good, rank=1),
)
