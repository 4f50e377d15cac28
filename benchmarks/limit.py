"""How far a bundle is from what this machine can do: each stage beside its floor, and a roofline picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from benchmarks import command, rates, results
from benchmarks.blocks import Network
from isnet_trt import Segmenter, cli
from isnet_trt.bundle import ONNX, Bundle
from isnet_trt.engines.onnxruntime import LIBRARY
from isnet_trt.errors import IsnetError, SettingsError
from isnet_trt.merging.geometry import coarse_size
from isnet_trt.pictures.preprocess import test_size
from isnet_trt.settings import Inference, Size

_DESCRIPTION = """Each stage of a bundle beside its floor on this machine (CPU).

Operations and least bytes of the network's blocks come from the bundle's ONNX graph; the matrix rate and the memory
rate are measured here, in the same run, before and after the stages. A stage's floor is the larger of operations /
matrix rate and least bytes / memory rate; its share is floor / seconds (1 is the limit). A block's seconds are those
of its part of the graph alone, fed with the values that cross its border in a run: the least of interleaved rounds."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.limit", _DESCRIPTION)
    command.add_bundles(parser)
    parser.add_argument(
        "--image-size",
        nargs=2,
        type=cli.positive,
        default=(512, 683),
        metavar=("H", "W"),
        help="of the picture (default: 512 683)",
    )
    command.add_common(parser, rounds=5)
    arguments = parser.parse_args(argv)
    gaps: command.Gaps = []
    bundles = command.read_bundles(arguments.bundles, gaps)
    size, threads = tuple(arguments.image_size), arguments.threads
    machine = rates.measure(threads)
    records = []
    for name, bundle in command.named(bundles).items():
        try:
            records.append(measure(name, bundle, size, machine, threads, arguments.rounds))
        except IsnetError as error:
            gaps.append(results.gap(name, str(error)))
    return command.finish(records, gaps, arguments.out)


def measure(name: str, bundle: Bundle, size: Size, machine: rates.Rates, threads: int, rounds: int) -> results.Record:
    """The limit record of a bundle whose engine is ONNX Runtime.

    Raises:
        SettingsError: the bundle's engine is another: its blocks cannot be timed one by one.
    """
    manifest = bundle.manifest
    if manifest.engine.kind != LIBRARY.kind:
        raise SettingsError(f"blocks are timed under ONNX Runtime only; this bundle is for {manifest.engine.kind}")
    inputs = test_size(size, manifest.preprocess)
    network = Network(bundle.path(manifest.engine.file or ONNX), inputs)
    seconds, whole = network.seconds(threads, rounds)
    host = _host(bundle, size, inputs, threads, rounds)
    machine = machine.best(rates.measure(threads))
    stages = [
        stage(block.name, block.operations, block.bytes, s, machine, network.quantised)
        for block, s in zip(network.blocks(), seconds, strict=True)
    ]
    stages += [stage(*figures, machine, quantised=False) for figures in host]
    return {
        "kind": "limit",
        "case": f"{manifest.recipe} {size[0]}x{size[1]}",
        "name": name,
        "precision": manifest.precision,
        "threads": threads,
        "quantised": network.quantised,
        "rates": machine.to_json(),
        "network_seconds": whole,
        "stages": stages,
        "total": _total(stages, machine, network.quantised),
    }


def stage(
    name: str, operations: float, size: float, seconds: float, machine: rates.Rates, quantised: bool
) -> results.Record:
    """One stage of ``operations`` and ``size`` bytes beside its floor."""
    compute, memory = operations / machine.matrix(quantised), size / machine.bandwidth
    return {
        "name": name,
        "operations": operations,
        "bytes": size,
        "seconds": seconds,
        "floor": max(compute, memory),
        "bound": "compute" if compute >= memory else "memory",
        "share": max(compute, memory) / seconds if seconds else 0.0,
    }


def _total(stages: Sequence[results.Record], machine: rates.Rates, quantised: bool) -> results.Record:
    """All stages added; the floor of the sum is the sum of the floors."""
    sums = {key: sum(one[key] for one in stages) for key in ("operations", "bytes", "seconds", "floor")}
    total = stage("all", sums["operations"], sums["bytes"], sums["seconds"], machine, quantised)
    return total | {"floor": sums["floor"], "share": sums["floor"] / sums["seconds"]}


def _host(bundle: Bundle, size: Size, inputs: Size, threads: int, rounds: int) -> list[tuple[str, float, float, float]]:
    """(stage, operations, bytes, seconds) of what surrounds the network, for one pass at scale 1.

    Bytes: resize reads uint8 and writes normalised float32; gather reads and writes float32; merge reads the
    low-resolution scores and writes labels. Operations of merge: two for the interpolation and one for the comparison
    of each class at each pixel.
    """
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with Segmenter.open(bundle.folder, threads=threads) as segmenter:
        runs = [segmenter(image, inference=Inference()).seconds for _ in range(rounds + 1)][1:]
        classes, stride = segmenter.labels.count, segmenter.output_stride
    pixels, resized, scores = np.prod(size), np.prod(inputs), np.prod(coarse_size(inputs, stride))
    least = {
        "resize": (0.0, 3 * pixels + 12 * resized),
        "gather": (0.0, 24 * resized),
        "merge": (3.0 * classes * pixels, 4 * classes * scores + pixels),
    }
    return [(n, float(o), float(b), float(np.median([run[n] for run in runs]))) for n, (o, b) in least.items()]


if __name__ == "__main__":
    sys.exit(cli.run(main))
