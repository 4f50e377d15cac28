"""The recipes of the published ISNet models and of the demo model.

Source of the figures: the twelve ISNet configurations of SSSegmentation (Apache-2.0) and their published scores;
paper: "ISNet: Integrate Image-Level and Semantic-Level Context for Semantic Segmentation", ICCV 2021.
"""

from __future__ import annotations

from dataclasses import replace

from isnet_trt.recipes.architecture import RESNEST101, RESNET50, RESNET101, RESNET_DEMO, Architecture, Backbone
from isnet_trt.recipes.recipe import Augmentation, Dataset, Optimiser, Recipe
from isnet_trt.settings import Inference, Labels, Preprocess

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
        name=f"isnet_{backbone.name}os8_{dataset.name}",
        architecture=architecture,
        dataset=dataset.name,
        labels=dataset.labels,
        preprocess=dataset.preprocess,
        crop=dataset.crop,
        augmentation=dataset.augmentation,
        optimiser=optimiser,
        batch=batch,
        epochs=epochs,
        default=_WHOLE,
        ms_flip=ms_flip,
        miou=miou[0],
        miou_ms_flip=miou[1],
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
