"""The parity gate: what was built must compute what the checkpoint computes, or nothing is written.

The checkpoint side is the training form in evaluation mode under PyTorch: it shares neither the folding of
batch-norm nor the collapsed context with what was exported.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from isnet_trt.engines.base import Engine
from isnet_trt.errors import ImageError, ParityError, SettingsError
from isnet_trt.export.graph import block_outputs
from isnet_trt.export.sessions import open_session
from isnet_trt.metrics import Confusion
from isnet_trt.pictures.files import SUFFIXES, named, pictures_in, printable, read_image
from isnet_trt.pictures.preprocess import normalise, resize
from isnet_trt.settings import Preprocess, Size
from isnet_trt.training.model import ISNet

PICTURES = Path(__file__).parent / "pictures"
BINS = 80
Histogram = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]
_SIDE = 256
"""Longer side of the default pictures as the gate shows them: enough for every path, seconds for ResNet-50."""


@dataclass(frozen=True)
class Tolerance:
    """Bounds of the gate.

    ``max`` and ``rms``: largest and root-mean-square error of the logits over their standard deviation; ``agreement``:
    least share of equal labels; ``cosine``: least cosine between a block's output and the checkpoint's.
    """

    max: float
    rms: float
    agreement: float
    cosine: float


# fp32: two implementations differ by about 1e-5; the mildest structural mistake (a wrong epsilon) by 1e-2 rms. A
# position may change its class in the first prediction by a rounding error and so move by more: hence max and label
# bounds are wider than rms.
# The others only show that an engine is sane: they hold for networks with made-up weights, whose labels hang on small
# differences. What an engine costs on one's own pictures is in the report.
# ResNet-50 on ADE20K with the fixtures' weights, calibrated on the compared picture: rms 0.37, labels equal 0.57 in
# int8, 0.44 and 0.44 in E4M3. What has nothing to do with the checkpoint has rms 1.4.
EIGHT_BITS = Tolerance(max=4.0, rms=0.6, agreement=0.35, cosine=0.8)
TOLERANCES = {
    "fp32": Tolerance(max=5e-3, rms=5e-4, agreement=0.995, cosine=0.999999),
    "fp16": Tolerance(max=0.5, rms=0.06, agreement=0.95, cosine=0.998),
    "bf16": Tolerance(max=2.0, rms=0.3, agreement=0.75, cosine=0.95),
    "int8": EIGHT_BITS,
    "fp8": EIGHT_BITS,
}
FP32 = TOLERANCES["fp32"]


@dataclass(frozen=True)
class NetworkInput:
    """A network input: its name and normalised pixels (1, 3, H, W) float32."""

    name: str
    pixels: NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """The comparison on one picture of ``height`` x ``width``; errors relative to the logits' standard deviation."""

    picture: str
    height: int
    width: int
    max: float
    rms: float
    agreement: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether every figure is inside its bound (NaN is not)."""
        return self.max <= tolerance.max and self.rms <= tolerance.rms and self.agreement >= tolerance.agreement

    def __str__(self) -> str:
        return (
            f"{self.picture} {self.height}x{self.width}: max {self.max:.1e}, rms {self.rms:.1e}, "
            f"labels equal {100 * self.agreement:.3f} %"
        )


def load_inputs(
    preprocess: Preprocess,
    images: Path | Sequence[Path] | None = None,
    size: Size | None = None,
    limit: int | None = None,
) -> list[NetworkInput]:
    """The gate's pictures: those in ``images`` (a file, a folder, files; through the recipe's test resize), or our own.

    With ``size`` every picture is resized to that (height, width), for engines of one static shape. The first
    ``limit`` are read, the others are not looked at.

    Raises:
        SettingsError: there is no picture at ``images``.
        ImageError: one of them cannot be read, or is too narrow for the resize.
    """
    return list(itertools.islice(_pictures(preprocess, images, size), limit))


def _pictures(
    preprocess: Preprocess, images: Path | Sequence[Path] | None, size: Size | None
) -> Iterator[NetworkInput]:
    for path in _files(images or PICTURES):
        image = read_image(path)
        if size:
            image = _scaled(image, size)
        elif images:
            try:
                image = resize(image, preprocess)
            except ImageError as error:
                raise ImageError(named(path, error)) from None
        else:
            factor = _SIDE / max(image.shape[:2])
            image = _scaled(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))
        pixels = normalise(image, preprocess).transpose(2, 0, 1)[None]
        yield NetworkInput(printable(path.name), np.ascontiguousarray(pixels))


def _scaled(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _files(images: Path | Sequence[Path]) -> Sequence[Path]:
    if not isinstance(images, Path):
        return images
    if not images.is_dir():
        return [images]
    if not (found := pictures_in(images)):
        raise SettingsError(f"{images}: no pictures for the parity gate there ({', '.join(sorted(SUFFIXES))})")
    return found


def compare(name: str, got: NDArray[np.float32], wanted: NDArray[np.float32]) -> Row:
    """One picture's logits (1, K, h, w) beside the checkpoint's; NaN or Inf in ``got`` makes the errors NaN."""
    difference = (got.astype(np.float64) - wanted) / max(float(wanted.std()), 1e-12)
    if not np.isfinite(got).all():
        difference = np.full_like(difference, np.nan)
    agreement = float((got.argmax(1) == wanted.argmax(1)).mean())
    rms = float(np.sqrt((difference**2).mean()))
    height, width = wanted.shape[2:]
    return Row(name, height, width, float(np.abs(difference).max()), rms, agreement)


@dataclass(frozen=True)
class Block:
    """One block's output beside the checkpoint's: cosine, and errors over the checkpoint's standard deviation."""

    block: str
    cosine: float
    rms: float
    max: float

    def worse(self, other: Block | None) -> Block:
        """The worst of both figures by figure."""
        if other is None:
            return self
        pairs = (self.cosine, other.cosine), (self.rms, other.rms), (self.max, other.max)
        return Block(self.block, min(pairs[0]), max(pairs[1]), max(pairs[2]))


