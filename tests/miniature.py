"""Miniature trees of the four datasets in their real layouts: odd sizes, palettes, .mat files, ignored labels.

Every maker returns the label maps in training ids that reading must give, by split and name. Pictures show their
labels (each class has a grey level of its own, with noise), so that a few iterations of training have something to
learn. ``lists`` writes the id lists of the reference's packages; without them the tree is what the official archives
unpack to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from isnet_trt.recipes import DATASETS, IGNORE, label_table
from isnet_trt.settings import Size

Truth = dict[str, dict[str, NDArray[np.int16]]]
"""split -> name -> labels."""
SIZES: tuple[Size, ...] = ((61, 83), (47, 101), (97, 59))


def scene(seed: int, size: Size, classes: int, ignored: bool = True) -> NDArray[np.int16]:
    """Labels int16 (H, W): upright stripes of a few classes, a box of another one, and a strip of ignored pixels."""
    rng = np.random.default_rng(seed)
    height, width = size
    kinds = rng.choice(classes, min(classes, 5), replace=False)
    labels = np.repeat(kinds[np.arange(width) * len(kinds) // width][None], height, 0).astype(np.int16)
    labels[height // 3 : height // 2, width // 5 : width // 2] = kinds[-1]
    if ignored:
        labels[-3:, : width // 3] = IGNORE
    return labels


def picture(labels: NDArray[np.int16], seed: int) -> NDArray[np.uint8]:
    """uint8 (H, W, 3): a colour by class, noise on top."""
    rng = np.random.default_rng(seed + 1)
    colours = np.random.default_rng(7).integers(0, 230, (256, 3))
    return (colours[np.maximum(labels, -1)] + rng.integers(0, 25, (*labels.shape, 3))).astype(np.uint8)


def stored(dataset: str, labels: NDArray[np.int16]) -> NDArray[np.uint8]:
    """The values that the dataset's files hold for these training ids."""
    backward = {number: int(v) for v, number in label_table()[dataset]["label_map"].items() if int(v) >= 0}
    values = np.zeros(labels.shape, np.uint8)
    for number in np.unique(labels):
        values[labels == number] = backward.get(int(number), int(number))
    return values


def make_ade20k(
    root: Path, train: int = 3, val: int = 2, lists: bool = False, sizes: tuple[Size, ...] = SIZES
) -> Truth:
    """``root/ADEChallengeData2016/…``; one label file is paletted, the others are grey."""
    top, truth = root / "ADEChallengeData2016", {}
    for split, folder, count in (("train", "training", train), ("val", "validation", val)):
        truth[split] = _scenes("ade20k", [f"ADE_{split}_{i + 1:08}" for i in range(count)], sizes, split)
        for i, (name, labels) in enumerate(truth[split].items()):
            _write_picture(top / "images" / folder / f"{name}.jpg", labels, i)
            _write_png(top / "annotations" / folder / f"{name}.png", stored("ade20k", labels), paletted=i == 0)
        _write_list(top / f"{split}.txt", truth[split], lists)
    return truth


def make_cityscapes(
    root: Path, train: int = 3, val: int = 2, lists: bool = False, sizes: tuple[Size, ...] = SIZES
) -> Truth:
    """``root/{leftImg8bit,gtFine}/{train,val}/CITY``, with the other files that gtFine holds; each pixel a label id."""
    truth: Truth = {}
    for split, cities, count in (("train", ("aachen", "bochum"), train), ("val", ("lindau",), val)):
        names = [f"{cities[i % len(cities)]}/{cities[i % len(cities)]}_{i:06}_000019" for i in range(count)]
        truth[split] = _scenes("cityscapes", names, sizes, split)
        for i, (name, labels) in enumerate(truth[split].items()):
            _write_picture(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png", labels, i)
            _write_png(root / "gtFine" / split / f"{name}_gtFine_labelIds.png", _label_ids(labels))
            _write_png(root / "gtFine" / split / f"{name}_gtFine_color.png", _label_ids(labels), paletted=True)
        _write_list(root / f"{split}.txt", [f"{name}_leftImg8bit" for name in truth[split]], lists)
    return truth


def make_cocostuff10k(root: Path, train: int = 3, val: int = 2, sizes: tuple[Size, ...] = SIZES) -> Truth:
    """``root/{images,annotations,imageLists}``; the lists belong to the official archive."""
    truth: Truth = {}
    for split, listed, count in (("train", "train", train), ("val", "test", val)):
        names = [f"COCO_train2014_{1000 * (split == 'val') + i:012}" for i in range(count)]
        truth[split] = _scenes("cocostuff10k", names, sizes, split)
        for i, (name, labels) in enumerate(truth[split].items()):
            _write_picture(root / "images" / f"{name}.jpg", labels, i)
            values = stored("cocostuff10k", labels)
            values[0, :2] = 255  # ignored, like 0
            labels[0, :2] = IGNORE
            (root / "annotations").mkdir(exist_ok=True)
            matrix = {"S": values.astype(np.uint16), "names": np.array(["person", "bicycle"], object), "captions": []}
            savemat(root / "annotations" / f"{name}.mat", matrix)
        _write_list(root / "imageLists" / f"{listed}.txt", truth[split], True)
    return truth


def make_lip(root: Path, train: int = 3, val: int = 2, lists: bool = False, sizes: tuple[Size, ...] = SIZES) -> Truth:
    """``root/{train,val}_{images,segmentations}``; the background is a class, nothing is ignored."""
    truth: Truth = {}
    for split, count in (("train", train), ("val", val)):
        truth[split] = _scenes("lip", [f"{77 + i}_{10000 + i}" for i in range(count)], sizes, split)
        for i, (name, labels) in enumerate(truth[split].items()):
            _write_picture(root / f"{split}_images" / f"{name}.jpg", labels, i)
            _write_png(root / f"{split}_segmentations" / f"{name}.png", stored("lip", labels), paletted=i == 1)
        _write_list(root / f"{split}_id.txt", truth[split], lists)
    return truth


MAKERS = {"ade20k": make_ade20k, "cityscapes": make_cityscapes, "cocostuff10k": make_cocostuff10k, "lip": make_lip}


def _scenes(dataset: str, names: list[str], sizes: tuple[Size, ...], split: str) -> dict[str, NDArray[np.int16]]:
    classes, base = DATASETS[dataset].labels.count, 100 * (split == "val")
    return {n: scene(base + i, sizes[i % len(sizes)], classes, dataset != "lip") for i, n in enumerate(names)}


def _label_ids(labels: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Cityscapes' ids of the training ids; the ignored pixels get all the ids that training ignores, in turn."""
    values = stored("cityscapes", labels)
    ignored = [int(v) for v, number in label_table()["cityscapes"]["label_map"].items() if number < 0 <= int(v)]
    places = labels == IGNORE
    values[places] = np.resize(np.array(ignored, np.uint8), int(places.sum()))
    return values


def _write_picture(path: Path, labels: NDArray[np.int16], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(labels, seed))


def _write_png(path: Path, values: NDArray[np.uint8], paletted: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if paletted:
        image = Image.frombytes("P", image.size, values.tobytes())
        image.putpalette(np.random.default_rng(3).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)


def _write_list(path: Path, names: Mapping[str, object] | list[str], needed: bool) -> None:
    if needed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names), "utf-8")
