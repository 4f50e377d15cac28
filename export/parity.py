"""The parity gate: what was built must compute what the given network computes, or nothing is written.

The reference (`isnet_trt.export.reference`) is the network itself: a checkpoint or a module under PyTorch, a graph of
others as it was given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from isnet_trt.engines.base import Engine
from isnet_trt.errors import ParityError
from isnet_trt.evaluation.examples import Example, worst
from isnet_trt.export.graph import block_outputs
from isnet_trt.export.intake.enlargement import enlarged
from isnet_trt.export.intake.probe import LEAST_SPREAD
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.reference import Blocks, Reference
from isnet_trt.export.sessions import open_session
from isnet_trt.files import printable
from isnet_trt.merging.merge import Head
from isnet_trt.metrics import Confusion, percent, rounded
from isnet_trt.pictures.preprocess import denormalised
from isnet_trt.settings import Inference, Preprocess

_PLAIN = Inference()
BINS = 80
Histogram = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]
"""Edges (BINS + 1,), counts of the checkpoint's values (BINS,), counts of the engine's graph (BINS,)."""


@dataclass(frozen=True)
class Tolerance:
    """Bounds of the gate.

    ``max`` and ``rms``: largest and root-mean-square error of the logits over their standard deviation; ``agreement``:
    smallest share of equal labels; ``cosine``: smallest cosine between a block's output and the checkpoint's.
    """

    max: float
    rms: float
    agreement: float
    cosine: float


# fp32: two implementations differ by about 1e-5, the mildest structural mistake (a wrong epsilon) by 1e-2 rms. Rounding
# may change the class of a position in the first prediction, and so its logits by more: hence the bounds of max and
# labels are wider than that of rms.
# The others only show that an engine is sane: they hold for networks with synthetic weights, whose labels depend on
# small differences. What an engine costs on the user's own pictures is in the report.
# ResNet-50 on ADE20K with the fixtures' weights, calibrated on the compared picture: rms 0.37, labels equal 0.57 in
# int8, 0.44 and 0.44 in E4M3. Logits unrelated to the checkpoint's have rms 1.4.
EIGHT_BITS = Tolerance(max=4.0, rms=0.6, agreement=0.35, cosine=0.8)
TOLERANCES = {
    "fp32": Tolerance(max=5e-3, rms=5e-4, agreement=0.995, cosine=0.999999),
    "fp16": Tolerance(max=0.5, rms=0.06, agreement=0.95, cosine=0.998),
    "bf16": Tolerance(max=2.0, rms=0.3, agreement=0.75, cosine=0.95),
    "int8": EIGHT_BITS,
    "fp8": EIGHT_BITS,
}
FP32 = TOLERANCES["fp32"]
IMAGENET = Preprocess(None)
EXAMPLES = 3
"""The inputs with the fewest equal labels whose label maps are kept."""


@dataclass(frozen=True)
class Target:
    """The smallest share of equal labels over all inputs that is expected of an engine, and why."""

    agreement: float
    reason: str


_DEMO = "The demo model keeps {} of its labels, and loses {} points of mIoU (docs/precision.md). "
_EIGHT_BITS_TARGET = Target(
    0.98,
    _DEMO.format("99.5 % in int8, 98.7 % in fp8", "at most 0.1") + "Where more than 2 % change, it has not been shown "
    "that mIoU stays",
)
TARGETS = {
    "fp32": Target(
        0.999,
        "Two float32 implementations of one network differ by about 1e-6 of the logits' spread: a label changes only "
        "where two classes tie",
    ),
    "fp16": Target(
        0.995,
        "float16 rounds to 11 significant bits. " + _DEMO.format("99.99 %", "0.00") + "Half a per cent leaves room for "
        "near ties of models with more classes",
    ),
    "bf16": Target(
        0.99,
        "bfloat16 rounds to 8 significant bits. " + _DEMO.format("99.8 %", "0.07") + "1 % leaves room for near ties of "
        "models with more classes",
    ),
    "int8": _EIGHT_BITS_TARGET,
    "fp8": _EIGHT_BITS_TARGET,
}
"""What the report holds an engine to unless the user asks for another share. Missing it is reported; only what is
outside `TOLERANCES`, or below the user's own share, is refused."""


