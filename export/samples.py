"""Which network inputs a build uses: for calibration, for ranges and block ranking, and for the gate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isnet_trt.export.network_inputs import NetworkInput, load_inputs
from isnet_trt.export.options import OptionalPath
from isnet_trt.export.quantise import CalibrationInputs, calibration_inputs
from isnet_trt.recipes import NetworkRecipe, Recipe
from isnet_trt.settings import Inference, Size

COMPARED = 16
"""Network inputs that the gate compares and that ranges are measured on: PyTorch takes seconds for each."""


@dataclass(frozen=True)
class Samples:
    """Network inputs of a build.

    Attributes:
        gate: inputs on which engine and checkpoint are compared.
        typical: inputs on which ranges are measured and blocks are ranked.
        calibration: every input from the folder of typical pictures.
        left_out: pictures of that folder that are in neither ``gate`` nor ``typical``, with the reason, one line each.
    """

    gate: Sequence[NetworkInput]
    typical: Sequence[NetworkInput]
    calibration: CalibrationInputs | None = None
    left_out: tuple[str, ...] = ()


def windows_at_scale_1(recipe: Recipe | NetworkRecipe) -> Inference:
    """The inference settings of calibration: the recipe's windows, or whole images, at scale 1 without flip."""
    return recipe.ms_flip.replace(scales=(1.0,), flip=False)


def samples(
    recipe: Recipe | NetworkRecipe, calib: OptionalPath, limit: int, images: OptionalPath, static: Size | None
) -> Samples:
    """The inputs of a build: at most ``limit`` from ``calib``; those of the gate from ``images`` where it is given.

    The gate of an engine of one ``static`` (height, width) takes whole pictures resized to it instead of windows.

    Raises:
        SettingsError: a folder holds no picture, or none that can be read.
        ImageError: one of ``images`` cannot be used.
    """
    chosen = Path(images) if images else None
    if calib is None:
        gate = load_inputs(recipe.preprocess, chosen, static, COMPARED, recipe.network)
        return Samples(gate, gate)
    inputs = calibration_inputs(calib, recipe.preprocess, windows_at_scale_1(recipe), limit, recipe.network)
    typical = list(itertools.islice(inputs, COMPARED))
    # Those met so far; the calibration reads on from there and reports the rest itself.
    left_out = tuple(inputs.skipped)
    gate = typical
    if chosen or static:
        gate = load_inputs(recipe.preprocess, chosen or inputs.readable, static, COMPARED, recipe.network)
    return Samples(gate, typical, inputs, left_out)
