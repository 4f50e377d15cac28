"""What the probes of mutated input find: crashes, other exceptions, time, memory, execution, and wrong results."""

from __future__ import annotations

import mmap
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from forked import needs_fork

sys.path.insert(0, str(Path(__file__).parent))

import fuzzing

from isnet_trt.errors import SettingsError

pytestmark = [needs_fork, pytest.mark.skipif(sys.platform != "linux", reason="the probes read /proc")]


class Trouble:
    """A reader that goes wrong in another way for each case."""

    memory = 8 << 20
    ENDS = (
        (lambda folder: fuzzing.RIGHT, "right"),
        (lambda folder: _raise(SettingsError(f"{folder} is wrong")), "refused"),
        (lambda folder: _raise(SettingsError("something is wrong")), "a message that does not name the file.*"),
        (lambda folder: _raise(KeyError("x")), "KeyError.*"),
        (lambda folder: os.kill(os.getpid(), signal.SIGKILL), "the process ended with -9"),
        (lambda folder: os.system(fuzzing.TOUCH), r"executed \[.os\.system.*"),
        (lambda folder: _touch(64 << 20), r"\d+ MiB \(right\)"),
        (lambda folder: _work(1.2), r"\d\.\d s \(right\)"),
        (lambda folder: (folder / "new").write_text("x") and "right", r"executed \[.open.*"),
        (lambda folder: "no labels", "no labels"),
        (lambda folder: fuzzing.RIGHT, "right"),
    )

    def start(self, folder: Path) -> None:
        """Nothing has to be prepared."""

    def write(self, number: int, folder: Path) -> str:
        self.number = number
        (folder / "case").write_text(str(number))
        return "made up"

    def read(self, folder: Path) -> str:
        return self.ENDS[self.number][0](folder)

    def subject(self, folder: Path) -> str:
        return str(folder)


def _work(seconds: float) -> str:
    """Take processor time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return fuzzing.RIGHT


def _touch(size: int) -> str:
    """Take pages that are new to the process: the allocator may have memory of an earlier test left."""
    with mmap.mmap(-1, size) as memory:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1
    return fuzzing.RIGHT


def _raise(error: Exception) -> str:
    raise error


def test_each_kind_of_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "SECONDS", 1.0)
    cases = list(fuzzing.outcomes(Trouble(), range(len(Trouble.ENDS)), tmp_path))
    assert [case.number for case in cases] == list(range(len(Trouble.ENDS)))
    for case, (_, expected) in zip(cases, Trouble.ENDS, strict=True):
        assert re.fullmatch(expected, case.end), case
    kept = {int(folder.name) for folder in tmp_path.iterdir()}
    assert kept == {case.number for case in cases if case.end not in (fuzzing.RIGHT, fuzzing.REFUSED)}
    assert (tmp_path / "4" / "case").read_text() == "4"
