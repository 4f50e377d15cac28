"""The evaluation around a network as a careful user would write it: torch for the passes, OpenCV for the merge.

Scores of mirrored passes are added on the coarse grid where everything behind it is linear, and the map is made class
by class with a running maximum, so that no volume of classes x height x width of the picture is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.peers.base import Output, Setup
from isnet_trt.merging import geometry
from isnet_trt.pictures.preprocess import normalise, resize
from isnet_trt.recipes import Recipe
from isnet_trt.settings import Inference, Size

Network = Callable[[Tensor], Tensor]
"""Normalised pictures (B, 3, H, W) on the CPU -> raw logits (B, K, h, w) float32 on the CPU."""


class PipelineRunner:
    """A network with the evaluation around it."""

    def __init__(self, setup: Setup, network: Network, description: str, recipe: Recipe) -> None:
        torch.set_num_threads(setup.threads)
        cv2.setNumThreads(setup.threads)
        self.description = description
        self._network, self._recipe = network, recipe

    @torch.inference_mode()
    def run(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        """See `benchmarks.peers.base.Runner.run`."""
        watch = {"engine": 0.0}
        start = time.perf_counter()
        pixels = normalise(resize(image, self._recipe.preprocess), self._recipe.preprocess).transpose(2, 0, 1)
        x = torch.from_numpy(np.ascontiguousarray(pixels)[None])
        watch["resize"] = time.perf_counter() - start
        volumes = [self._scale(x, scale, inference, watch) for scale in inference.scales]
        labels = merge(volumes, (image.shape[0], image.shape[1]))
        watch["merge"] = time.perf_counter() - start - sum(watch.values())
        return Output(labels, watch)

    def _scale(self, x: Tensor, scale: float, inference: Inference, watch: dict[str, float]) -> NDArray[np.float32]:
        """Scores (K, h, w) of one scale, the mirrored pass added."""
        scaled = F.interpolate(x, scale_factor=scale, mode="bilinear", recompute_scale_factor=False)
        total = self._forward(scaled, inference, watch)
        if inference.flip:
            mirrored = self._forward(scaled.flip(3), inference, watch).flip(2)
            order = torch.arange(len(mirrored))
            for a, b in self._recipe.labels.flip_pairs:
                order[[a, b]] = order[[b, a]]
            total = total + mirrored[order]
        return total.numpy()

    def _forward(self, x: Tensor, inference: Inference, watch: dict[str, float]) -> Tensor:
        if inference.mode == "whole":
            logits = self._timed(x, watch)[0]
            return logits.softmax(0) if inference.softmax_before_resize else logits
        return self._windows(x, inference, watch)

    def _windows(self, x: Tensor, inference: Inference, watch: dict[str, float]) -> Tensor:
        assert inference.window is not None
        assert inference.stride is not None
        height, width = x.shape[2:]
        total, cover = x.new_zeros(self._recipe.labels.count, height, width), x.new_zeros(height, width)
        for top, bottom in geometry.starts(height, inference.window[0], inference.stride[0]):
            for left, right in geometry.starts(width, inference.window[1], inference.stride[1]):
                logits = self._timed(x[:, :, top:bottom, left:right].contiguous(), watch)
                scores = F.interpolate(logits, size=(bottom - top, right - left), mode="bilinear")[0]
                total[:, top:bottom, left:right] += scores.softmax(0) if inference.softmax_before_resize else scores
                cover[top:bottom, left:right] += 1
        return total.div_(cover)

    def _timed(self, x: Tensor, watch: dict[str, float]) -> Tensor:
        start = time.perf_counter()
        logits = self._network(x)
        watch["engine"] += time.perf_counter() - start
        return logits

    def close(self) -> None:
        """The end of the process frees everything."""


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