@dataclass(frozen=True)
class LogitsErrors:
    """Errors of the logits of one input of ``height`` x ``width``, relative to the logits' standard deviation.

    ``image`` is the name of the file that the input is a part of.
    """

    picture: str
    height: int
    width: int
    max: float
    rms: float
    agreement: float
    image: str = ""

    def within(self, tolerance: Tolerance) -> bool:
        """Whether every figure is inside its bound (NaN is not)."""
        return self.max <= tolerance.max and self.rms <= tolerance.rms and self.agreement >= tolerance.agreement

    def __str__(self) -> str:
        return (
            f"{self.picture} {self.height}x{self.width}: max {self.max:.1e}, rms {self.rms:.1e}, "
            f"labels equal {percent(self.agreement, 3)} %"
        )


def compare_logits(
    name: str,
    values: NDArray[np.float32],
    reference: NDArray[np.float32],
    labels: tuple[NDArray, NDArray] | None = None,
) -> LogitsErrors:
    """Compare one picture's logits (1, K, h, w) with the reference's; NaN or Inf in ``values`` makes errors NaN.

    ``labels`` are those of both; by default the class with the largest logit.
    """
    difference = (values.astype(np.float64) - reference) / max(float(reference.std()), LEAST_SPREAD)
    if not np.isfinite(values).all():
        difference = np.full_like(difference, np.nan)
    of_values, of_reference = labels or (values.argmax(1), reference.argmax(1))
    agreement = float((of_values == of_reference).mean())
    rms = float(np.sqrt((difference**2).mean()))
    height, width = reference.shape[2:]
    return LogitsErrors(name, height, width, float(np.abs(difference).max()), rms, agreement)


@dataclass(frozen=True)
class BlockErrors:
    """Cosine between a block's output and the checkpoint's, and errors over the checkpoint's standard deviation."""

    block: str
    cosine: float
    rms: float
    max: float

    def worst(self, other: BlockErrors | None) -> BlockErrors:
        """The worse value of each figure."""
        if other is None:
            return self
        return BlockErrors(
            self.block, min(self.cosine, other.cosine), max(self.rms, other.rms), max(self.max, other.max)
        )


@dataclass
class ParityResult:
    """Errors of each picture, the worst of each block, and the labels counted against the checkpoint's.

    ``examples`` are the inputs with the fewest equal labels, worst first.
    """

    engine: str
    tolerance: Tolerance
    confusion: Confusion
    rows: list[LogitsErrors] = dataclasses.field(default_factory=list)
    examples: list[Example] = dataclasses.field(default_factory=list)
    blocks: dict[str, BlockErrors] = dataclasses.field(default_factory=dict)
    histograms: dict[str, Histogram] = dataclasses.field(default_factory=dict)

    @property
    def images(self) -> dict[str, float]:
        """Share of equal labels of each image: the mean over its inputs, least first."""
        shares: dict[str, list[float]] = {}
        for row in self.rows:
            shares.setdefault(row.image or row.picture, []).append(row.agreement)
        means = {image: sum(values) / len(values) for image, values in shares.items()}
        return dict(sorted(means.items(), key=lambda item: item[1]))

    @property
    def positions(self) -> int:
        """Number of labels that were compared."""
        return int(self.confusion.counts.sum())

    @property
    def agreement(self) -> float:
        """Share of equal labels over all pictures."""
        return float(np.trace(self.confusion.counts) / max(self.confusion.counts.sum(), 1))

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "engine": self.engine,
            "tolerance": asdict(self.tolerance),
            "agreement": self.agreement,
            "pictures": [asdict(row) for row in self.rows],
            "blocks": [asdict(block) for block in self.blocks.values()],
        }


