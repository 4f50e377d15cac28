"""The training loss: cross-entropy of three predictions, each enlarged to the size of the labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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


class _SummedLoss(torch.autograd.Function):
    """Sum of the cross-entropy over the labelled pixels, with the gradient computed in the forward pass, crop by crop.

    Enlarged logits of all classes exist for one crop at a time: of a batch of 16 crops 512×512 with 150 classes they
    would be 2.5 GB in float32, several times for each prediction.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        crops = [logits[i : i + 1].detach().requires_grad_(ctx.needs_input_grad[0]) for i in range(len(logits))]
        total = logits.new_zeros(())
        gradients: list[Tensor] = []
        for crop, target in zip(crops, labels.split(1), strict=True):
            with torch.enable_grad():
                loss = crop_loss(crop, target)
            total += loss.detach()
            if crop.requires_grad:
                gradients += torch.autograd.grad(loss, crop)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None


def crop_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropy of (1, K, h, w) logits, enlarged bilinearly, over the labelled pixels of (1, H, W)."""
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels, ignore_index=IGNORE, reduction="sum")


def pixel_loss(logits: Tensor, labels: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Mean cross-entropy over the pixels that are not ignored.

    Args:
        logits: (B, K, h, w) raw scores, resized bilinearly to the labels' size.
        labels: (B, H, W) int64, 0..K-1 or `IGNORE`.
        count: divide the sum by this instead of the number of pixels that are not ignored.

    Returns:
        A scalar; NaN when every pixel is ignored and no count is given.
    """
    return _SummedLoss.apply(logits, labels) / ((labels != IGNORE).sum() if count is None else count)


def losses(outputs: Outputs, labels: Tensor, count: float | None = None) -> Losses:
    """1.0 · stage 2 + 0.4 · stage 1 + 0.4 · auxiliary, each a `pixel_loss` against ``labels`` (B, H, W) int64."""
    divisor = (labels != IGNORE).sum() if count is None else count
    stage2, stage1, auxiliary = (w * pixel_loss(y, labels, divisor) for w, y in zip(WEIGHTS, outputs, strict=True))
    return Losses(stage2, stage1, auxiliary, stage2 + stage1 + auxiliary)
