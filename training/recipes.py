"""The published ISNet models and the demo model: all that is known of each, in one place.

    python -m isnet_trt.training.recipes          # the table
    python -m isnet_trt.training.recipes NAME     # one recipe in full

Source of the figures: the twelve ISNet configurations of SSSegmentation (Apache-2.0) and their published scores;
paper: "ISNet: Integrate Image-Level and Semantic-Level Context for Semantic Segmentation", ICCV 2021.
No torch is needed to read a recipe.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isnet_trt import cli
from isnet_trt.errors import SettingsError
from isnet_trt.settings import Inference, Labels, Preprocess, Size, to_json
from isnet_trt.training.architecture import (
    RESNEST101,
    RESNET50,
    RESNET101,
    RESNET_DEMO,
    Architecture,
    Backbone,
)

PRESETS = ("default", "ms-flip")
IGNORE = -100
"""Training id of pixels that count for nothing."""


@dataclass(frozen=True)
class Optimiser:
    """SGD with a polynomial schedule per iteration: lr = (base - min) * (1 - i/T) ** power + min."""

    lr: float
    min_lr: float
    weight_decay: float
    momentum: float = 0.9
    power: float = 0.9


@dataclass(frozen=True)
class Augmentation:
    """Training-time geometry: ``base`` (long, short) or (height, width), scaled by a factor from ``factors``.

    ``rotation`` is (probability, largest angle in degrees) or None. ``photometric`` changes brightness, contrast,
    saturation and hue; the drawn scenes do without, since they are drawn in changing light. ``pad_turns``: padding
    exchanges the sides of an oblong crop for samples of the other orientation, as the published models were trained.
    """

    base: tuple[int, int]
    factors: tuple[float, float] = (0.5, 2.0)
    keep_ratio: bool = True
    rotation: tuple[float, int] | None = None
    photometric: bool = True
    pad_turns: bool = True


@dataclass(frozen=True)
class Recipe:
    """One model: architecture, label set, training settings, and the two documented ways of inference.

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
    """What the recipes of one dataset share."""

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


_PHOTO = Augmentation(base=(2048, 512))
ADE20K = Dataset("ade20k", Preprocess((2048, 512)), (512, 512), _PHOTO)
COCOSTUFF10K = Dataset("cocostuff10k", Preprocess((2048, 512)), (512, 512), _PHOTO)
CITYSCAPES = Dataset("cityscapes", Preprocess((2048, 1024)), (512, 1024), Augmentation(base=(2048, 1024)))
LIP = Dataset(
    "lip",
    Preprocess((473, 473), keep_ratio=False),
    (473, 473),
    Augmentation((520, 520), (0.75, 1.25), keep_ratio=False, rotation=(0.6, 30)),
    flip_pairs=((14, 15), (16, 17), (18, 19)),
)
DATASETS = {d.name: d for d in (COCOSTUFF10K, ADE20K, CITYSCAPES, LIP)}

_WHOLE = Inference()
_FIVE = (0.5, 0.75, 1.0, 1.25, 1.5)
_SIX = (*_FIVE, 1.75)
_ADE = Inference(scales=_SIX, flip=True, softmax_before_resize=True)
_COCO = Inference(scales=_FIVE, flip=True)
_CITY = Inference("slide", (512, 1024), (341, 341), _SIX, flip=True, softmax_before_resize=True)
# The published setting of ResNet-101 on Cityscapes reads like a swapped pair; it is what was measured.
_CITY_PORTRAIT = Inference("slide", (1024, 512), (341, 341), _SIX, flip=True)
_LIP = Inference(flip=True)


def _recipe(
    backbone: Backbone,
    dataset: Dataset,
    optimiser: Optimiser,
    batch: int,
    epochs: int,
    ms_flip: Inference,
    miou: tuple[float, float],
) -> Recipe:
    lip = dataset is LIP
    architecture = Architecture(
        backbone, dataset.labels.count, "leaky_relu" if lip else "relu", shortcut_channels=48 if lip else None
    )
    return Recipe(
        f"isnet_{backbone.name}os8_{dataset.name}",
        architecture,
        dataset.name,
        dataset.labels,
        dataset.preprocess,
        dataset.crop,
        dataset.augmentation,
        optimiser,
        batch,
        epochs,
        _WHOLE,
        ms_flip,
        *miou,
    )


_SGD_COCO = Optimiser(lr=0.001, min_lr=1e-5, weight_decay=1e-4)
_SGD = Optimiser(lr=0.01, min_lr=1e-4, weight_decay=5e-4)


