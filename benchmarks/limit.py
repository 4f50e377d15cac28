"""How far a bundle is from what this machine can do: each stage beside its floor, and a roofline picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import blocks, cost, options, rates, results
from isnet_trt import Segmenter, cli
from isnet_trt.bundle import ONNX, Bundle
from isnet_trt.engines import onnxruntime as engine
from isnet_trt.errors import IsnetError, SettingsError
from isnet_trt.merging.geometry import coarse_size
from isnet_trt.pictures.preprocess import test_size
from isnet_trt.settings import Inference, Size

HOST = ("resize", "gather", "merge")
_DESCRIPTION = """Each stage of a bundle beside its floor on this machine (CPU).

Operations and least bytes of the network's blocks come from the bundle's ONNX graph; the matrix rate and the memory
rate are measured here, in the same run, before and after the stages. A stage's floor is the larger of operations /
matrix rate and least bytes / memory rate; its share is floor / seconds (1 is the limit). A block's seconds are those
of its part of the graph alone, fed with the values that cross its border in a run: the least of interleaved rounds."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.limit", _DESCRIPTION)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="folders made by isnet_trt.build")
    parser.add_argument("--rounds", type=cli.positive, default=5, help="timed rounds (default: 5)")
    parser.add_argument(
        "--image-size",
        nargs=2,
        type=cli.positive,
        default=(512, 683),
        metavar=("H", "W"),
        help="of the picture (default: 512 683)",
    )
    options.add_common(parser)
    arguments = parser.parse_args(argv)
    gaps: list[results.Record] = []
    found = options.bundles(arguments.bundles, gaps)
    machine = rates.measure(arguments.threads)
    records = []
    for name, bundle in zip(options.bundle_names(found), found, strict=True):
        try:
            records.append(measure(name, bundle, tuple(arguments.image_size), machine, arguments))
        except IsnetError as error:
            gaps.append(results.gap(name, str(error)))
    print("\n\n".join(map(text, records)))
    for one in gaps:
        print(f"not measured: {one['what']}: {one['why']}", file=sys.stderr)
    if arguments.out:
        results.write(arguments.out, results.result(records, gaps))
    return cli.ERROR if not records else cli.FAILED if gaps else 0


def measure(name: str, bundle: Bundle, size: Size, machine: rates.Rates, how: Any) -> results.Record:
    """The limit record of a bundle whose engine is ONNX Runtime; ``how`` has ``rounds`` and ``threads``.

    Raises:
        SettingsError: the bundle's engine is another: its blocks cannot be timed one by one.
    """
    manifest = bundle.manifest
    if manifest.engine.kind != engine.LIBRARY.kind:
        raise SettingsError(f"blocks are timed under ONNX Runtime only; this bundle is for {manifest.engine.kind}")
    model = bundle.path(manifest.engine.file or ONNX)
    inputs = test_size(size, manifest.preprocess)
    network = cost.blocks(model, inputs)
    quantised = any(node.op_type == "QuantizeLinear" for node in onnx.load(str(model)).graph.node)
    seconds, whole = blocks.seconds(model, [block.tensor for block in network], inputs, how.threads, how.rounds)
    host = _host(bundle, size, inputs, how.threads, how.rounds)
    machine = machine.best(rates.measure(how.threads))
    stages = [
        stage(b.name, b.operations, b.bytes, s, machine, quantised) for b, s in zip(network, seconds, strict=True)
    ]
    stages += [stage(n, o, b, s, machine, quantised=False) for n, o, b, s in host]
    return {
        "kind": "limit",
        "case": f"{manifest.recipe} {size[0]}x{size[1]}",
        "name": name,
        "precision": manifest.precision,
        "threads": how.threads,
        "quantised": quantised,
        "rates": machine.to_json(),
        "network_seconds": whole,
        "stages": stages,
        "total": stage(
            "all",
            sum(s["operations"] for s in stages),
            sum(s["bytes"] for s in stages),
            sum(s["seconds"] for s in stages),
            machine,
            quantised,
        )
        | {"floor": sum(s["floor"] for s in stages), "share": _share(stages)},
    }


def _share(stages: Sequence[results.Record]) -> float:
    return sum(s["floor"] for s in stages) / sum(s["seconds"] for s in stages)


def stage(
    name: str, operations: float, size: float, seconds: float, machine: rates.Rates, quantised: bool
) -> results.Record:
    """One stage beside its floor."""
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


def _host(bundle: Bundle, size: Size, inputs: Size, threads: int, rounds: int) -> list[tuple[str, float, float, float]]:
    """(stage, operations, bytes, seconds) of what surrounds the network, for one pass at scale 1.

    Bytes: resize reads uint8 and writes normalised float32; gather reads and writes float32; merge reads the coarse
    scores and writes labels. Operations of merge: two for the interpolation and one for the comparison of each class
    at each pixel.
    """
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with Segmenter.open(bundle.folder, threads=threads) as segmenter:
        runs = [segmenter(image, inference=Inference()).seconds for _ in range(rounds + 1)][1:]
        classes, stride = segmenter.labels.count, segmenter.output_stride
    pixels, given, coarse = np.prod(size), np.prod(inputs), np.prod(coarse_size(inputs, stride))
    least = {
        "resize": (0.0, 3 * pixels + 12 * given),
        "gather": (0.0, 24 * given),
        "merge": (3.0 * classes * pixels, 4 * classes * coarse + pixels),
    }
    return [(n, float(o), float(b), float(np.median([run[n] for run in runs]))) for n, (o, b) in least.items()]


def text(record: results.Record) -> str:
    """A record for people."""
    machine = record["rates"]
    lines = [
        f"{record['name']}, {record['case']}, {record['threads']} threads",
        "machine: "
        + ", ".join(f"{k} fp32 {v / 1e9:.0f} GFLOP/s" for k, v in machine["fp32"].items())
        + ", "
        + ", ".join(f"{k} uint8 {v / 1e9:.0f} GOP/s" for k, v in machine["int8"].items())
        + ", "
        + ", ".join(f"memory {k} {v / 1e9:.1f} GB/s" for k, v in machine["memory"].items()),
        f"{'stage':24}{'GFLOP':>9}{'MB':>9}{'ms':>9}{'floor ms':>10}{'share':>8}  bound",
    ]
    lines += map(_line, [*record["stages"], record["total"]])
    return "\n".join([*lines, f"the network as one: {1e3 * record['network_seconds']:.1f} ms"])


def _line(one: results.Record) -> str:
    return (
        f"{one['name']:24}{one['operations'] / 1e9:9.2f}{one['bytes'] / 1e6:9.1f}{1e3 * one['seconds']:9.1f}"
        f"{1e3 * one['floor']:10.1f}{100 * one['share']:7.0f}%  {one['bound']}"
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
