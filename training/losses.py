"""The training loss: cross-entropy of three predictions, each enlarged to the size of the labels."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from isnet_trt.recipes import IGNORE
from isnet_trt.training.model import Outputs

WEIGHTS = (1.0, 0.4, 0.4)
"""Of the final, first-stage and auxiliary prediction."""


class Losses(NamedTuple):
    """Weighted scalar losses, and their sum ``total`` (the one to call ``backward`` on)."""

    stage2: Tensor
    stage1: Tensor
    auxiliary: Tensor
    total: Tensor


def pixel_loss(logits: Tensor, labels: Tensor, count: float | None = None) -> Tensor:
    """Mean cross-entropy over the pixels that are not ignored.

    Args:
        logits: (B, K, h, w) raw scores, resized bilinearly to the labels' size.
        labels: (B, H, W) int64, 0..K-1 or `IGNORE`.
        count: divide the sum by this instead of the number of pixels that are not ignored.

    Returns:
        A scalar; NaN when every pixel is ignored and no count is given.
    """
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    if count is None:
        return F.cross_entropy(full, labels, ignore_index=IGNORE)
    return F.cross_entropy(full, labels, ignore_index=IGNORE, reduction="sum") / count


def losses(outputs: Outputs, labels: Tensor, count: float | None = None) -> Losses:
    """1.0 · stage 2 + 0.4 · stage 1 + 0.4 · auxiliary, each a `pixel_loss` against ``labels`` (B, H, W) int64."""
    stage2, stage1, auxiliary = (w * pixel_loss(y, labels, count) for w, y in zip(WEIGHTS, outputs, strict=True))
    return Losses(stage2, stage1, auxiliary, stage2 + stage1 + auxiliary)
