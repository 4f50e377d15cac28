"""The parity gate: what was built must compute what the checkpoint computes, or nothing is written.

The checkpoint side is the training form in evaluation mode under PyTorch: it shares neither the folding of
batch-norm nor the collapsed context with what was exported.
"""

from __future__ import annotations

import dataclasses
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

from isnet_trt.engines import Engine
from isnet_trt.errors import ParityError, SettingsError
from isnet_trt.export.graph import borders
from isnet_trt.preprocess import normalise, read_image, resize
from isnet_trt.settings import Preprocess, Size
from isnet_trt.training.model import ISNet

PICTURES = Path(__file__).parent / "pictures"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_SIDE = 256
"""Longer side of the default pictures as the gate shows them: enough for every path, seconds for ResNet-50."""


@dataclass(frozen=True)
class Tolerance:
    """Largest and root-mean-square error of the logits over their standard deviation; least share of equal labels."""

    max: float
    rms: float
    agreement: float


# Two float32 implementations differ by about 1e-5; the mildest structural mistake (a wrong epsilon) by 1e-2 rms.
# A position may change its class in the first prediction by a rounding error and so move by more: hence max and label
# bounds are wider than rms.
FP32 = Tolerance(max=5e-3, rms=5e-4, agreement=0.995)


@dataclass(frozen=True)
class Picture:
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


def load_pictures(preprocess: Preprocess, images: Path | None = None, size: Size | None = None) -> list[Picture]:
    """The gate's pictures: those in ``images`` (a file or a folder, through the recipe's test resize), or our own.

    With ``size`` every picture is resized to that (height, width), for engines of one static shape.

    Raises:
        SettingsError: there is no picture at ``images``.
    """
    return list(_pictures(preprocess, images, size))


def _pictures(preprocess: Preprocess, images: Path | None, size: Size | None) -> Iterator[Picture]:
    for path in _files(images or PICTURES):
        image = read_image(path)
        if size:
            image = _scaled(image, size)
        elif images:
            image = resize(image, preprocess)
        else:
            factor = _SIDE / max(image.shape[:2])
            image = _scaled(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))
        pixels = normalise(image, preprocess).transpose(2, 0, 1)[None]
        yield Picture(path.name, np.ascontiguousarray(pixels))


def _scaled(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _files(images: Path) -> list[Path]:
    found = [images] if images.is_file() else sorted(p for p in images.glob("*") if p.suffix.lower() in _SUFFIXES)
    if not found:
        raise SettingsError(f"{images}: no pictures for the parity gate there ({', '.join(sorted(_SUFFIXES))})")
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


@torch.inference_mode()
def gate(
    model: ISNet,
    proto: onnx.ModelProto,
    engine: Engine,
    pictures: Sequence[Picture],
    tolerance: Tolerance = FP32,
    graph_path: Path | None = None,
) -> dict[str, Any]:
    """Compare ``engine`` with ``model`` on every picture; the report for the manifest.

    ``graph_path`` is the file of ``proto``, used to look for the worst tensor when the comparison fails.

    Raises:
        ParityError: a figure is outside its bound; the message has the figures and names the worst block.
    """
    rows = []
    for picture in pictures:
        wanted = model(torch.from_numpy(picture.pixels)).numpy()
        got = engine.run(picture.pixels)
        height, width = picture.pixels.shape[2:]
        row = dataclasses.replace(compare(picture.name, got, wanted), height=height, width=width)
        rows.append(row)
        if not row.within(tolerance):
            raise ParityError(_failure(row, tolerance, engine, model, proto, picture, graph_path))
    return {"engine": engine.description, "tolerance": asdict(tolerance), "pictures": [asdict(row) for row in rows]}


def _failure(
    row: Row,
    tolerance: Tolerance,
    engine: Engine,
    model: ISNet,
    proto: onnx.ModelProto,
    picture: Picture,
    graph_path: Path | None,
) -> str:
    what = (
        "the engine gives NaN or Inf" if np.isnan(row.max) else "the engine does not compute what the checkpoint does"
    )
    message = (
        f"{what} ({engine.description}); nothing was written.\n  {row}\n"
        f"  bounds: max {tolerance.max:.1e}, rms {tolerance.rms:.1e}, labels equal {100 * tolerance.agreement:.1f} %"
    )
    if graph_path is None:
        return message
    lines = [f"  {name:22} max {worst:.1e}" for name, worst in block_errors(model, proto, graph_path, picture)]
    first = next((line.split()[0] for line in lines if not float(line.split()[-1]) <= 10 * tolerance.rms), None)
    where = (
        f"  first block outside its bound in the ONNX graph: {first}" if first else "  the ONNX graph itself is right"
    )
    return "\n".join([message, *lines, f"  {where}"])


@torch.inference_mode()
def block_errors(model: ISNet, proto: onnx.ModelProto, graph_path: Path, picture: Picture) -> list[tuple[str, float]]:
    """(block, largest error over the block's standard deviation) at the block borders, in order of computation."""
    tensors = borders(proto)
    wanted = _hooked(model, tensors, torch.from_numpy(picture.pixels))
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors.values())
    path = graph_path.with_name("probe.onnx")
    try:
        onnx.save_model(probe, str(path))
        got = _all_outputs(path, picture, list(tensors.values()))
    finally:
        path.unlink(missing_ok=True)
    return [(name, compare(name, value, wanted[name]).max) for name, value in zip(tensors, got, strict=True)]


def _all_outputs(path: Path, picture: Picture, names: list[str]) -> list[NDArray[np.float32]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(names, {session.get_inputs()[0].name: picture.pixels})


def _hooked(model: ISNet, names: Iterable[str], pixels: Tensor) -> dict[str, NDArray[np.float32]]:
    seen: dict[str, NDArray[np.float32]] = {}
    handles = []
    for name in names:

        def keep(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            seen[name] = output.detach().numpy().copy()

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        model(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return seen