def gate(
    reference: Reference,
    head: Head,
    proto: onnx.ModelProto,
    engine: Engine,
    inputs: Iterable[NetworkInput],
    tolerance: Tolerance = FP32,
    progress: bool = False,
    preprocess: Preprocess = IMAGENET,
) -> ParityResult:
    """Compare the logits of ``engine`` with those of ``reference``, and its graph ``proto`` block by block.

    ``head`` says what the engine's output is; at the size of the reference's, where that enlarges it itself, both are
    compared. Blocks are compared under ONNX Runtime, since engines do not return inner tensors. ``preprocess`` is what
    the inputs were made with, to show them.

    Raises:
        ParityError: a figure is outside its bound; the message has the figures and names the first bad block.
    """
    tensors = block_outputs(proto)
    result = ParityResult(engine.description, tolerance, Confusion(head.label_count))
    with _block_runner(proto, tensors) as run_blocks:
        for item in tqdm(inputs, "parity", leave=False, disable=None if progress else True):
            expected, reference_blocks = reference.run_with_blocks(item.pixels, tensors)
            logits = enlarged(engine.run(item.pixels), expected.shape[2:], head.network.upsampling)
            labels, expected_labels = head.labels(logits[0], _PLAIN), head.labels(expected[0], _PLAIN)
            row = compare_logits(item.name, logits, expected, (labels, expected_labels))
            height, width = item.pixels.shape[2:]
            image = printable(item.file.name) if item.file else item.name
            row = dataclasses.replace(row, height=height, width=width, image=image)
            values = run_blocks(item.pixels)
            blocks = [_block(name, values[name], reference_blocks[name]) for name in tensors]
            if not row.within(tolerance) or not all(block.cosine >= tolerance.cosine for block in blocks):
                raise ParityError(_failure(row, tolerance, engine, blocks))
            result.rows.append(row)
            result.confusion.add(labels, expected_labels)
            example = Example.of(item.name, denormalised(item.pixels[0], preprocess), expected_labels, labels)
            result.examples = worst(EXAMPLES, result.examples, example)
            for block in blocks:
                name = block.block
                result.blocks[name] = block.worst(result.blocks.get(name))
                result.histograms[name] = _histogram(result.histograms.get(name), reference_blocks[name], values[name])
    return result


@contextlib.contextmanager
def _block_runner(proto: onnx.ModelProto, tensors: Mapping[str, str]) -> Iterator[Callable[[NDArray], Blocks]]:
    """Runs a graph for the outputs of its blocks; a graph without blocks is not run."""
    if not tensors:
        yield lambda pixels: {}
        return
    with open_session(proto, tensors.values()) as session:
        source, names = session.get_inputs()[0].name, list(tensors.values())
        yield lambda pixels: dict(zip(tensors, session.run(names, {source: pixels}), strict=True))


def _block(name: str, values: NDArray[np.float32], reference: NDArray[np.float32]) -> BlockErrors:
    row = compare_logits(name, values.astype(np.float32, copy=False), reference)
    one, other = values.ravel().astype(np.float64), reference.ravel().astype(np.float64)
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    # A block that is zero everywhere on both sides agrees with itself.
    cosine = float(one @ other / lengths) if lengths else float(not one.any() and not other.any())
    # 1 is exactly for equal blocks; rounding may give a little more or less.
    cosine = 1.0 if np.array_equal(one, other) else min(cosine, math.nextafter(1.0, 0.0))
    return BlockErrors(name, cosine, row.rms, row.max)


def _histogram(earlier: Histogram | None, reference: NDArray[np.float32], values: NDArray[Any]) -> Histogram:
    """Add the values of one picture. The first picture decides the edges; values beyond them count at the ends."""
    # The margin keeps the edges increasing where all values are equal.
    edges = earlier[0] if earlier else np.linspace(float(reference.min()), float(reference.max()) + 1e-6, BINS + 1)
    first, second = (
        np.histogram(np.clip(array, edges[0], edges[-1]), edges)[0] for array in (reference, values.astype(np.float32))
    )
    return (edges, first + earlier[1], second + earlier[2]) if earlier else (edges, first, second)


def _failure(row: LogitsErrors, tolerance: Tolerance, engine: Engine, blocks: Sequence[BlockErrors]) -> str:
    problem = "gives NaN or Inf" if np.isnan(row.max) else "does not compute what the given network does"
    lines = [f"  {block.block:22} max {block.max:.1e}, cosine {rounded(block.cosine, 6)}" for block in blocks]
    # Blocks have no bound of their own for the largest error; in fp32 that of the logits is ten times the rms bound.
    bad = (b.block for b in blocks if not (b.max <= 10 * tolerance.rms and b.cosine >= tolerance.cosine))
    first = next(bad, None)
    return "\n".join(
        [
            f"the engine {problem} ({engine.description}); nothing was written.",
            f"  {row}",
            f"  bounds: max {tolerance.max:.1e}, rms {tolerance.rms:.1e}, "
            f"labels equal {percent(tolerance.agreement, 1)} %, cosine {tolerance.cosine:g}",
            *lines,
            f"    first block outside its bound in the ONNX graph: {first}" if first else "    the ONNX graph is right",
            *([_EIGHT_BITS_HELP] if tolerance == EIGHT_BITS else []),
        ]
    )


_EIGHT_BITS_HELP = (
    "  Eight bits may be too few on these pictures: calibrate on more and more typical ones (--calib), keep blocks out "
    "of them (--max-drop, --keep), or use --precision fp16"
)
