"""How far a bundle is from what this machine can do: each stage beside its floor, and a roofline picture."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import command, results
from isnet_trt import Segmenter, cli, timing
from isnet_trt.bundle import ONNX, Bundle
from isnet_trt.engines.onnxruntime import LIBRARY
from isnet_trt.errors import IsnetError, SettingsError
from isnet_trt.merging.geometry import coarse_size
from isnet_trt.pictures.preprocess import test_size
from isnet_trt.settings import Inference, Size

if TYPE_CHECKING:  # torch and onnx are imported where they are used: --help does without
    import onnx

_DESCRIPTION = """Each stage of a bundle beside its floor on this machine (CPU).

Operations and least bytes of the network's blocks come from the bundle's ONNX graph; the matrix rate and the memory
rate are measured here, in the same run, before and after the stages. A stage's floor is the larger of operations /
matrix rate and least bytes / memory rate; its share is floor / seconds (1 is the limit). A block's seconds are those
of its part of the graph alone, fed with the values that cross its border in a run: the least of interleaved rounds."""
REPEATS = 5
_POSITIONS, _MATRIX = 64, 1536
"""Sides of the convolutions' input and of the matrices of the product."""
_KERNELS = {"3x3": (512, 3), "1x1": (1024, 1)}
"""Convolutions: channels and side of the kernel."""


@dataclass(frozen=True)
class Rates:
    """Operations per second of float32 and of uint8 times int8 arithmetic, and bytes per second; by kernel."""

    fp32: dict[str, float]
    int8: dict[str, float]
    memory: dict[str, float]

    def matrix(self, quantised: bool) -> float:
        """The best matrix rate of the arithmetic, in operations per second."""
        return max((self.int8 if quantised else self.fp32).values())

    @property
    def bandwidth(self) -> float:
        """The best memory rate, in bytes per second, reads and writes added."""
        return max(self.memory.values())

    def best(self, other: Rates) -> Rates:
        """The better of two measurements of each kernel: the clock of a machine is not always the same."""
        pairs = ((self.fp32, other.fp32), (self.int8, other.int8), (self.memory, other.memory))
        return Rates(*({name: max(rate, b.get(name, 0.0)) for name, rate in a.items()} for a, b in pairs))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.limit", _DESCRIPTION)
    command.add_bundles(parser)
    command.add_image_size(parser, "of the picture (default: 512 683)", default=(512, 683))
    command.add_common(parser, rounds=5)
    arguments = parser.parse_args(argv)
    gaps: command.Gaps = []
    bundles = command.read_bundles(arguments.bundles, gaps)
    size, threads = tuple(arguments.image_size), arguments.threads
    machine = measure_rates(threads)
    records = []
    for name, bundle in command.named(bundles).items():
        try:
            records.append(measure(name, bundle, size, machine, threads, arguments.rounds))
        except IsnetError as error:
            gaps.append(results.gap(name, str(error)))
    return command.finish(records, gaps, arguments.out)


def measure(name: str, bundle: Bundle, size: Size, machine: Rates, threads: int, rounds: int) -> results.Record:
    """The limit record of a bundle whose engine is ONNX Runtime.

    Raises:
        SettingsError: the bundle's engine is another: its blocks cannot be timed one by one.
    """
    manifest = bundle.manifest
    if manifest.engine.kind != LIBRARY.kind:
        raise SettingsError(f"blocks are timed under ONNX Runtime only; this bundle is for {manifest.engine.kind}")
    from benchmarks.blocks import Network
    from isnet_trt.export.onnx_edit import from_bytes

    inputs = test_size(size, manifest.preprocess)
    network = Network(from_bytes(bundle.read(manifest.engine.file or ONNX), bundle.read), inputs)
    seconds, network_seconds = network.seconds(threads, rounds)
    host = _host(bundle, size, inputs, threads, rounds)
    # Again after the stages: a clock that rose in between must not put a stage below its floor.
    machine = machine.best(measure_rates(threads))
    blocks = zip(network.blocks(), seconds, strict=True)
    stages = [stage(*block, block_seconds, machine, network.quantised) for block, block_seconds in blocks]
    stages += [stage(*figures, machine, quantised=False) for figures in host]
    sums = {key: sum(part[key] for part in stages) for key in ("operations", "bytes", "seconds", "floor")}
    total_stage = stage("all", sums["operations"], sums["bytes"], sums["seconds"], machine, network.quantised)
    # The floor of the sum is the sum of the floors.
    total_stage |= {"floor": sums["floor"], "share": sums["floor"] / sums["seconds"]}
    about: results.Record = {"kind": "limit", "case": f"{manifest.recipe} {size[0]}x{size[1]}", "name": name}
    about |= {"precision": manifest.precision, "threads": threads, "quantised": network.quantised}
    about |= {"rates": asdict(machine), "network_seconds": network_seconds}
    return about | {"stages": stages, "total": total_stage}


