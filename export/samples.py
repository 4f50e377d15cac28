"""Which network inputs a build uses: for calibration, for ranges and block ranking, and for the gate."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from isnet_trt.bundle import sha256
from isnet_trt.errors import SettingsError
from isnet_trt.export.network_inputs import NetworkInput, load_inputs
from isnet_trt.export.options import OptionalPath
from isnet_trt.export.quantise import CalibrationInputs, calibration_inputs
from isnet_trt.files import printable
from isnet_trt.pictures.finding import pictures_in
from isnet_trt.recipes import NetworkRecipe, Recipe
from isnet_trt.settings import Inference, Size

COMPARED = 16
"""Network inputs that the gate compares and that ranges are measured on: PyTorch takes seconds for each."""
FEWEST, EVERY = 8, 4
"""A folder of at least so many typical pictures is divided: one of four is held out of calibration for the gate."""
Origin = Literal["built-in", "given", "held out", "calibration"]


@dataclass(frozen=True)
class ComparedImage:
    """An image of the gate: its file's name and SHA-256, and whether the calibration folder holds the same content."""

    name: str
    sha256: str
    calibrated: bool = False


@dataclass(frozen=True)
class Evidence:
    """Where the images of the gate come from.

    Attributes:
        origin: built in; given by the user; held out of the calibration folder; or calibrated on.
        folder: what the user named; empty for the built-in ones.
        images: those that were compared, in the order of comparison.
        available: how many images the user gave, calibration images included.
        calibrated: how many images calibration and ranges may use.
    """

    origin: Origin
    folder: str
    images: tuple[ComparedImage, ...]
    available: int
    calibrated: int = 0

    @property
    def independent(self) -> bool:
        """Whether the images are the user's own, and none was used for calibration or ranges."""
        return self.origin in ("given", "held out") and not any(image.calibrated for image in self.images)

    def uncalibrated(self) -> Evidence:
        """The same images where nothing was calibrated, as in float32: they are the user's, or the built-in ones."""
        images = tuple(replace(image, calibrated=False) for image in self.images)
        origin: Origin = "built-in" if self.origin == "built-in" else "given"
        return replace(self, origin=origin, images=images, calibrated=0)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self) | {"images": [asdict(image) for image in self.images]}


@dataclass(frozen=True)
class Samples:
    """Network inputs of a build.

    Attributes:
        gate: inputs on which engine and checkpoint are compared.
        evidence: where those come from.
        typical: inputs on which ranges are measured and blocks are ranked.
        calibration: every input from the folder of typical pictures that is not held out for the gate.
        left_out: pictures of that folder that are in neither ``gate`` nor ``typical``, with the reason, one line each.
    """

    gate: Sequence[NetworkInput]
    evidence: Evidence
    typical: Sequence[NetworkInput]
    calibration: CalibrationInputs | None = None
    left_out: tuple[str, ...] = ()


def windows_at_scale_1(recipe: Recipe | NetworkRecipe) -> Inference:
    """The inference settings of calibration: the recipe's windows, or whole images, at scale 1 without flip."""
    return recipe.ms_flip.replace(scales=(1.0,), flip=False)


def samples(
    recipe: Recipe | NetworkRecipe,
    calib: OptionalPath,
    limit: int,
    images: OptionalPath,
    static: Size | None,
    compared: int | None = None,
    size: Size | None = None,
) -> Samples:
    """The inputs of a build: at most ``limit`` from ``calib``, and ``compared`` (None: `COMPARED`) for the gate.

    Those of the gate are from ``images`` where it is given, else held out of ``calib`` where that has enough pictures.
    The gate of an engine of one ``static`` (height, width) takes whole pictures resized to it instead of windows.
    Pictures of ``calib`` that give no windows of ``size``, the only one that the network takes, are left out.

    Raises:
        SettingsError: a folder holds no picture, or none that can be used.
        ImageError: one of ``images`` cannot be used.
    """
    chosen, most = Path(images) if images else None, compared or COMPARED
    if calib is None:
        gate = load_inputs(recipe.preprocess, chosen, static, most, recipe.network)
        return Samples(gate, _evidence("given" if chosen else "built-in", chosen, gate), gate)
    inputs = calibration_inputs(calib, recipe.preprocess, windows_at_scale_1(recipe), limit, recipe.network, size)
    held_out: CalibrationInputs | None = None
    gate = []
    if chosen:
        gate = load_inputs(recipe.preprocess, chosen, static, most, recipe.network)
    elif len(inputs.files) >= FEWEST:
        rest, held_out = inputs.divided(EVERY, most)
        if gate := _readable(held_out):
            inputs = rest
    typical = list(itertools.islice(inputs, COMPARED))
    # Those met so far; the calibration reads on from there and reports the rest itself.
    left_out = (*inputs.skipped, *(held_out.skipped if held_out else ()))
    origin: Origin = "given" if chosen else "held out" if gate else "calibration"
    gate = gate or typical[:most]
    if static and not chosen:
        readable = held_out.readable if held_out and origin == "held out" else inputs.readable
        gate = load_inputs(recipe.preprocess, readable, static, most, recipe.network)
    used = inputs.files[: limit + len(inputs.skipped)]  # each input of the first round is of another picture
    return Samples(gate, _evidence(origin, chosen or Path(calib), gate, used), typical, inputs, left_out)


def _readable(inputs: CalibrationInputs) -> list[NetworkInput]:
    """The inputs; none where no picture can be read."""
    try:
        return list(inputs)
    except SettingsError:
        return []


def _evidence(
    origin: Origin, folder: Path | None, gate: Iterable[NetworkInput], calibration: Sequence[Path] = ()
) -> Evidence:
    files = list(dict.fromkeys(item.file for item in gate if item.file))
    # Only files of equal size can have equal content.
    sizes = {file.stat().st_size for file in files}
    known = {_digest(file, sizes) for file in calibration}
    digests = [sha256(file) for file in files]
    images = tuple(
        ComparedImage(printable(file.name), digest, digest in known)
        for file, digest in zip(files, digests, strict=True)
    )
    available = len(pictures_in(folder)) if folder is not None and folder.is_dir() else len(files)
    return Evidence(origin, printable(str(folder or "")), images, available, len(calibration))


def _digest(file: Path, sizes: Collection[int]) -> str:
    """SHA-256 of a calibration image of one of these sizes; empty for others, and for those that cannot be read."""
    try:
        return sha256(file) if file.is_file() and file.stat().st_size in sizes else ""
    except OSError:
        return ""
