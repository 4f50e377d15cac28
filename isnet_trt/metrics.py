"""How well labels agree with the truth: confusion counts and the usual figures from them. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import SettingsError


@dataclass(frozen=True)
class Metrics:
    """Figures as fractions 0..1; a class that occurs nowhere has NaN.

    ``iou`` float64 (K,): I / (P + L − I). ``miou``: mean of ``iou`` without its NaN; a class that is predicted but
    never present counts 0. ``accuracy`` float64 (K,): I / L (recall), NaN where L is 0. ``all_accuracy``: all right
    pixels over all pixels. ``dice`` float64 (K,): 2 I / (P + L).
    """

    iou: NDArray[np.float64]
    miou: float
    accuracy: NDArray[np.float64]
    all_accuracy: float
    dice: NDArray[np.float64]


class Confusion:
    """Pixel counts over a set of pictures; ``counts[t, p]`` int64 (K, K): truth t, prediction p."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)

    def add(self, predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> None:
        """Count one picture; pixels whose truth is outside 0..K−1 (such as −1, −100 or 255) count for nothing.

        Raises:
            SettingsError: the shapes differ, or a counted prediction is outside 0..K−1.
        """
        if predicted.shape != truth.shape:
            raise SettingsError(f"predicted labels are {predicted.shape}, the truth is {truth.shape}: sizes must agree")
        k = len(self.counts)
        valid = (truth >= 0) & (truth < k)
        p, t = predicted[valid].astype(np.int64), truth[valid].astype(np.int64)
        if p.size and (p.min() < 0 or p.max() >= k):
            raise SettingsError(f"predicted labels {p.min()}..{p.max()} do not fit {k} classes")
        self.counts += np.bincount(t * k + p, minlength=k * k).reshape(k, k)

    def metrics(self) -> Metrics:
        """The figures of everything counted so far; NaN where nothing was."""
        hit = np.diag(self.counts).astype(np.float64)
        label, prediction = self.counts.sum(1), self.counts.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = hit / (prediction + label - hit)
            dice = 2 * hit / (prediction + label)
            accuracy = hit / label
            overall = hit.sum() / self.counts.sum()
        present = iou[~np.isnan(iou)]
        return Metrics(iou, float(present.mean()) if present.size else float("nan"), accuracy, float(overall), dice)
