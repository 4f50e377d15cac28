"""Scores of a model during training: whole picture, scale 1, no flip, as the published runs were validated."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from isnet_trt.datasets.picture_set import Source
from isnet_trt.metrics import Confusion, Metrics
from isnet_trt.pictures.preprocess import check_image, normalise, resize
from isnet_trt.runtime.prefetch import prefetch
from isnet_trt.settings import Preprocess
from isnet_trt.training.group import Group
from isnet_trt.training.model import ISNet

_READERS = 4


class Validator:
    """The first ``limit`` pictures of a set (all without a limit), shared among the processes of a run."""

    def __init__(self, source: Source, rule: Preprocess, classes: int, limit: int | None, group: Group) -> None:
        self.source, self.rule, self.classes, self.group = source, rule, classes, group
        self.count = min(len(source), len(source) if limit is None else limit)

    def score(self, model: ISNet, stop: Callable[[], bool] = lambda: False) -> Metrics | None:
        """Metrics of the arg max at the pictures' own size; None if ``stop()`` was true in a process meanwhile.

        Each picture counts once, whatever the number of processes; all of them get the same figures.
        """
        confusion, stopped = Confusion(self.classes), False
        model.eval()
        indices = range(self.group.rank, self.count, self.group.size)
        with ThreadPoolExecutor(_READERS) as pool:
            for loaded in prefetch(indices, lambda i: pool.submit(self._load, i), lambda job: job, _READERS):
                if stopped := stop():
                    break
                x, truth = loaded.result()
                confusion.add(predict(model, x.to(self.group.device), truth.shape), truth)
        summed = self.group.sum_array(np.append(confusion.counts.ravel(), int(stopped)))
        confusion.counts = summed[:-1].reshape(confusion.counts.shape)
        return None if summed[-1] else confusion.metrics()

    def _load(self, index: int) -> tuple[Tensor, NDArray[np.integer]]:
        image, truth = self.source[index]
        planes = normalise(resize(check_image(image, "bgr"), self.rule), self.rule).transpose(2, 0, 1)
        return torch.from_numpy(planes[None]).contiguous(memory_format=torch.channels_last), truth


@torch.inference_mode()
def predict(model: ISNet, x: Tensor, size: tuple[int, ...]) -> NDArray[np.int64]:
    """Labels of ``size`` (H, W) for a network input (1, 3, h, w); the logits are resized bilinearly."""
    full = F.interpolate(model(x).float(), size=list(size), mode="bilinear", align_corners=False)
    return full.argmax(1)[0].cpu().numpy()
