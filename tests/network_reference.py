"""Scores by the rules of `isnet_trt.settings.NetworkFacts`, in float64 NumPy with whole volumes.

`benchmarks.float64_merge` is a second, independent implementation: it takes the keys of a recipe's file, and has no
flip pairs, aligned corners or resized pictures. `tests/benchmarks/test_float64_merge.py` compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from isnet_trt.settings import Inference, NetworkFacts

Network = Callable[[np.ndarray], np.ndarray]
"""(1, 3, H, W) float32 to (1, K, ceil(H/s), ceil(W/s))."""


def scores(
    network: Network,
    facts: NetworkFacts,
    picture: np.ndarray,
    padding: Sequence[float],
    output: tuple[int, int],
    inference: Inference,
    pairs: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """Merged scores (K, *output) of a normalised ``picture`` (3, H, W), padded with the normalised ``padding``."""
    volumes = []
    for scale in inference.scales:
        size = [math.floor(side * scale) for side in picture.shape[1:]]
        rows, columns = (_by_factor(n, m, scale) for n, m in zip(picture.shape[1:], size, strict=True))
        shown = _apply(picture.astype(np.float64), rows, columns)
        for mirrored in (False, True) if inference.flip else (False,):
            seen = shown[:, :, ::-1] if mirrored else shown
            volume = _windows(network, facts, seen, padding, output, inference)
            if mirrored:
                volume = volume[:, :, ::-1].copy()
                for a, b in pairs:
                    volume[[a, b]] = volume[[b, a]]
            volumes.append(_apply(volume, *map(_half_pixel, volume.shape[1:], output)))
    return np.mean(volumes, axis=0)


def _windows(network, facts, seen, padding, output, inference):
    """The scores of one pass: at its own size, or for a whole picture of a plain network at the output stride."""
    if inference.mode == "whole":
        return _forward(network, facts, seen, padding, inference, keep_coarse=True)
    height, width = seen.shape[1:]
    total, cover = 0.0, np.zeros((height, width))
    for top, bottom in _spans(height, inference.window[0], inference.stride[0]):
        for left, right in _spans(width, inference.window[1], inference.stride[1]):
            part = _forward(network, facts, seen[:, top:bottom, left:right], padding, inference, keep_coarse=False)
            total = np.zeros((len(part), height, width)) + total
            total[:, top:bottom, left:right] += part
            cover[top:bottom, left:right] += 1
    return total / cover


def _spans(length, window, stride):
    end = window
    while True:
        stop = min(end, length)
        yield max(stop - window, 0), stop
        if end >= length:
            return
        end += stride


def _forward(network, facts, seen, padding, inference, keep_coarse):
    height, width = seen.shape[1:]
    multiple = facts.size_multiple
    rows, columns = -height % multiple, -width % multiple
    top, left = (rows // 2, columns // 2) if facts.padding_side == "centre" else (0, 0)
    canvas = np.empty((3, height + rows, width + columns))
    canvas[...] = np.asarray(padding, np.float64)[:, None, None]
    canvas[:, top : top + height, left : left + width] = seen
    result = network(canvas.astype(np.float32)[None])[0].astype(np.float64)
    if facts.upsampling != "none" or multiple > 1 or not keep_coarse:
        matrix = _aligned if facts.upsampling == "align_corners" else _half_pixel
        result = _apply(result, *map(matrix, result.shape[1:], canvas.shape[1:]))
        result = result[:, top : top + height, left : left + width]
    if inference.softmax_before_resize and facts.activation == "none":
        powers = np.exp(result - result.max(0)) if len(result) > 1 else None
        result = powers / powers.sum(0) if powers is not None else 1 / (1 + np.exp(-result))
    return result


def labels(merged: np.ndarray, facts: NetworkFacts, inference: Inference) -> tuple[np.ndarray, np.ndarray]:
    """Labels of merged scores, and the distance to the next other label."""
    if facts.threshold is None:
        best = np.sort(merged, axis=0)
        return merged.argmax(0), best[-1] - best[-2]
    probable = inference.softmax_before_resize or facts.activation == "sigmoid"
    limit = facts.threshold if probable else -math.log(1 / facts.threshold - 1)
    return (merged[0] > limit).astype(int), abs(merged[0] - limit)


def _apply(values, rows, columns):
    return np.einsum("yh,chw,xw->cyx", rows, values, columns, optimize=True)


def _matrix(at, length):
    at = np.clip(at, 0, length - 1)
    low = np.floor(at).astype(int)
    matrix = np.zeros((len(at), length))
    matrix[np.arange(len(at)), low] = 1 - (at - low)
    matrix[np.arange(len(at)), np.minimum(low + 1, length - 1)] += at - low
    return matrix


def _half_pixel(length, target):
    return _matrix((np.arange(target) + 0.5) * length / target - 0.5, length)


def _aligned(length, target):
    return _matrix(np.arange(target) * (length - 1) / max(target - 1, 1), length)


def _by_factor(length, target, factor):
    return _matrix((np.arange(target) + 0.5) / factor - 0.5, length)