def _published() -> tuple[Recipe, ...]:
    coco_s, ade_s = replace(_SGD_COCO, min_lr=1e-4), replace(_SGD, lr=0.004)
    lip_s = replace(_SGD, lr=0.007, min_lr=7e-5)
    coco_probs = replace(_COCO, softmax_before_resize=True)
    return (
        _recipe(RESNET50, COCOSTUFF10K, _SGD_COCO, 16, 110, _COCO, (38.06, 40.39)),
        _recipe(RESNET101, COCOSTUFF10K, _SGD_COCO, 16, 110, _COCO, (40.53, 41.74)),
        _recipe(RESNEST101, COCOSTUFF10K, coco_s, 32, 150, coco_probs, (41.55, 42.53)),
        _recipe(RESNET50, ADE20K, _SGD, 16, 130, _ADE, (44.22, 45.03)),
        _recipe(RESNET101, ADE20K, _SGD, 16, 130, _ADE, (45.92, 47.29)),
        _recipe(RESNEST101, ADE20K, ade_s, 16, 180, _ADE, (46.65, 47.56)),
        _recipe(RESNET50, CITYSCAPES, _SGD, 16, 440, _CITY, (79.32, 81.31)),
        _recipe(RESNET101, CITYSCAPES, _SGD, 16, 440, _CITY_PORTRAIT, (80.56, 81.96)),
        _recipe(RESNEST101, CITYSCAPES, _SGD, 16, 440, _CITY, (78.78, 81.33)),
        _recipe(RESNET50, LIP, _SGD, 32, 150, _LIP, (53.14, 53.41)),
        _recipe(RESNET101, LIP, _SGD, 32, 150, _LIP, (54.96, 55.41)),
        _recipe(RESNEST101, LIP, lip_s, 40, 150, _LIP, (56.52, 56.81)),
    )


DEMO_LABELS = Labels(
    names=("road", "marking", "pavement", "building", "sky", "tree", "car", "person_right", "person_left"),
    palette=(
        (128, 64, 128),
        (240, 240, 240),
        (244, 35, 232),
        (70, 70, 70),
        (70, 130, 180),
        (107, 142, 35),
        (0, 0, 142),
        (220, 20, 60),
        (255, 165, 0),
    ),
    flip_pairs=((7, 8),),
)


def _demo() -> Recipe:
    """A model small enough to train on two CPU cores, on drawn street scenes (`isnet_trt.training.scenes`)."""
    architecture = Architecture(
        RESNET_DEMO, DEMO_LABELS.count, head_channels=64, context_channels=32, shortcut_channels=16
    )
    return Recipe(
        name="isnet_demo",
        architecture=architecture,
        dataset="scenes",
        labels=DEMO_LABELS,
        preprocess=Preprocess((1024, 512)),
        crop=(192, 320),
        augmentation=Augmentation((1024, 512), (0.45, 1.1), photometric=False),
        optimiser=Optimiser(lr=0.04, min_lr=2e-4, weight_decay=2e-4),
        batch=4,
        epochs=6,
        default=_WHOLE,
        ms_flip=Inference("slide", (256, 512), (171, 341), (0.75, 1.0, 1.25), flip=True, softmax_before_resize=True),
    )


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*_published(), _demo())}
"""Every recipe by name: the twelve published ones and ``isnet_demo``."""


def recipe(name: str) -> Recipe:
    """The recipe called ``name``, or described by the YAML file ``name`` (`isnet_trt.training.custom`).

    Raises:
        SettingsError: there is none, with a list of those there are; or the file has a wrong key or value.
    """
    if is_described(name):
        from isnet_trt.training.custom import custom_recipe  # it imports this module, and OpenCV

        return custom_recipe(Path(name))
    if name not in RECIPES:
        raise SettingsError(f"no recipe is called {name!r}; there are: {', '.join(RECIPES)}, or give a .yaml file")
    return RECIPES[name]


def is_described(name: str) -> bool:
    """Whether ``name`` is the path of a YAML file, not the name of a recipe or dataset."""
    return name.lower().endswith((".yaml", ".yml"))


def table() -> str:
    """The recipes as a text table, one line each."""
    head = f"{'recipe':36} {'K':>3} {'crop':>9} {'lr':>6} {'batch':>5} {'epochs':>6} {'mIoU':>6} {'ms+flip':>7}"
    lines = [f"{head}  ms+flip inference"]
    for one in RECIPES.values():
        published = [f"{score:.2f}" if score else "-" for score in (one.miou, one.miou_ms_flip)]
        lines.append(
            f"{one.name:36} {one.labels.count:3} {one.crop[0]:4}x{one.crop[1]:<4} {one.optimiser.lr:6g} {one.batch:5} "
            f"{one.epochs:6} {published[0]:>6} {published[1]:>7}  {one.ms_flip.describe()}"
        )
    return "\n".join(lines)


def page(one: Recipe) -> str:
    """Everything about one recipe but its colours, as JSON."""
    data = to_json(one)
    data["labels"] = {"names": ", ".join(one.labels.names), "flip_pairs": one.labels.flip_pairs}
    return json.dumps(data, indent=1, ensure_ascii=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser(
        "isnet_trt.training.recipes",
        "List the recipes: the twelve published ISNet models and the demo model. Default inference is the whole "
        "picture at scale 1, without flip, for all of them.",
    )
    parser.add_argument("name", nargs="?", help="show this recipe in full; also a .yaml file of one's own data")
    arguments = parser.parse_args(argv)
    print(page(recipe(arguments.name)) if arguments.name else table())
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
