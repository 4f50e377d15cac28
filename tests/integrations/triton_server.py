"""A real Triton Inference Server for tests: started on free ports of this machine, asked through ``tritonclient``.

``make test-triton-server`` installs both into the folder that TRITON_SERVER_SITE names.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from children import CHECKOUT, PATIENCE, environment, free_ports
from prometheus_client.parser import text_string_to_metric_families

from isnet_trt.integrations.triton_server import Address, wait_until_ready

SITE = os.environ.get("TRITON_SERVER_SITE", "")
MISSING = "TRITON_SERVER_SITE is not set (make test-triton-server)"


def start(repository: Path, address: Address, log: Path, *options: str, site: str = SITE) -> subprocess.Popen[bytes]:
    """The launcher as a user starts it; the models import this checkout, which is the current folder."""
    ports = (f"--{name}-port={getattr(address, name)}" for name in ("http", "grpc", "metrics"))
    command = [sys.executable, "-m", "isnet_trt.integrations.triton_server", str(repository), *ports, "--", *options]
    paths = environment()["PYTHONPATH"] + (os.pathsep + site if site else "")
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=CHECKOUT, env=environment(PYTHONPATH=paths), stdout=output, stderr=output)


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    process: subprocess.Popen[bytes]
    address: Address
    log: Path

    def client(self, protocol: str = "grpc") -> Client:
        """A client of one thread."""
        return Client(self.address, protocol)

    def metrics(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.address.metrics}/metrics") as response:
            families = text_string_to_metric_families(response.read().decode())
        # The parser adds the suffix to counters that lack it.
        samples = (
            sample
            for family in families
            for sample in family.samples
            if name in (sample.name, sample.name.removesuffix("_total"))
        )
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


@contextlib.contextmanager
def running(repository: Path, log: Path, *options: str) -> Iterator[Server]:
    """A server while the block runs; SIGTERM ends it with status 0."""
    address = Address("127.0.0.1", *free_ports(3))
    process = start(repository, address, log, *options)
    try:
        wait_until_ready(process, address, PATIENCE)
        yield Server(process, address, log)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, log.read_text("utf-8")
    except BaseException:
        print(log.read_text("utf-8")[-5000:])
        raise
    finally:
        process.terminate()
        process.wait(PATIENCE)


class Client:
    """Requests to one model through ``tritonclient``, over HTTP or gRPC."""

    def __init__(self, address: Address, protocol: str) -> None:
        self.api = api(protocol)
        port = getattr(address, protocol)
        self.connection = self.api.InferenceServerClient(f"127.0.0.1:{port}")

    def ask(
        self, model: str, inputs: dict[str, np.ndarray], outputs: Sequence[str] = ("LABELS",), **parameters: Any
    ) -> tuple[np.ndarray, ...]:
        """The outputs; InferenceServerException where the server answers with an error."""
        tensors = []
        for name, array in inputs.items():
            tensors.append(self.api.InferInput(name, array.shape, "UINT8"))
            tensors[-1].set_data_from_numpy(np.ascontiguousarray(array))
        wanted = [self.api.InferRequestedOutput(name) for name in outputs]
        result = self.connection.infer(model, tensors, outputs=wanted, parameters=parameters)
        return tuple(result.as_numpy(name) for name in outputs)


def api(protocol: str) -> ModuleType:
    """``tritonclient.http`` or ``tritonclient.grpc``."""
    if SITE not in sys.path:
        sys.path.append(SITE)
    import tritonclient.grpc
    import tritonclient.http

    return tritonclient.http if protocol == "http" else tritonclient.grpc
