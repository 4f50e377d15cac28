"""A network's own run on a picture, merged in float64 by NumPy: what the labels of a bundle are compared with.

Written from the documentation of a recipe (docs/any-network.md) and independent of the runtime: no code, no data class
and no array of it is used. Everything is whole volumes; nothing is fast. `tests/network_reference.py`, a second
implementation that takes the runtime's settings, has to give the same scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float64]
Size = tuple[int, int]
Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Normalised pixels (1, 3, h, w) -> the network's output (1, K, h', w')."""
TIE = 1e-3
"""Scores closer than this share of the standard deviation of all scores are a tie: float32 decides it by rounding."""


class Labelled(NamedTuple):
    """A label map (H, W), and True where two classes tie."""

    labels: NDArray[np.int64]
    ties: NDArray[np.bool_]


def labelled(scores: Volume, recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> Labelled:
    """Labels of merged ``scores`` (K, H, W): the largest class, or 1 above the threshold of the one class."""
    tie = TIE * scores.std()
    if len(scores) > 1:
        second, first = np.sort(scores, axis=0)[-2:]
        return Labelled(scores.argmax(0), first - second < tie)
    probability = recipe.get("threshold", 0.5)
    if recipe.get("activation", "none") == "none" and settings.get("average") != "probabilities":
        probability = math.log(probability / (1 - probability))
    return Labelled((scores[0] > probability).astype(np.int64), np.abs(scores[0] - probability) < tie)


def merged(
    network: Network, image: NDArray[np.uint8], recipe: Mapping[str, Any], settings: Mapping[str, Any]
) -> Volume:
    """The mean scores (K, H, W) of a uint8 (H, W, 3) RGB picture that is not resized; keys as in a recipe's file."""
    planes = normalised(image, recipe)
    volumes = []
    for scale in settings.get("scales", [1]):
        size = (math.floor(planes.shape[1] * scale), math.floor(planes.shape[2] * scale))
        scaled = resampled(planes, size, (1 / scale, 1 / scale))
        for mirrored in (False, True) if settings.get("flip") else (False,):
            volume = pass_scores(network, scaled[:, :, ::-1] if mirrored else scaled, recipe, settings)
            volume = volume[:, :, ::-1] if mirrored else volume
            volumes.append(resampled(volume, (image.shape[0], image.shape[1])))
    return sum(volumes[1:], volumes[0]) / len(volumes)


def normalised(image: NDArray[np.uint8], recipe: Mapping[str, Any]) -> Volume:
    """(3, H, W): channels in the network's order, minus the mean, over the standard deviation."""
    pixels = image[..., ::-1] if recipe.get("channel_order") == "bgr" else image
    unit = 255 / recipe.get("pixel_range", 255)
    return ((pixels - np.multiply(recipe["mean"], unit)) / np.multiply(recipe["std"], unit)).transpose(2, 0, 1)


def pass_scores(network: Network, planes: Volume, recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> Volume:
    """Scores of one scaled, perhaps mirrored picture: (K, h, w), in whole mode of the size of the network's output."""
    if "window" not in settings:
        return window_scores(network, planes, recipe, settings)
    size = planes.shape[1:]
    total: Any = 0
    count = np.zeros(size)
    for rows in spans(size[0], settings["window"][0], settings["stride"][0]):
        for columns in spans(size[1], settings["window"][1], settings["stride"][1]):
            part = window_scores(network, planes[:, rows, columns], recipe, settings)
            volume = np.zeros((len(part), *size))
            volume[:, rows, columns] = part
            total = total + volume
            count[rows, columns] += 1
    return total / count


def spans(length: int, window: int, stride: int) -> Iterator[slice]:
    """The windows along one side; the last is shifted inwards to end with the side."""
    for number in range(max(math.ceil((length - window) / stride), 0) + 1):
        end = min(number * stride + window, length)
        yield slice(max(end - window, 0), end)


def window_scores(network: Network, planes: Volume, recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> Volume:
    """Scores of one window, of its size; of a whole picture that is never padded, of the size of the output."""
    height, width = planes.shape[1:]
    multiple = recipe.get("size_multiple", 1)
    rows, columns = -height % multiple, -width % multiple
    top, left = (rows // 2, columns // 2) if recipe.get("padding_side") == "centre" else (0, 0)
    padded = np.zeros((3, height + rows, width + columns))  # 0 is the mean
    if recipe.get("padding_value", "mean") != "mean":
        padded += normalised(np.array([[recipe["padding_value"]]]), {**recipe, "channel_order": "as given"})
    padded[:, top : top + height, left : left + width] = planes
    output = network(padded[None].astype(np.float32))[0].astype(np.float64)
    if "window" in settings or multiple > 1:
        output = resampled(output, padded.shape[1:])[:, top : top + height, left : left + width]
    probabilities = settings.get("average") == "probabilities" and recipe.get("activation", "none") == "none"
    return as_probabilities(output) if probabilities else output


def as_probabilities(logits: Volume) -> Volume:
    """Softmax over the classes; sigmoid of a single one."""
    if len(logits) == 1:
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def resampled(volume: Volume, size: Sequence[int], steps: tuple[float, float] | None = None) -> Volume:
    """``volume`` (C, h, w) at (C, *size): bilinear, half-pixel positions at the ratio of the sizes or by ``steps``."""
    for axis in (1, 2):
        old, new = volume.shape[axis], size[axis - 1]
        step = np.float32(steps[axis - 1]) if steps else np.float32(old) / np.float32(new)
        # Positions are float32 in PyTorch: rounded, but nothing else is.
        position = ((np.arange(new) + 0.5) * np.float64(step) - 0.5).astype(np.float32).clip(0, old - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, old - 1)
        weight = (position - low).astype(np.float64)
        weight = weight[:, None] if axis == 1 else weight
        volume = volume.take(low, axis) * (1 - weight) + volume.take(high, axis) * weight
    return volume
