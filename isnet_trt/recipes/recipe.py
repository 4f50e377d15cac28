"""A recipe: what a model is besides its weights, with training settings (ISNet) or without (any network). No torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from isnet_trt.recipes.architecture import Architecture
from isnet_trt.settings import Inference, Labels, NetworkFacts, Preprocess, Size, choose_preset

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

    @property
    def network(self) -> NetworkFacts:
        """What the runtime must know about an ISNet."""
        return NetworkFacts()

    @property
    def presets(self) -> dict[str, Inference]:
        """The two presets by name."""
        return {"default": self.default, "ms-flip": self.ms_flip}

    def preset(self, name: str) -> Inference:
        """The inference settings called ``name``; see `isnet_trt.settings.choose_preset`."""
        return choose_preset(self.presets, name)


@dataclass(frozen=True)
class NetworkRecipe:
    """Any segmentation network besides its graph: what its build and the runtime must know, and nothing of training.

    ``presets`` has one called "default"; where the network gives probabilities, all presets average these. Number
    of output channels: ``network.channels(labels)``. The output stride is not in it: it is found by running the
    network.

    Raises:
        SettingsError: there is no default preset, or ``network`` does not fit ``labels``.
    """

    name: str
    labels: Labels
    preprocess: Preprocess
    network: NetworkFacts
    presets: Mapping[str, Inference]

    def __post_init__(self) -> None:
        choose_preset(self.presets, "default")
        self.network.check_labels(self.labels)
        if self.network.activation != "none":
            merged = {name: preset.replace(softmax_before_resize=True) for name, preset in self.presets.items()}
            object.__setattr__(self, "presets", merged)  # frozen

    @property
    def default(self) -> Inference:
        """The preset "default"."""
        return self.presets["default"]

    @property
    def ms_flip(self) -> Inference:
        """The preset "ms-flip", or the default where there is none."""
        return self.presets.get("ms-flip", self.default)

    def preset(self, name: str) -> Inference:
        """The inference settings called ``name``; see `isnet_trt.settings.choose_preset`."""
        return choose_preset(self.presets, name)


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