def stage(name: str, operations: float, size: float, seconds: float, machine: Rates, quantised: bool) -> results.Record:
    """One stage of ``operations`` and ``size`` bytes beside its floor."""
    compute, memory = operations / machine.matrix(quantised), size / machine.bandwidth
    floor, bound = max(compute, memory), "compute" if compute >= memory else "memory"
    figures = {"name": name, "operations": operations, "bytes": size, "seconds": seconds}
    return figures | {"floor": floor, "bound": bound, "share": floor / seconds if seconds else 0.0}


def _host(bundle: Bundle, size: Size, inputs: Size, threads: int, rounds: int) -> list[tuple[str, float, float, float]]:
    """(stage, operations, bytes, seconds) of what surrounds the network, for one pass at scale 1.

    Bytes: resize reads uint8 and writes normalised float32; gather reads and writes float32; merge reads the
    low-resolution scores and writes labels. Operations of merge: two for the interpolation and one for the comparison
    of each class at each pixel.
    """
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with Segmenter.open(bundle.folder, threads=threads) as segmenter:
        # The first run is thrown away: it starts thread pools and allocates.
        runs = [segmenter(image, inference=Inference()).seconds for _ in range(rounds + 1)][1:]
        classes, stride = segmenter.labels.count, segmenter.output_stride
    pixels, resized, scores = np.prod(size), np.prod(inputs), np.prod(coarse_size(inputs, stride))
    least = {
        "resize": (0.0, 3 * pixels + 12 * resized),
        "gather": (0.0, 24 * resized),
        "merge": (3.0 * classes * pixels, 4 * classes * scores + pixels),
    }
    return [(n, float(o), float(b), float(np.median([run[n] for run in runs]))) for n, (o, b) in least.items()]


def measure_rates(threads: int, repeats: int = REPEATS) -> Rates:
    """The rates with ``threads`` CPU threads, in about ten seconds.

    A rate is the best of several repetitions of the best of several kernels: what the hardware can give here.
    """
    import torch

    from benchmarks.peers.networks import open_session

    torch.set_num_threads(threads)
    a, b, out = (torch.randn(_MATRIX, _MATRIX) for _ in range(3))
    fp32 = {"PyTorch matrix product": 2.0 * _MATRIX**3 / _least(lambda: torch.mm(a, b, out=out), repeats)}
    int8: dict[str, float] = {}
    for name, (channels, side) in _KERNELS.items():
        for rates, quantised in ((fp32, False), (int8, True)):
            session = open_session(_convolution(channels, side, quantised), threads)
            x = np.random.default_rng(0).standard_normal((1, channels, _POSITIONS, _POSITIONS), dtype=np.float32)
            least = _least(functools.partial(session.run, None, {"x": x}), repeats)
            rates[f"ONNX Runtime {name} convolution"] = 2.0 * _POSITIONS**2 * channels**2 * side**2 / least
    # Copy and sum of arrays far larger than any cache (J. McCalpin's STREAM counts the same way).
    a, b, out = (torch.ones(48 * 2**20) for _ in range(3))
    size = a.numel() * 4
    copy, add = _least(lambda: b.copy_(a), repeats), _least(lambda: torch.add(a, b, out=out), repeats)
    return Rates(fp32, int8, {"copy": 2 * size / copy, "add": 3 * size / add})


def _least(work: Callable[[], object], repeats: int) -> float:
    """The least seconds of ``repeats`` runs after one that warms up."""
    return min([timing.seconds(work) for _ in range(repeats + 1)][1:])


def _convolution(channels: int, side: int, quantised: bool) -> onnx.ModelProto:
    """A convolution x -> y; quantised: uint8 activations, int8 weights, with Q/DQ around it."""
    import onnx.parser
    from onnx import numpy_helper

    shape = f"float[1,{channels},{_POSITIONS},{_POSITIONS}]"
    weight = np.random.default_rng(1).standard_normal((channels, channels, side, side), dtype=np.float32)
    pads = f"pads=[{', '.join([str(side // 2)] * 4)}]"
    constants: dict[str, NDArray[Any]]
    if not quantised:
        body, constants = f"y = Conv<{pads}>(x, w)", {"w": weight}
    else:
        # The result is quantised too: only then does ONNX Runtime compute the convolution in integers.
        body = f"""xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)  wd = DequantizeLinear(wq, s, wz)
            yf = Conv<{pads}>(xd, wd)  yq = QuantizeLinear(yf, s, z)  y = DequantizeLinear(yq, s, z)"""
        scale, zero = np.array(0.05, np.float32), np.array(128, np.uint8)
        quantised_weight = (weight * 20).clip(-127, 127).astype(np.int8)
        constants = {"wq": quantised_weight, "wz": np.array(0, np.int8), "s": scale, "z": zero}
    header = '<ir_version: 10, opset_import: ["" : 18]>'
    model = onnx.parser.parse_model(f"{header} rate ({shape} x) => ({shape} y) {{ {body} }}")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


if __name__ == "__main__":
    sys.exit(cli.run(main))
