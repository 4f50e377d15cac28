"""The training loss: cross-entropy of three predictions, each enlarged to the size of the labels."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from isnet_trt.training.model import Outputs

IGNORE = -100
"""Label of pixels that count for nothing."""

WEIGHTS = (1.0, 0.4, 0.4)
"""Of the final, first-stage and auxiliary prediction."""


class Losses(NamedTuple):
    """Weighted scalar losses, and their sum ``total`` (the one to call ``backward`` on)."""

    stage2: Tensor
    stage1: Tensor
    auxiliary: Tensor
    total: Tensor


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that are not ignored.

    Args:
        logits: (B, K, h, w) raw scores, resized bilinearly to the labels' size.
        labels: (B, H, W) int64, 0..K-1 or `IGNORE`.

    Returns:
        A scalar; NaN when every pixel is ignored.
    """
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels, ignore_index=IGNORE)


def losses(outputs: Outputs, labels: Tensor) -> Losses:
    """1.0 · stage 2 + 0.4 · stage 1 + 0.4 · auxiliary, each a `pixel_loss` against ``labels`` (B, H, W) int64."""
    stage2, stage1, auxiliary = (w * pixel_loss(y, labels) for w, y in zip(WEIGHTS, outputs, strict=True))
    return Losses(stage2, stage1, auxiliary, stage2 + stage1 + auxiliary)
