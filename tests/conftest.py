"""What all tests share: Ctrl-C and permissions as in a terminal, the output of failed child processes, exports made
once, and the generator of the reference's fixtures.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from children import explained
from golden_files import load_golden

import isnet_trt  # noqa: F401  before a test module imports onnxruntime, whose telemetry it turns off

# A shell starts background jobs with Ctrl-C ignored, and children inherit that: tests that interrupt one would hang.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Some tests hand files to another user, or compare permissions.
os.umask(0o022)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the output of a child process that failed or took too long: the exception does not."""
    report = yield
    error = call.excinfo and call.excinfo.value
    if isinstance(error, subprocess.CalledProcessError | subprocess.TimeoutExpired):
        report.sections.append(("child process", explained(error)))
    return report


@pytest.fixture(scope="module")
def traced_once() -> Iterator[None]:
    """Builds from checkpoints in this process trace a model once for the same weights."""
    from exports import export_once  # only here: most tests need no torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isnet_trt.export.sources.checkpoint.export_graph", export_once)
        yield


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter (pytest's own may not be)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="session")
def fill() -> ModuleType:
    """The generator of the fixtures' weights and pictures."""
    return load_golden("fill")
