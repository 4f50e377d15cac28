"""The command that starts a Triton Inference Server, up to the start of the server itself."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from children import PATIENCE, free_ports

from isnet_trt import cli
from isnet_trt.errors import EngineError, PackageMissing
from isnet_trt.integrations import triton_server
from isnet_trt.integrations.triton_server import Address, find_server, main, started, wait_until_ready

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
SERVER = """#!/bin/sh
echo "$@" > "$OUT/arguments"; echo "$LD_LIBRARY_PATH" > "$OUT/libraries"; echo "$PATH" > "$OUT/path"
ls -l "${10#*=}/python" > "$OUT/backend"
exit 7
"""


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout of the wheel, with a program that records how it is started and ends with status 7."""
    root = tmp_path / "site" / "pytriton" / "tritonserver"
    for folder in ("bin", "backends/python", f"python_backend_stubs/{VERSION}"):
        (root / folder).mkdir(parents=True)
    (root.parent / "__init__.py").write_text("raise ImportError('more packages are needed')")
    (root / "bin" / "tritonserver").write_text(SERVER)
    (root / "bin" / "tritonserver").chmod(0o755)
    (root / "backends" / "python" / "libtriton_python.so").write_bytes(b"library")
    (root / "python_backend_stubs" / VERSION / "triton_python_backend_stub").write_bytes(b"stub")
    monkeypatch.syspath_prepend(root.parents[1])
    monkeypatch.setenv("OUT", str(tmp_path))
    (tmp_path / "models").mkdir()
    return root


def test_the_wheels_server_gets_libraries_python_and_the_stub(wheel: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "models"), "--grpc-port", "9", "--", "--log-verbose=1"]) == 7
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[0] == f"--model-repository={tmp_path / 'models'}"
    assert {"--http-address=127.0.0.1", "--http-port=8000", "--grpc-port=9"} <= set(arguments)
    assert arguments[-1] == "--log-verbose=1"
    libraries = (tmp_path / "libraries").read_text().split(os.pathsep)
    assert libraries[0] == str(wheel.parents[1] / "nvidia_pytriton.libs")
    assert (tmp_path / "path").read_text().startswith(str(Path(sys.executable).parent) + os.pathsep)


@pytest.mark.parametrize("name", ["a space", "quo'te", "do$llar;"])
def test_a_repository_whose_path_a_shell_would_take_apart_is_linked(wheel: Path, tmp_path: Path, name: str) -> None:
    """The Python backend starts its processes by a shell command: they would end at once, and the server wait."""
    (tmp_path / "models").rename(tmp_path / name)
    (tmp_path / name / "file").touch()
    wheel.joinpath("bin", "tritonserver").write_text(SERVER.replace("exit 7", 'ls "${1#*=}" > "$OUT/listed"; exit 7'))
    assert main([str(tmp_path / name)]) == 7
    assert shlex.quote(argument := (tmp_path / "arguments").read_text().split(" --")[0]) == argument
    assert (tmp_path / "listed").read_text() == "file\n"
    assert (tmp_path / name / "file").is_file()  # the link went with the server, not what it leads to


def test_a_folder_for_temporary_files_that_cannot_be_used(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "temporary files").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary files"))
    assert cli.run(main, [str(tmp_path / "models")]) == cli.ERROR
    assert "set TMPDIR to a folder without spaces" in capsys.readouterr().err


def test_a_server_on_the_path_comes_first_and_keeps_its_backends(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "opt" / "bin" / "tritonserver"
    own.parent.mkdir(parents=True)
    own.write_text('#!/bin/sh\necho "$@" > "$OUT/arguments"\n')
    own.chmod(0o755)
    monkeypatch.setenv("PATH", f"{own.parent}{os.pathsep}{os.environ['PATH']}")
    assert find_server() == own
    assert main([str(tmp_path / "models")]) == 0
    assert "backend-directory" not in (tmp_path / "arguments").read_text()


def test_the_stub_belongs_to_this_python(wheel: Path, tmp_path: Path) -> None:
    (wheel / "python_backend_stubs" / VERSION).rename(wheel / "python_backend_stubs" / "2.7")
    with pytest.raises(PackageMissing, match=rf"serves Python 2\.7, but this is Python {VERSION}"):
        main([str(tmp_path / "models")])


def test_without_a_server_it_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(triton_server.importlib.util, "find_spec", lambda name: None)
    assert cli.run(main, [str(tmp_path)]) == 2
    assert "there is no tritonserver on the PATH" in capsys.readouterr().err


def test_a_repository_that_is_none_is_named(wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(main, [str(tmp_path / "none")]) == 2
    assert f"{tmp_path / 'none'} is no folder" in capsys.readouterr().err
    assert not (tmp_path / "arguments").exists()


def test_the_end_of_a_server_is_an_error_with_its_status(wheel: Path, tmp_path: Path) -> None:
    with started(tmp_path / "models", Address()) as process, pytest.raises(EngineError, match="ended with status 7"):
        wait_until_ready(process, Address(http=free_ports(1)[0]), PATIENCE)


def test_a_server_that_is_never_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with pytest.raises(EngineError, match="not ready after"):
            wait_until_ready(process, Address(http=9), 0.3)
        process.kill()
    assert triton_server.Address().http == 8000
