"""The process in which checks run: it may abort, hang or lose its device; whoever asked for the check goes on."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import catalogue, needs
from benchmarks.gpu_check.check import Answer, CannotRun, Check, Setup, described

_PARENT_DIED = 1  # PR_SET_PDEATHSIG of prctl(2)
_WHERE = signal.SIGUSR1
"""Asks the process for its stacks."""
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')
_FRAMES, _MOST = 4, 900


class Died(Exception):
    """The process ended, or was ended, before its answer was whole; the message says how."""


class Worker:
    """The asking side."""

    def __init__(self, modules: Sequence[str], log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._log = log
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, tuple(modules), str(log)))
        self._process.start()
        theirs.close()
        self.spoiled = False
        """A check failed in it: what it left on the device may harm the next."""

    def ask(self, name: str, setup: Setup, limit: float, sink: Any) -> tuple[str, str]:
        """Run a check; its parts go to ``sink`` as they come. Returns (word, text) of how it ended.

        Raises:
            Died: the process aborted, or did not end within ``limit`` seconds and was killed.
        """
        self._log.write_text("", "utf-8")
        end = time.monotonic() + limit
        try:
            self._pipe.send((name, setup))
            while self._pipe.poll(max(0.0, end - time.monotonic())):
                word, content = self._pipe.recv()
                if word == "end":
                    self.spoiled = content[0] == "failed"
                    return content
                sink(word, content)
        except (EOFError, OSError):
            self._process.join(5)
            raise Died(f"its process ended with {self._status()}{self._words()}") from None
        self._ask_where()
        self.close(kill=True)
        raise Died(f"it did not end within {limit:.0f} s and was killed{self._words()}")

    def _ask_where(self, patience: float = 2.0) -> None:
        """Let the process write where its threads are, which it does even where Python's lock is held; not where it
        hangs inside the system."""
        with contextlib.suppress(OSError):
            before = self._log.stat().st_size
            os.kill(self._process.pid or 0, _WHERE)
            end = time.monotonic() + patience
            while self._log.stat().st_size == before and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.1)  # the rest of the stacks

    def _status(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"signal {signal.Signals(-code).name}"
        return f"exit status {code}"

    def _words(self) -> str:
        """The end of what the process wrote to its outputs."""
        with contextlib.suppress(OSError):
            said = shortened(self._log.read_text("utf-8", "replace"))
            return f"; it said: {said}" if said else ""
        return ""

    def close(self, kill: bool = False) -> None:
        """End the process, and with ``kill`` all that it started."""
        if not kill:
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._process.join(10)
        if self._process.is_alive() and self._process.pid:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group of its own
            self._process.kill()
        self._process.join(10)
        self._pipe.close()


def shortened(said: str) -> str:
    """The end of what a process said, in one line; of each stack (most recent call first) the first few calls."""
    kept: list[str] = []
    row = 0
    for line in said.splitlines():
        frame = _FRAME.fullmatch(line)
        row = row + 1 if frame else 0
        if frame and row <= _FRAMES:
            kept.append(f"{Path(frame[1]).name}:{frame[2]} {frame[3]};")
        elif not frame and not line.startswith("Extension modules:"):
            kept.append(line)
    return " ".join(" ".join(kept).split())[-_MOST:]


def find(modules: Sequence[str], name: str) -> Check:
    """The check called ``name`` in the ``CHECKS`` of ``modules``."""
    return next(check for module in modules for check in catalogue.of_module(module) if check.name == name)


def _serve(pipe: Connection, modules: Sequence[str], log: str) -> None:
    _settle(log)
    with contextlib.suppress(EOFError, OSError):
        while (job := pipe.recv()) is not None:
            pipe.send(("end", _attempt(pipe, modules, *job)))


def _settle(log: str) -> None:
    """A process group of its own, outputs into ``log``, and an end when the parent ends."""
    if hasattr(os, "setsid"):
        os.setsid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(target, number)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    faulthandler.enable(sys.stderr)  # a library that crashes leaves the stack of its call
    faulthandler.register(_WHERE, sys.stderr)


def _attempt(pipe: Connection, modules: Sequence[str], name: str, setup: Setup) -> tuple[str, str]:
    try:
        check = find(modules, name)
        if reason := needs.missing(check.needs):
            return "missing", reason
        answer = Answer(lambda word, content: pipe.send((word, content)))
        check.run(answer, setup)
    except CannotRun as reason:
        return "missing", " ".join(str(reason).split())
    except BaseException as error:  # whatever it is, it is this check's answer
        traceback.print_exc()
        return "failed", described(error)
    return "done", ""
