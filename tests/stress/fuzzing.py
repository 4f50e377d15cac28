"""Mutated input in forked children: each case ends right or in the project's own error, in bounded time and memory.

A child works on a batch of cases, so that a crash of a library is a finding of one case and 100,000 cases take minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import probe
from tqdm import tqdm

from isnet_trt.errors import IsnetError

SECONDS = 5.0
"""Processor time, which other processes do not lengthen much; a case that takes more is a finding."""
PATIENCE = 300
"""Seconds after which a child that reports nothing is ended."""
BATCH = 500
RIGHT, REFUSED = "right", "refused"
CANARY = "canary"
"""Name of the file that mutations try to have written, in the working directory."""
TOUCH = f"touch {CANARY}"
_LONGEST_MESSAGE = 5000
_FORK = multiprocessing.get_context("fork") if sys.platform != "win32" else None
_EXECUTED = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "import", "socket.connect"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Subject(Protocol):
    """What is mutated, and what reads it."""

    memory: int
    """Bytes that reading a case may take: the budget. Twice as many are a finding."""
    batch: int = BATCH
    """Cases of one child."""

    def start(self, folder: Path) -> None:
        """In the child, before the first case: read sound input, so that all imports are done."""

    def write(self, number: int, folder: Path) -> str:
        """Write the files of a case, and return what it is: the original and the mutation."""

    def read(self, folder: Path) -> str:
        """`RIGHT`, or what is wrong with the result; raises IsnetError where the input is refused."""

    def subject(self, folder: Path) -> str:
        """What the message of a refusal has to name."""


class Case(NamedTuple):
    """One case and how it ended; ``memory`` in bytes."""

    number: int
    label: str
    end: str
    seconds: float = 0.0
    memory: int = 0


class Watch:
    """Events of the interpreter while a case is read that only running something from it would cause."""

    def __init__(self) -> None:
        self.active = False
        self.events: list[str] = []
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        # typing evaluates the annotations of the project's own dataclasses, which are text.
        code = event == "exec" and sys._getframe(1).f_globals.get("__name__") != "typing"
        if code or event in _EXECUTED or (event == "open" and _writes(arguments)):
            self.events.append(f"{event} {str(arguments[:1])[:200]}")

    def __enter__(self) -> None:
        self.events, self.active = [], True

    def __exit__(self, *raised: object) -> None:
        self.active = False


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2] if len(arguments) > 2 else 0
    return isinstance(flags, int) and bool(flags & _WRITING)


def run(subject: Subject, arguments: argparse.Namespace) -> int:
    """Run the cases that the arguments ask for, and return the exit status."""
    numbers = range(arguments.first, arguments.first + arguments.cases)
    counts, findings, slowest, largest = Counter[str](), list[str](), 0.0, 0
    keep = arguments.keep.absolute() / Path(sys.argv[0]).stem
    for case in tqdm(outcomes(subject, numbers, keep), "cases", len(numbers), disable=None, mininterval=1):
        slowest, largest = max(slowest, case.seconds), max(largest, case.memory)
        if case.end in (RIGHT, REFUSED):
            counts[case.end] += 1
            continue
        findings.append(f"case {case.number} ({case.label}): {case.end}")
        probe.show(findings[-1])
    figures = {"cases": len(numbers), "right": counts[RIGHT], "refused": counts[REFUSED]}
    figures |= {"longest, s": round(slowest, 2), "most memory, MiB": largest >> 20}
    return probe.finish(arguments, figures, findings)


def outcomes(subject: Subject, numbers: range, keep: Path) -> Iterator[Case]:
    """Every case and its end, in order; a child that dies or hangs is the end of its case.

    The files of findings are copied to ``keep``, with the case's number in the name.
    """
    first = numbers.start
    while first < numbers.stop:
        batch = range(first, min(first + getattr(subject, "batch", BATCH), numbers.stop))
        with TemporaryDirectory() as folder:
            first = yield from _batch(subject, batch, Path(folder), keep)


def _keep(folder: Path, keep: Path, number: int) -> None:
    """Copy the files of a case, but FIFOs and the like."""
    target = keep / str(number)
    shutil.rmtree(target, ignore_errors=True)
    with contextlib.suppress(shutil.Error):  # what cannot be copied is left out
        shutil.copytree(folder, target, symlinks=True)


def _batch(subject: Subject, numbers: range, folder: Path, keep: Path) -> Iterator[Case]:
    """The cases of one child; the number of the first case after them."""
    assert _FORK is not None, "this system has no fork"
    receiver, sender = _FORK.Pipe(duplex=False)
    child = _FORK.Process(target=_work, args=(subject, numbers, folder, keep, sender), daemon=True)
    child.start()
    sender.close()
    current = Case(numbers.start, "the first of a batch", "")
    try:
        while receiver.poll(PATIENCE):
            current = receiver.recv()
            if current.end:
                yield current
            if current.end and current.number == numbers[-1]:
                return numbers.stop
        _keep(folder, keep, current.number)
        yield current._replace(end=f"no end after {PATIENCE} s")
    except EOFError:
        child.join()
        _keep(folder, keep, current.number)
        yield current._replace(end=f"the process ended with {child.exitcode}")
    finally:
        child.kill()
        child.join()
        receiver.close()
    return current.number + 1


def _work(subject: Subject, numbers: range, folder: Path, keep: Path, sender: Connection) -> None:
    """Read the cases in this child, and send each twice: before it is read, and with its end."""
    _limit_memory(subject.memory)
    os.chdir(folder)
    watch = Watch()
    subject.start(folder)
    for number in numbers:
        label = subject.write(number, folder)
        sender.send(Case(number, label, ""))
        case = _attempt(subject, folder, watch, Case(number, label, ""))
        if case.end not in (RIGHT, REFUSED):
            _keep(folder, keep, number)
        sender.send(case)


def _limit_memory(budget: int) -> None:
    """Leave room for a finding, but none for a case that would take the whole machine."""
    room = int(_status("VmSize")) + 4 * budget + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


def _attempt(subject: Subject, folder: Path, watch: Watch, case: Case) -> Case:
    (folder / CANARY).unlink(missing_ok=True)
    before = _reset_peak()
    start = time.process_time()
    with watch:
        end = _end(subject, folder)
    seconds, memory = time.process_time() - start, _status("VmHWM") - before
    if watch.events:
        end = f"executed {watch.events}"
    elif (folder / CANARY).exists():
        end = "the canary was written"
    elif seconds > SECONDS:
        end = f"{seconds:.1f} s ({end})"
    elif memory > 2 * subject.memory:
        end = f"{memory >> 20} MiB ({end})"
    return case._replace(end=end, seconds=seconds, memory=memory)


def _end(subject: Subject, folder: Path) -> str:
    try:
        return subject.read(folder)
    except IsnetError as error:
        message = str(error)
        if subject.subject(folder) not in message:
            return f"a message that does not name the file: {message}"
        return REFUSED if len(message) < _LONGEST_MESSAGE else f"a message of {len(message)} characters"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def _reset_peak() -> int:
    """Let the kernel count the peak of memory anew; the memory in use, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A figure of this process in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, name
    return int(found[1]) * 1024
