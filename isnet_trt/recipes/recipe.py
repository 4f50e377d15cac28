"""A recipe: architecture, label set, training settings, and the two inference presets of one model. Needs no torch."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from isnet_trt.errors import SettingsError
from isnet_trt.recipes.architecture import Architecture
from isnet_trt.settings import Inference, Labels, Preprocess, Size

PRESETS = ("default", "ms-flip")
IGNORE = -100
"""Training id of pixels that are neither trained on nor scored."""


@dataclass(frozen=True)
class Optimiser:
    """SGD whose learning rate falls from ``lr`` to ``min_lr`` by a polynomial schedule."""

    lr: float
    min_lr: float
    weight_decay: float
    momentum: float = 0.9
    power: float = 0.9

    def rate(self, iteration: int, total: int) -> float:
        """(lr − min_lr) · (1 − i/T) ** power + min_lr, for iteration i = 0 … T − 1 before its step."""
        left = max(0.0, 1 - iteration / total)
        return (self.lr - self.min_lr) * left**self.power + self.min_lr


@dataclass(frozen=True)
class Augmentation:
    """Training-time geometry: ``base`` (long, short) or (height, width), scaled by a random factor within ``factors``.

    ``rotation`` is (probability, largest angle in degrees) or None. ``photometric`` changes brightness, contrast,
    saturation and hue; the drawn scenes go without, since they are drawn in changing light. ``pad_turns``: padding
    exchanges the sides of an oblong crop for samples of the other orientation, as for the published models.
    """

    base: tuple[int, int]
    factors: tuple[float, float] = (0.5, 2.0)
    keep_ratio: bool = True
    rotation: tuple[float, int] | None = None
    photometric: bool = True
    pad_turns: bool = True


@dataclass(frozen=True)
class Recipe:
    """One model: architecture, label set, training settings, and the two inference presets.

    ``crop`` is the training crop (height, width). ``miou`` and ``miou_ms_flip`` are the published percentages of
    ``default`` and ``ms_flip``; None where nothing was published.
    """

    name: str
    architecture: Architecture
    dataset: str
    labels: Labels
    preprocess: Preprocess
    crop: Size
    augmentation: Augmentation
    optimiser: Optimiser
    batch: int
    epochs: int
    default: Inference
    ms_flip: Inference
    miou: float | None = None
    miou_ms_flip: float | None = None

    def preset(self, name: str) -> Inference:
        """The inference settings called ``default`` or ``ms-flip``.

        Raises:
            SettingsError: ``name`` is neither.
        """
        if name not in PRESETS:
            raise SettingsError(f"preset {name!r} is unknown; use one of {', '.join(PRESETS)}")
        return self.default if name == "default" else self.ms_flip


@dataclass(frozen=True)
class Dataset:
    """The part that all recipes of one dataset share."""

    name: str
    preprocess: Preprocess
    crop: Size
    augmentation: Augmentation
    flip_pairs: tuple[tuple[int, int], ...] = ()

    @functools.cached_property
    def labels(self) -> Labels:
        """Names and colours from ``labels.json``."""
        entry = label_table()[self.name]
        palette = tuple((int(r), int(g), int(b)) for r, g, b in entry["palette_rgb"])
        return Labels(tuple(entry["names"]), palette, self.flip_pairs)


@functools.cache
def label_table() -> dict[str, dict]:
    """The datasets' class names, palettes and maps from stored label values to training ids."""
    return json.loads((Path(__file__).parent / "labels.json").read_text("utf-8"))
