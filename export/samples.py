"""What a build shows to the network: inputs for the calibration, for ranges and searches, and for the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isnet_trt.export import parity
from isnet_trt.export.options import OptionalPath
from isnet_trt.export.parity import NetworkInput
from isnet_trt.export.quantise import CalibrationInputs, calibration_inputs
from isnet_trt.recipes import Recipe
from isnet_trt.settings import Inference, Size

COMPARED = 16
"""Network inputs that the gate compares and that ranges are measured on: PyTorch takes seconds for each."""


@dataclass(frozen=True)
class Samples:
    """Network inputs.

    ``gate``: what engine and checkpoint are compared on; ``typical``: what ranges are measured and blocks ranked on;
    ``calibration``: all that the folder of typical pictures makes; ``left_out``: what of that folder could not be used
    for the first two, one line a picture.
    """

    gate: Sequence[NetworkInput]
    typical: Sequence[NetworkInput]
    calibration: CalibrationInputs | None = None
    left_out: tuple[str, ...] = ()


def windows_at_scale_1(recipe: Recipe) -> Inference:
    """How calibration shows pictures: the recipe's windows where it has some, else whole, at scale 1 without flip."""
    return recipe.ms_flip.replace(scales=(1.0,), flip=False)


def samples(recipe: Recipe, calib: OptionalPath, limit: int, images: OptionalPath, static: Size | None) -> Samples:
    """The inputs of a build: from ``calib``, at most ``limit``; the gate's from ``images`` where that is given.

    For the gate of an engine of one ``static`` (height, width), which takes no windows of another size, the pictures
    themselves are brought to that size.

    Raises:
        SettingsError: there are no pictures in a folder, or none that can be read.
        ImageError: one of ``images`` cannot be used.
    """
    chosen = Path(images) if images else None
    if calib is None:
        gate = parity.load_inputs(recipe.preprocess, chosen, static, COMPARED)
        return Samples(gate, gate)
    inputs = calibration_inputs(calib, recipe.preprocess, windows_at_scale_1(recipe), limit)
    typical = [picture for _, picture in zip(range(COMPARED), inputs, strict=False)]
    left_out = tuple(inputs.skipped)
    gate = typical
    if chosen or static:
        gate = parity.load_inputs(recipe.preprocess, chosen or inputs.readable, static, COMPARED)
    return Samples(gate, typical, inputs, left_out)
