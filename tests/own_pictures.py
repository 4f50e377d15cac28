"""Pictures of one's own: a small labelled set with its YAML file, and folders of images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from miniature import SIZES, picture, scene
from PIL import Image

from isnet_trt.recipes import IGNORE

CLASSES = {0: "background", 7: "tile", 9: "crack", 12: "left", 13: "right"}
DESCRIPTION: dict[str, Any] = {
    "name": "tiles",
    "like": "isnet_demo",
    "images": "photos",
    "labels": "masks/{name}_mask.png",
    "classes": CLASSES,
    "palette": [[0, 0, 0], "#ff8000", [0, 255, 0], [1, 2, 3], [4, 5, 6]],
    "ignore": [255, 254],
    "flip_pairs": [["left", "right"]],
    "crop": [96, 160],
    "size": [320, 160],
    "scales": [0.75, 1.5],
    "split": 0.3,
    "lr": "1e-2",
    "batch": 2,
    "epochs": 3,
}


def write(folder: Path, **changes: Any) -> Path:
    """The description with some keys changed, or left out where the value is ``...``."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {key: value for key, value in {**DESCRIPTION, **changes}.items() if value is not ...}
    (folder / "own.yaml").write_text(yaml.safe_dump(data, sort_keys=False), "utf-8")
    return folder / "own.yaml"


def make_pictures(folder: Path, count: int = 10, classes: dict[int, str] = CLASSES) -> dict[str, np.ndarray]:
    """Pictures in two folders, labels with stored values; the truth in training ids by name."""
    truth = {}
    for i in range(count):
        name = f"{'ab'[i % 2]}/shot.{i:02}"
        labels = truth[name] = scene(i, SIZES[i % 3], len(classes))
        stored = np.array([*classes, 254])[np.where(labels == IGNORE, len(classes), labels)]
        stored[-1, 0] = 255
        pixels = {f"photos/{name}.jpg": picture(labels, i), f"masks/{name}_mask.png": stored}
        for file, values in pixels.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8 if values.max() < 256 else np.uint16)).save(folder / file)
    return truth


def make_masks(folder: Path, masks: Iterable[np.ndarray], **changes: Any) -> Path:
    """Pictures with masks uint8 or uint16 of two classes, listed as 0 and 1; the YAML file, some keys changed."""
    for number, mask in enumerate(masks):
        noise = np.random.default_rng(number).integers(0, 255, (*mask.shape, 3), dtype=np.uint8)
        for kind, pixels in (("photos", noise), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"p{number}.png")
    data = {"name": "binary", "like": "isnet_demo", "images": "photos", "labels": "masks/{name}.png", "split": 0.3}
    data |= {"classes": ["background", "crack"], "crop": [40, 64], "size": [96, 48], **changes}
    (folder / "own.yaml").write_text(yaml.safe_dump(data, sort_keys=False), "utf-8")
    return folder / "own.yaml"


def mask(*values: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A mask of the first value with an upright bar of each of the others."""
    pixels = np.full(size, values[0], np.uint8)
    for number, value in enumerate(values[1:]):
        pixels[:, 8 + 16 * number : 16 + 16 * number] = value
    return pixels


def write_pngs(folder: Path, images: Iterable[np.ndarray]) -> Path:
    """Write images uint8 (H, W, 3), R, G, B, as 00.png, 01.png, … to a folder that may not exist yet."""
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return folder