@dataclass
class ParityResult:
    """What the gate saw: a row per picture, the worst of every block, labels counted against the checkpoint's.

    ``histograms``: block -> edges (BINS + 1,), counts of the checkpoint (BINS,), counts of the engine's graph (BINS,).
    """

    engine: str
    tolerance: Tolerance
    confusion: Confusion
    rows: list[Row] = dataclasses.field(default_factory=list)
    blocks: dict[str, Block] = dataclasses.field(default_factory=dict)
    histograms: dict[str, Histogram] = dataclasses.field(default_factory=dict)

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


@torch.inference_mode()
def gate(
    model: ISNet,
    proto: onnx.ModelProto,
    engine: Engine,
    pictures: Iterable[NetworkInput],
    tolerance: Tolerance = FP32,
    progress: bool = False,
) -> ParityResult:
    """Compare ``engine`` with ``model`` on every picture, and its graph ``proto`` under ONNX Runtime block by block.

    Raises:
        ParityError: a figure is outside its bound; the message has the figures and names the first bad block.
    """
    names = block_outputs(proto)
    found = ParityResult(engine.description, tolerance, Confusion(model.architecture.num_classes))
    with open_session(proto, names.values()) as session:
        for picture in tqdm(pictures, "parity", leave=False, disable=None if progress else True):
            wanted, logits = _hooked(model, names, torch.from_numpy(picture.pixels))
            got = engine.run(picture.pixels)
            outputs = session.run(list(names.values()), {session.get_inputs()[0].name: picture.pixels})
            blocks = [_block(name, value, wanted[name]) for name, value in zip(names, outputs, strict=True)]
            height, width = picture.pixels.shape[2:]
            row = dataclasses.replace(compare(picture.name, got, logits), height=height, width=width)
            if not row.within(tolerance) or not all(block.cosine >= tolerance.cosine for block in blocks):
                raise ParityError(_failure(row, tolerance, engine, blocks))
            _count(found, row, blocks, got.argmax(1), logits.argmax(1))
            for name, value in zip(names, outputs, strict=True):
                found.histograms[name] = _histogram(found.histograms.get(name), wanted[name], value)
    return found


def _count(found: ParityResult, row: Row, blocks: Sequence[Block], got: NDArray[Any], wanted: NDArray[Any]) -> None:
    found.rows.append(row)
    found.confusion.add(got, wanted)
    for block in blocks:
        found.blocks[block.block] = block.worse(found.blocks.get(block.block))


def _block(name: str, got: NDArray[np.float32], wanted: NDArray[np.float32]) -> Block:
    row = compare(name, got.astype(np.float32, copy=False), wanted)
    one, two = got.ravel().astype(np.float64), wanted.ravel().astype(np.float64)
    lengths = np.linalg.norm(one) * np.linalg.norm(two)
    # A block that is zero everywhere on both sides agrees with itself.
    cosine = float(one @ two / lengths) if lengths else float(not one.any() and not two.any())
    return Block(name, cosine, row.rms, row.max)


def _histogram(before: Histogram | None, wanted: NDArray[np.float32], got: NDArray[Any]) -> Histogram:
    """Counts of both sides' values; the first picture decides the bins, what lies outside counts at the ends."""
    edges = before[0] if before else np.linspace(float(wanted.min()), float(wanted.max()) + 1e-6, BINS + 1)
    counts = [np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0] for side in (wanted, got.astype(np.float32))]
    if before:
        counts = [new + old for new, old in zip(counts, before[1:], strict=True)]
    return edges, counts[0], counts[1]


def _failure(row: Row, tolerance: Tolerance, engine: Engine, blocks: Sequence[Block]) -> str:
    what = (
        "the engine gives NaN or Inf" if np.isnan(row.max) else "the engine does not compute what the checkpoint does"
    )
    lines = [f"  {block.block:22} max {block.max:.1e}, cosine {block.cosine:.6f}" for block in blocks]
    bad = (b.block for b in blocks if not (b.max <= 10 * tolerance.rms and b.cosine >= tolerance.cosine))
    first = next(bad, None)
    return "\n".join(
        [
            f"{what} ({engine.description}); nothing was written.",
            f"  {row}",
            f"  bounds: max {tolerance.max:.1e}, rms {tolerance.rms:.1e}, "
            f"labels equal {100 * tolerance.agreement:.1f} %, cosine {tolerance.cosine:g}",
            *lines,
            f"    first block outside its bound in the ONNX graph: {first}" if first else "    the ONNX graph is right",
            *([_EIGHT_BITS_HELP] if tolerance == EIGHT_BITS else []),
        ]
    )


_EIGHT_BITS_HELP = (
    "  Eight bits may be too few on these pictures: calibrate on more and more typical ones (--calib), keep blocks out "
    "of them (--max-drop, --keep), or use --precision fp16"
)


def _hooked(
    model: ISNet, names: Iterable[str], pixels: Tensor
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """The outputs of the modules ``names``, and the model's."""
    seen: dict[str, NDArray[np.float32]] = {}
    handles = []
    for name in names:

        def keep(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            seen[name] = output.detach().numpy().copy()

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        return seen, model(pixels).numpy()
    finally:
        for handle in handles:
            handle.remove()
