"""Augmentation of training pictures: resize, crop, flip, rotation, colour changes, normalisation, padding.

The steps, their order and their oddities are those with which the published models were trained; each oddity that
changes the network's input is described at its step. One step is left out: an edge map for LIP, which ISNet does not
use.

Each step is a function of its own with the random generator passed in, so the same generator state gives the same
sample. Pictures are uint8 H×W×3 in B, G, R order until they are normalised; labels are int16 H×W with `IGNORE` for
pixels that count for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isnet_trt.opencv import cv2
from isnet_trt.pictures.preprocess import normalise
from isnet_trt.pictures.preprocess import test_size as fitted_size
from isnet_trt.recipes import IGNORE, Augmentation, Recipe
from isnet_trt.settings import Preprocess, Size

MAX_SHARE = 0.75
CROP_TRIES = 10

Image = NDArray[np.uint8]
Labels = NDArray[np.int16]
Sample = tuple[Image, Labels]


@dataclass(frozen=True)
class Augment:
    """The training steps of a recipe; called with (image, labels, rng) it gives the network's input and target.

    ``crop`` is (height, width); ``pairs`` are the classes that are exchanged when a picture is mirrored.
    """

    augmentation: Augmentation
    crop: Size
    pairs: tuple[tuple[int, int], ...]
    preprocess: Preprocess

    @classmethod
    def of(cls, recipe: Recipe) -> Augment:
        """The augmentation of ``recipe``."""
        return cls(recipe.augmentation, recipe.crop, recipe.labels.flip_pairs, recipe.preprocess)

    def __call__(self, image: Image, labels: Labels, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        """BGR picture and labels of any size -> float32 (3, h, w) RGB normalised and int64 (h, w), of the crop size."""
        rule = self.augmentation
        image, labels = random_resize(image, labels, rule, rng)
        image, labels = random_crop(image, labels, self.crop, rng)
        image, labels = random_flip(image, labels, self.pairs, rng)
        image, labels = random_rotation(image, labels, rule.rotation, rng)
        image = photometric(image, rng) if rule.photometric else image
        planes = normalise(np.ascontiguousarray(image[..., ::-1]), self.preprocess).transpose(2, 0, 1)
        x, target = pad(planes, labels, padded_size(labels.shape, self.crop, rule.pad_turns))
        return x, target.astype(np.int64)


def random_resize(image: Image, labels: Labels, rule: Augmentation, rng: np.random.Generator) -> Sample:
    """Resize by a factor drawn once: base sides become floor(base · s); bilinear picture, nearest labels."""
    factor = rng.uniform(*rule.factors)
    base = (int(rule.base[0] * factor), int(rule.base[1] * factor))
    height, width = fitted_size((labels.shape[0], labels.shape[1]), Preprocess(base, rule.keep_ratio))
    resized = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return resized, np.asarray(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST), labels.dtype)


def random_crop(image: Image, labels: Labels, crop: Size, rng: np.random.Generator) -> Sample:
    """A crop (clipped to the picture) in which more than one class occurs and none fills 75 % of the valid pixels.

    Up to ten draws; if none is accepted the tenth is taken, unless it has no valid pixel at all: then the sample is
    returned whole, and padding will cut it to its centre (an oddity of how the published models were trained).
    """
    height, width = min(crop[0], labels.shape[0]), min(crop[1], labels.shape[1])
    counts = np.zeros(0, np.int64)
    for _ in range(CROP_TRIES):
        top = int(rng.integers(labels.shape[0] - height + 1))
        left = int(rng.integers(labels.shape[1] - width + 1))
        window = slice(top, top + height), slice(left, left + width)
        cut = labels[window]
        counts = np.unique(cut[cut != IGNORE], return_counts=True)[1]
        if len(counts) > 1 and counts.max() < MAX_SHARE * counts.sum():
            break
    return (image[window], labels[window]) if len(counts) else (image, labels)


def random_flip(
    image: Image, labels: Labels, pairs: Sequence[tuple[int, int]], rng: np.random.Generator, chance: float = 0.5
) -> Sample:
    """Mirror left to right with probability ``chance``; the classes of each pair are exchanged."""
    if rng.random() >= chance:
        return image, labels
    mirrored = labels[:, ::-1].copy()
    for a, b in pairs:
        # Both masks before either class is written: else the two classes would merge.
        was_a, was_b = mirrored == a, mirrored == b
        mirrored[was_a], mirrored[was_b] = b, a
    return np.ascontiguousarray(image[:, ::-1]), mirrored


def random_rotation(image: Image, labels: Labels, rule: tuple[float, int] | None, rng: np.random.Generator) -> Sample:
    """Turn about the centre, counter-clockwise for positive angles; ``rule`` is (probability, largest angle) or None.

    The angle is a whole number of degrees, the largest one itself never drawn. Bicubic picture, nearest labels. What
    comes in from outside is 0 (black, since the picture is not normalised yet) and `IGNORE`. The centre is
    (width / 2, height / 2), half a pixel beside the middle of the pixel grid, as the published models had it.
    """
    if rule is None or rng.random() >= rule[0]:
        return image, labels
    height, width = labels.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), int(rng.integers(-rule[1], rule[1])), 1.0)
    turned = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_CUBIC, borderValue=0)
    # As float32, which the published models' labels were: OpenCV takes other neighbours for 16-bit numbers.
    target = cv2.warpAffine(
        labels.astype(np.float32), turn, (width, height), flags=cv2.INTER_NEAREST, borderValue=IGNORE
    )
    return np.asarray(turned, np.uint8), np.asarray(target, np.float32).astype(labels.dtype)


def photometric(image: Image, rng: np.random.Generator) -> Image:
    """Change brightness, contrast, saturation and hue, each with probability 0.5; contrast before or after the colours.

    Each step clips to 0..255 and truncates. The colour steps convert as if the channels were R, G, B although they
    are B, G, R, as the published models were trained: hue is that of the exchanged channels, saturation is the same.
    """
    late = rng.random() < 0.5
    if rng.random() < 0.5:
        image = linear(image, offset=rng.uniform(-32, 32))
    if not late:
        image = _contrast(image, rng)
    if rng.random() < 0.5:
        image = saturate(image, rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        image = rotate_hue(image, int(rng.integers(-18, 18)))
    return _contrast(image, rng) if late else image


def _contrast(image: Image, rng: np.random.Generator) -> Image:
    return linear(image, factor=rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else image


def linear(image: Image, factor: float = 1.0, offset: float = 0.0) -> Image:
    """image · factor + offset, clipped to 0..255 and truncated."""
    ramp = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return np.asarray(cv2.LUT(image, np.clip(ramp, 0, 255).astype(np.uint8)), np.uint8)


def saturate(image: Image, factor: float) -> Image:
    """Saturation times ``factor``."""
    hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), np.uint8)
    hsv[..., 1] = linear(hsv[..., 1], factor)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)


def rotate_hue(image: Image, steps: int) -> Image:
    """Hue plus ``steps`` on a circle of 180."""
    hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), np.uint8)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + steps) % 180
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)


def padded_size(size: Size, crop: Size, turns: bool) -> Size:
    """The size that a sample of ``size`` (height, width) is padded to: ``crop``.

    If ``turns``, a portrait sample exchanges the sides of a landscape crop, and the other way round. That is how the
    published models were trained; batches of such samples can only hold one orientation.
    """
    height, width = size
    differs = (height > width and crop[0] < crop[1]) or (height < width and crop[0] > crop[1])
    return (crop[1], crop[0]) if turns and differs else crop


def pad(x: NDArray[np.float32], labels: Labels, size: Size) -> tuple[NDArray[np.float32], Labels]:
    """Centre planes (3, h, w) and labels (h, w) on ``size`` (height, width), the smaller margin at top and left.

    The margins hold 0 (the mean colour, since planes are normalised) and `IGNORE`. Where the sample is larger it is
    cut to its centre.
    """
    height, width = labels.shape
    out = np.zeros((3, *size), np.float32)
    target = np.full(size, IGNORE, labels.dtype)
    (to_y, from_y), (to_x, from_x) = _centred(height, size[0]), _centred(width, size[1])
    out[:, to_y, to_x], target[to_y, to_x] = x[:, from_y, from_x], labels[from_y, from_x]
    return out, target


def _centred(length: int, target: int) -> tuple[slice, slice]:
    """Centre a side of ``length`` pixels on one of ``target``: where it is placed, and which part of it fits."""
    margin = (target - length) // 2
    if margin >= 0:
        return slice(margin, margin + length), slice(0, length)
    return slice(0, target), slice(-margin, target - margin)
