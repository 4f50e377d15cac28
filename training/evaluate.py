"""Scores a model on held-out drawn scenes: whole picture, scale 1, no flip, as evaluation during training is done."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from isnet_trt.metrics import Confusion, Metrics
from isnet_trt.preprocess import normalise
from isnet_trt.settings import Preprocess, Size
from isnet_trt.training.data.scenes import held_out
from isnet_trt.training.model import ISNet
from isnet_trt.training.recipes import Recipe


class HeldOut:
    """``count`` held-out scenes of ``size`` (height, width), drawn at the first use."""

    def __init__(self, recipe: Recipe, count: int, size: Size) -> None:
        self.recipe, self.count, self.size = recipe, count, size
        self._scenes: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []

    def score(self, model: ISNet) -> Metrics:
        """Metrics of the model's arg max, bilinearly enlarged to the picture's size."""
        if not self._scenes:
            self._scenes = list(held_out(self.recipe, self.count, self.size))
        confusion = Confusion(self.recipe.labels.count)
        model.eval()
        for image, truth in self._scenes:
            confusion.add(predict(model, image, self.recipe.preprocess), truth)
        return confusion.metrics()


@torch.inference_mode()
def predict(model: ISNet, image: NDArray[np.uint8], rule: Preprocess) -> NDArray[np.int64]:
    """Labels (H, W) of an RGB picture at its own size."""
    x = torch.from_numpy(normalise(image, rule).transpose(2, 0, 1)[None])
    logits = model(x.contiguous(memory_format=torch.channels_last))
    full = F.interpolate(logits.float(), size=image.shape[:2], mode="bilinear", align_corners=False)
    return full.argmax(1)[0].numpy()
