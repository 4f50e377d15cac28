"""``python -m isnet_trt.integrations.triton_server REPOSITORY``: start a Triton Inference Server that serves bundles.

The server is NVIDIA's own program: the one on the PATH (in NVIDIA's container), or that of the wheel nvidia-pytriton.
The model's processes run the Python that this one runs, with its packages.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from isnet_trt import cli
from isnet_trt.errors import EngineError, PackageMissing, SettingsError

_EPILOG = """examples:
  python -m isnet_trt.bundle export-triton bundles/ade models --name ade
  python -m isnet_trt.integrations.triton_server models
  python -m isnet_trt.integrations.triton_server models --http-port 9000 -- --log-verbose=1 --exit-on-error=false

After -- come options of tritonserver itself. SIGTERM and Ctrl-C finish the requests that run.
exit status: the server's; 2 if there is none"""
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Address:
    """Where the server listens: a host of this machine, and the ports for HTTP, gRPC and metrics."""

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def options(self) -> list[str]:
        """The server's options."""
        ports = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}
        return [
            option
            for name, port in ports.items()
            for option in (f"--{name}-address={self.host}", f"--{name}-port={port}")
        ]


def find_server() -> Path:
    """The server's program: on the PATH, or in the wheel nvidia-pytriton.

    Raises:
        PackageMissing: there is none.
    """
    if on_path := shutil.which("tritonserver"):
        return Path(on_path)
    wheel = importlib.util.find_spec("pytriton")  # found, not imported: it needs more packages
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        if (program := Path(folder) / "tritonserver" / "bin" / "tritonserver").is_file():
            return program
    raise PackageMissing(
        "there is no tritonserver on the PATH, nor the wheel that brings one: run this in NVIDIA's container, or "
        "pip install --no-deps nvidia-pytriton==0.7.0 (Linux, x86-64)"
    )


@contextlib.contextmanager
def started(
    repository: Path, address: Address, options: Sequence[str] = (), log: IO[str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server while the block runs; its output goes to ``log``, by default to this process's.

    Raises:
        PackageMissing: there is no server.
        SettingsError: there is no such repository, or the folder for temporary files has a name that cannot be used.
    """
    if not repository.is_dir():
        raise SettingsError(f"{repository} is no folder; isnet-trt bundle export-triton writes a model repository")
    program = find_server()
    with tempfile.TemporaryDirectory(prefix="isnet_trt-triton-") as folder:
        arguments = [
            f"--model-repository={_plain(repository, Path(folder))}",
            *address.options(),
            *_backends(program, Path(folder)),
            *options,
        ]
        process = subprocess.Popen([program, *arguments], env=_environment(program), stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def _plain(repository: Path, folder: Path) -> Path:
    """The repository under a path that a shell takes as it is: a link in ``folder`` where its own is not so.

    The Python backend starts the models' processes by a shell command without quotes. With a space in the path they
    end at once, and the server waits for them for ever.
    """
    if shlex.quote(str(folder)) != str(folder):
        raise SettingsError(
            f"{folder}, in the folder for temporary files, has characters that Triton's Python backend cannot take; "
            "set TMPDIR to a folder without spaces and quotes"
        )
    path = repository.resolve()
    if shlex.quote(str(path)) == str(path):
        return path
    link = folder / "models"
    link.symlink_to(path, target_is_directory=True)
    return link


def wait_until_ready(process: subprocess.Popen[bytes], address: Address, seconds: float = 120) -> None:
    """Wait until the server and all models are ready; EngineError if it ends or takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise EngineError(f"the server ended with status {process.returncode}; its log says why")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(address.host, address.http, timeout=5)
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == http.client.OK:
                return
        time.sleep(0.1)
    raise EngineError(f"the server is not ready after {seconds:g} seconds; its log says why")


def _wheel(program: Path) -> Path | None:
    """The folder of the wheel's server; None for a server that was installed as a whole."""
    root = program.resolve().parents[1]
    return root if (root / "python_backend_stubs").is_dir() else None


def _backends(program: Path, folder: Path) -> list[str]:
    """The wheel's Python backend with the stub for this version of Python, put together in ``folder``."""
    root = _wheel(program)
    if root is None:
        return []
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        versions = ", ".join(sorted(path.name for path in stub.parents[1].iterdir()))
        raise PackageMissing(f"{root} serves Python {versions}, but this is Python {version}; use one of those")
    backend = shutil.copytree(root / "backends" / "python", folder / "python")
    shutil.copyfile(stub, backend / _STUB)
    (backend / _STUB).chmod(0o755)
    return [f"--backend-directory={folder}"]


def _environment(program: Path) -> dict[str, str]:
    """The environment in which the server's processes find this Python, its packages and the wheel's libraries."""
    # The stub ignores PYTHONPATH: like the interpreter, it finds a virtual environment beside the python3 on the PATH.
    first = {"PATH": [str(Path(sys.executable).parent)]}
    if root := _wheel(program):
        libraries = root.parents[1] / "nvidia_pytriton.libs"
        first["LD_LIBRARY_PATH"] = [str(libraries), sysconfig.get_config_var("LIBDIR")]
    paths = {name: os.pathsep.join([*folders, os.environ.get(name, "")]) for name, folders in first.items()}
    return {**os.environ, **{name: value.rstrip(os.pathsep) for name, value in paths.items()}}


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser("isnet_trt.integrations.triton_server", "Serve exported bundles with Triton.", _EPILOG)
    add = parser.add_argument
    add("repository", type=Path, metavar="REPOSITORY", help="folder that bundle export-triton wrote models to")
    add("--host", default=Address.host, help=f"address to listen at (default: {Address.host}, this machine only)")
    for name in ("http", "grpc", "metrics"):
        port = getattr(Address, name)
        add(f"--{name}-port", type=cli.whole(1, 65535), default=port, metavar="N", help=f"default: {port}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    own = words.index("--") if "--" in words else len(words)
    arguments = argument_parser().parse_args(words[:own])
    address = Address(arguments.host, arguments.http_port, arguments.grpc_port, arguments.metrics_port)
    with started(arguments.repository, address, words[own + 1 :]) as process:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: process.terminate())
        return process.wait()


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
