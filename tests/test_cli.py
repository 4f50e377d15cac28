"""What ends a command: every kind of exception as one line and a status, and output that nobody reads."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from children import PATIENCE, environment, explained
from onnxruntime.capi.onnxruntime_pybind11_state import Fail as OrtFail

from isnet_trt import cli
from isnet_trt.errors import CheckpointError, IsnetError, PackageMissing, needs

PIXEL = np.zeros((1, 1), np.uint8)


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status and stderr of a command that raises ``error``."""

    def main(argv: Sequence[str] | None = None) -> int:
        raise error

    status = cli.run(main)
    return status, capsys.readouterr().err


def library_error(fail: Callable[[], object]) -> Exception:
    """What a library really raises."""
    try:
        fail()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def missing(name: str) -> ImportError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (CheckpointError("a.pth: damaged"), 2, "error: a.pth: damaged\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), 2, "error: a.png: No such file\n"),
        (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), 2, "error: a -> b: Cross-device link\n"),
        (PermissionError(errno.EACCES, "Permission denied", b"caf\xe9"), 2, "error: caf\\udce9: Permission denied\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "error: No space left on device\n"),
        (OSError("out of\norder"), 2, "error: out of order\n"),
        (MemoryError("Unable to allocate 9 TiB"), 2, "error: not enough memory (Unable to allocate 9 TiB); use"),
        (MemoryError(), 2, "error: not enough memory (an allocation failed)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 4 GiB"), 2, "error: not enough memory (CUDA out of memory."),
        (library_error(lambda: torch.empty(10**15)), 2, "error: not enough memory ("),
        (
            OrtFail("Available memory of 5 is smaller than requested bytes of 9"),
            2,
            "not enough memory",
        ),
        (OrtFail("Non-zero status code returned while running Expand node"), 70, "unexpected Fail"),
        (library_error(lambda: cv2.resize(PIXEL, (2**22, 2**22))), 2, "error: not enough memory ("),
        (library_error(lambda: cv2.cvtColor(PIXEL, cv2.COLOR_BGR2GRAY)), 70, "unexpected error: OpenCV"),
        (RuntimeError("a tensor of another shape"), 70, "unexpected RuntimeError"),
        (ValueError("write 'out of memory' here"), 70, "unexpected ValueError"),
        (RecursionError("maximum recursion depth exceeded"), 2, "error: an input is nested too deeply"),
        (missing("torch"), 2, "No module named 'torch'); pip install '.[build,train,bench]'"),
        (missing("isnet_trt.nothing"), 70, "unexpected ModuleNotFoundError"),
        (ZeroDivisionError("division by\nzero"), 70, "error: unexpected ZeroDivisionError: division by zero ("),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0, ""),
        (IsnetError("a\x1b[31m\x9b\tb\nc"), 2, "error: a\\x1b[31m\\x9b\\x09b\nc\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_exception_is_one_line_and_a_status(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, output = ended(error, capsys)
    assert found == status
    assert message in output
    assert "Traceback" not in output


def test_a_bug_names_its_place_and_how_to_get_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    _, output = ended(KeyError("x"), capsys)
    assert f"{Path(__file__).name}:" in output
    assert f"{cli.TRACEBACK}=1" in output
    assert output.count("\n") == 1
    for value, shown in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(cli.TRACEBACK, value)
        assert ("Traceback" in ended(CheckpointError("a"), capsys)[1]) == shown


def test_needs_names_the_extra_but_hides_no_bug() -> None:
    with (
        pytest.raises(
            PackageMissing, match=r"building needs more packages \(No module named 'onnx'\); .*'\.\[build\]'"
        ),
        needs("building", "build"),
    ):
        raise missing("onnx")
    with pytest.raises(ModuleNotFoundError), needs("building", "build"):
        raise missing("isnet_trt.export.nothing")


@pytest.mark.parametrize("option", ["", "--help"])
@pytest.mark.parametrize("stream", ["closed", "full"])
def test_output_that_cannot_be_written(option: str, stream: str) -> None:
    if stream == "full" and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    if stream == "closed":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open("/dev/full", os.O_WRONLY)
    command = [sys.executable, "-m", "isnet_trt.training.recipes", *option.split()]
    pipes = {"stdout": writing, "stderr": subprocess.PIPE, "env": environment(PYTHONUNBUFFERED="")}
    result = subprocess.run(command, **pipes, text=True, timeout=PATIENCE)
    os.close(writing)
    message = "" if stream == "closed" else "error: No space left on device\n"
    assert result.stderr == message
    assert result.returncode == (cli.ERROR if message else 0), explained(result)


@pytest.mark.parametrize(
    ("convert", "right", "wrong"),
    [
        (cli.positive, {"1": 1, "2147483647": 2**31 - 1}, ("0", "-1", "2147483648", "1.5", "x")),
        (cli.side, {"65536": 65536}, ("0", "65537", "999999999")),
        (cli.threads, {"8": 8}, ("0", "999999999")),
        (cli.number(0, 100), {"0": 0.0, "1e2": 100.0}, ("-1", "nan", "inf", "1e999", "x")),
    ],
)
def test_numbers_of_options(
    convert: Callable[[str], float], right: dict[str, float], wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = cli.parser("isnet_trt.nothing", "")
    parser.add_argument("--n", type=convert)
    assert {text: parser.parse_args([f"--n={text}"]).n for text in right} == right
    for text in wrong:
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([f"--n={text}"])
        assert ended.value.code == cli.ERROR
        assert f"argument --n: invalid {convert.__name__} value: {text!r}" in capsys.readouterr().err


def test_a_value_that_is_empty_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a shell variable that is not set: as a path it would be the working folder."""
    parser = cli.parser("isnet_trt.nothing", "")
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("--out", metavar="DIR", type=Path)
    for arguments, name in ((["a", ""], "IMAGE"), (["a", "--out", ""], "--out"), (["a", "--out="], "--out")):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        assert f"argument {name}: the value is empty" in capsys.readouterr().err
