"""Images a second and latency of a Triton Inference Server on this machine, beside calls in this process.

    python -m benchmarks.serving BUNDLE

The bundle is exported with one instance. In each round every contender segments the same image as often: calls of a
`Segmenter`, one client over HTTP, one over gRPC, and several clients over gRPC at once. Clients and server share the
machine. It needs the server and tritonclient: `make test-triton-server` installs both into .venv/triton-server, which
is to be on PYTHONPATH.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import command, results, stats
from isnet_trt import Segmenter, cli, timing
from isnet_trt.bundle.triton_repository import export_triton
from isnet_trt.errors import PackageMissing
from isnet_trt.integrations.triton_server import Address, started, wait_until_ready

_MODEL = "measured"
Ask = Callable[[], np.ndarray]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = cli.parser("benchmarks.serving", __doc__ or "")
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle of any engine")
    parser.add_argument("--requests", type=cli.positive, default=40, help="of a contender in a round (default: 40)")
    parser.add_argument("--clients", type=cli.positive, default=4, help="clients at once (default: 4)")
    command.add_image_size(parser, "resize the built-in image to this (default: 512 512)", (512, 512))
    command.add_common(parser, rounds=5)
    arguments = parser.parse_args(argv)
    ((_, image),) = command.pictures(None, tuple(arguments.image_size), (512, 512), [])
    with (
        Segmenter.open(arguments.bundle, threads=arguments.threads) as segmenter,
        _server(arguments.bundle) as address,
        contextlib.ExitStack() as clients,
    ):
        direct = functools.partial(_direct, segmenter, image)
        http = clients.enter_context(_client("http", address, image))
        grpc = [clients.enter_context(_client("grpc", address, image)) for _ in range(arguments.clients)]
        contenders: dict[str, list[Ask]] = {"direct": [direct], "http": [http], "grpc": grpc[:1]}
        contenders[f"grpc, {len(grpc)} clients"] = grpc
        _check(contenders, direct())
        runs = [functools.partial(_seconds, asks, arguments.requests) for asks in contenders.values()]
        samples = timing.interleaved(runs, range(arguments.rounds), "serving")
        description = segmenter.description
    records = [_record(name, rounds, image, description) for name, rounds in zip(contenders, samples, strict=True)]
    return command.finish(records, [], arguments.out)


@contextlib.contextmanager
def _server(bundle: str) -> Iterator[Address]:
    """A server of the bundle on free ports, with its log in a file."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w", encoding="utf-8") as log:
        repository = export_triton(bundle, Path(folder) / "models", _MODEL).parent
        with contextlib.ExitStack() as sockets:
            listeners = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
            address = Address("127.0.0.1", *(listener.getsockname()[1] for listener in listeners))
        with started(repository, address, log=log) as process:
            wait_until_ready(process, address)
            yield address


@contextlib.contextmanager
def _client(protocol: str, address: Address, image: np.ndarray) -> Iterator[Ask]:
    """A client that asks for the label map of ``image``."""
    try:
        import tritonclient.grpc
        import tritonclient.http
    except ImportError as error:
        raise PackageMissing(f"benchmarks.serving needs tritonclient[all] ({error}); see --help") from error
    api: Any = tritonclient.http if protocol == "http" else tritonclient.grpc
    tensor = api.InferInput("IMAGE", (1, *image.shape), "UINT8").set_data_from_numpy(image[None])
    outputs = [api.InferRequestedOutput("LABELS")]
    with api.InferenceServerClient(f"{address.host}:{getattr(address, protocol)}") as client:
        yield lambda: client.infer(_MODEL, [tensor], outputs=outputs).as_numpy("LABELS")[0]


def _direct(segmenter: Segmenter, image: np.ndarray) -> np.ndarray:
    return segmenter(image).labels


def _check(contenders: dict[str, list[Ask]], labels: np.ndarray) -> None:
    """Ask everyone once, and compare the answers."""
    for asks in contenders.values():
        for ask in asks:
            np.testing.assert_array_equal(ask(), labels)


def _seconds(asks: Sequence[Ask], requests: int) -> tuple[float, list[float]]:
    """Seconds of all ``requests``, shared among clients that ask at once, and of each."""

    def times(ask: Ask, count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            ask()
            seconds.append(time.perf_counter() - start)
        return seconds

    counts = [len(range(number, requests, len(asks))) for number in range(len(asks))]
    start = time.perf_counter()
    if len(asks) == 1:  # tritonclient.http has to be used in the thread that created it
        return sum(single := times(asks[0], requests)), single
    with ThreadPoolExecutor(len(asks)) as pool:
        single = [one for part in pool.map(times, asks, counts) for one in part]
    return time.perf_counter() - start, single


def _record(
    name: str, rounds: Sequence[tuple[float, list[float]]], image: np.ndarray, description: str
) -> results.Record:
    rates = stats.spread([len(single) / total for total, single in rounds])
    latency = stats.spread([one for _, single in rounds for one in single])
    figures = {
        "images_per_s": rates.p50,
        "quartiles": rates.quartiles,
        "p50_ms": 1e3 * latency.p50,
        "p99_ms": 1e3 * latency.p99,
        "requests": latency.n,
    }
    # The kind has no section of its own: it is shown as a check.
    size = f"{image.shape[0]}x{image.shape[1]}"
    return {"kind": "serving", "case": f"serving.{name}", "figures": figures, "engine": description, "image": size}


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
