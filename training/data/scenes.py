"""The drawn scenes as a labelled set: each scene is drawn once, by the first worker that needs it, and kept."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from isnet_trt.settings import Size
from isnet_trt.training.options import SceneSet
from isnet_trt.training.scenes import HELD_OUT_SEED, TRAIN_SEED, draw_scene


class SceneCache:
    """Scenes ``first`` … ``first + count − 1``, kept in memory once they are drawn.

    The memory is torch's, which becomes shared memory when it is passed to a worker process: a scene that one worker
    draws is there for all. Two may draw the same scene at the same time; they write the same bytes.
    """

    def __init__(self, first: int, count: int, size: Size) -> None:
        self.first, self.size = first, size
        self._images = torch.empty((count, *size, 3), dtype=torch.uint8)
        self._labels = torch.empty((count, *size), dtype=torch.uint8)
        self._drawn = torch.zeros(count, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Picture uint8 (H, W, 3) in B, G, R order and labels uint8 (H, W) of one scene; do not write to them."""
        image, labels = self._images[index].numpy(), self._labels[index].numpy()
        if not self._drawn[index]:
            scene = draw_scene(self.first + index, *self.size)
            image[:], labels[:] = scene.image[..., ::-1], scene.labels
            self._drawn[index] = 1
        return image, labels


def training_scenes(scenes: SceneSet) -> SceneCache:
    """The training set."""
    return SceneCache(TRAIN_SEED, scenes.count, scenes.size)


def held_out_scenes(count: int, size: Size) -> SceneCache:
    """The held-out set: ``count`` scenes of ``size`` (height, width)."""
    return SceneCache(HELD_OUT_SEED, count, size)
