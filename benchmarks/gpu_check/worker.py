"""The process in which checks run: it may abort, hang or lose its device; whoever asked for the check goes on."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import catalogue, needs
from benchmarks.gpu_check.check import Answer, CannotRun, Check, Setup

_PARENT_DIED = 1  # PR_SET_PDEATHSIG of prctl(2)


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
        self.close(kill=True)
        raise Died(f"it did not end within {limit:.0f} s and was killed{self._words()}")

    def _status(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"signal {signal.Signals(-code).name}"
        return f"exit status {code}"

    def _words(self) -> str:
        """The end of what the process wrote to its outputs."""
        with contextlib.suppress(OSError):
            said = " ".join(self._log.read_text("utf-8", "replace").split())
            return f"; it said: {said[-600:]}" if said else ""
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


def _attempt(pipe: Connection, modules: Sequence[str], name: str, setup: Setup) -> tuple[str, str]:
    try:
        check = find(modules, name)
        if reason := needs.missing(check.needs):
            return "missing", reason
        check.run(Answer(lambda word, content: pipe.send((word, content))), setup)
    except CannotRun as reason:
        return "missing", str(reason)
    except BaseException as error:  # whatever it is, it is this check's answer
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}{_where(error)}"
    return "done", ""


def _where(error: BaseException) -> str:
    """The last line of our own code that the error passed."""
    root = str(Path(__file__).parents[2])
    ours = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(root)]
    return f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
