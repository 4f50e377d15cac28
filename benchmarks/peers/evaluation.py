"""The evaluation of a picture around a network: passes and windows, and two ways to merge their scores.

`merged` keeps the scores of every pass whole, as the published code does. `PipelineRunner` is what a careful user would
write: scores of mirrored passes are added on the low-resolution grid, where everything behind it is linear, and the map
is made class by class with a running maximum, so that no volume of classes x height x width of the picture is made.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.peers import Output, Runner, Setup
from isnet_trt.merging import geometry
from isnet_trt.pictures.preprocess import normalise, resize
from isnet_trt.recipes import Recipe
from isnet_trt.settings import Inference, Preprocess, Size

Network = Callable[[Tensor], Tensor]
"""Normalised pictures (B, 3, H, W) -> raw logits (B, K, h, w) float32."""


def network_input(image: NDArray[np.uint8], preprocess: Preprocess) -> Tensor:
    """The normalised picture (1, 3, H, W) of a uint8 RGB one."""
    pixels = normalise(resize(image, preprocess), preprocess).transpose(2, 0, 1)[None]
    return torch.from_numpy(np.ascontiguousarray(pixels))


def score_volumes(
    logits_of: Network, x: Tensor, inference: Inference, flip_pairs: tuple[tuple[int, int], ...] = ()
) -> list[Tensor]:
    """The score volume (1, K, h, w) of every pass, whole: scales in order, each plain and then mirrored.

    They are collected on the CPU, wherever ``x`` and the network are.
    """
    scales = (scale_scores(logits_of, x, scale, inference, flip_pairs) for scale in inference.scales)
    return [scores.cpu() for passes in scales for scores in passes]


def scale_scores(
    logits_of: Network, x: Tensor, scale: float, inference: Inference, flip_pairs: tuple[tuple[int, int], ...]
) -> Iterator[Tensor]:
    """Scores (1, K, h, w) of one scale: of the plain pass and, with flip, of the mirrored one."""
    scaled = F.interpolate(x, scale_factor=scale, mode="bilinear", recompute_scale_factor=False)
    yield pass_scores(logits_of, scaled, inference)
    if inference.flip:
        yield unmirrored(pass_scores(logits_of, scaled.flip(3), inference), flip_pairs)


def unmirrored(scores: Tensor, flip_pairs: tuple[tuple[int, int], ...]) -> Tensor:
    """Scores of a mirrored pass as those of the picture: left and right classes exchanged, columns reversed."""
    swapped = scores.clone()
    for left, right in flip_pairs:
        swapped[:, left], swapped[:, right] = scores[:, right], scores[:, left]
    return swapped.flip(3)


def pass_scores(logits_of: Network, x: Tensor, inference: Inference) -> Tensor:
    """Scores of one pass (1, 3, h, w): coarse in whole mode, of the pass's own size from windows."""
    if inference.mode == "whole":
        logits = logits_of(x)
        return logits.softmax(1) if inference.softmax_before_resize else logits
    height, width = x.shape[2:]
    total, cover = x.new_zeros(1, 1, 1, 1), x.new_zeros(height, width)
    assert inference.window is not None
    assert inference.stride is not None
    for top, bottom in geometry.starts(height, inference.window[0], inference.stride[0]):
        for left, right in geometry.starts(width, inference.window[1], inference.stride[1]):
            logits = logits_of(x[:, :, top:bottom, left:right])
            logits = F.interpolate(logits, size=(bottom - top, right - left), mode="bilinear")
            if total.shape[1] != logits.shape[1]:
                total = x.new_zeros(1, logits.shape[1], height, width)
            total[:, :, top:bottom, left:right] += logits.softmax(1) if inference.softmax_before_resize else logits
            cover[top:bottom, left:right] += 1
    return total / cover


def merged(volumes: list[Tensor], size: Size) -> Tensor:
    """Mean scores (K, *size) of volumes (1, K, h, w), each resized directly to ``size``."""
    full = [F.interpolate(volume, size=size, mode="bilinear") for volume in volumes]
    return (sum(full[1:], full[0]) / len(full))[0]


class PipelineRunner(Runner):
    """A network with the evaluation around it."""

    def __init__(self, setup: Setup, network: Network, description: str, recipe: Recipe) -> None:
        torch.set_num_threads(setup.threads)
        cv2.setNumThreads(setup.threads)
        self.description = description
        self._network, self._recipe = network, recipe

    @torch.inference_mode()
    def run(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        """See `benchmarks.peers.Runner.run`."""
        start, engine = time.perf_counter(), 0.0

        def network(x: Tensor) -> Tensor:
            nonlocal engine
            called = time.perf_counter()
            logits = self._network(x.contiguous())
            engine += time.perf_counter() - called
            return logits

        x = network_input(image, self._recipe.preprocess)
        resize = time.perf_counter() - start
        pairs = self._recipe.labels.flip_pairs
        scales = (scale_scores(network, x, scale, inference, pairs) for scale in inference.scales)
        volumes = [functools.reduce(torch.add, scores)[0].numpy() for scores in scales]
        labels = merge(volumes, (image.shape[0], image.shape[1]))
        rest = time.perf_counter() - start - resize - engine
        return Output(labels, {"resize": resize, "engine": engine, "merge": rest})


def merge(volumes: list[NDArray[np.float32]], size: Size) -> NDArray[np.int16]:
    """The label map (H, W) of score volumes (K, h, w), resized class by class, added and compared."""
    best = np.full(size, -np.inf, np.float32)
    labels = np.zeros(size, np.int16)
    for k in range(len(volumes[0])):
        score = np.zeros(size, np.float32)
        for volume in volumes:
            score += cv2.resize(volume[k], size[::-1], interpolation=cv2.INTER_LINEAR)
        better = score > best
        labels[better] = k
        np.maximum(best, score, out=best)
    return labels
