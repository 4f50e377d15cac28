"""The two context operations of the inference form, as custom operators of the namespace ``isnet_trt``.

As operators of their own they stay whole in an exported graph, where an engine may put a fused kernel in their place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rows(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h·w, C)."""
    return x.flatten(2).transpose(1, 2)


def class_weights(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax of each class's logits over the positions of that class alone; 0 elsewhere and for absent classes.

    ``logits`` and ``mask`` (bool) are (B, K, N); so is the result, of the logits' type.
    """
    # Finite filler: a class without positions would otherwise be softmax over -inf alone, which is NaN.
    own = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return own.softmax(dim=2) * mask


def class_mask(labels: Tensor, classes: int) -> Tensor:
    """(B, N) class indices -> (B, K, N) bool, true where the position belongs to the class."""
    return labels[:, None, :] == torch.arange(classes, device=labels.device)[None, :, None]


@torch.library.custom_op("isnet_trt::region_pool", mutates_args=())
def region_pool(logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """One feature vector per class: the softmax-weighted mean over the positions whose arg max is that class.

    For class k with positions S_k = {n : argmax_j logits[j, n] = k}:

        centre_k = Σ_{n in S_k} softmax_{S_k}(logits[k])_n · features_n,    log_count_k = log |S_k|

    Args:
        logits: (B, K, N) raw class scores of N positions; a tie belongs to the first of the equal classes.
        features: (B, N, C), same floating type.

    Returns:
        centres (B, K, C), zero for a class without positions; log counts (B, K), -inf for such a class.
    """
    mask = class_mask(logits.argmax(dim=1), logits.shape[1])
    centres = class_weights(logits, mask) @ features
    # Counted in float32: float16 has all whole numbers up to 2048 only.
    return centres, mask.sum(dim=2, dtype=torch.float32).log().to(logits.dtype)


@region_pool.register_fake
def _(logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    batch, classes = logits.shape[:2]
    return features.new_empty((batch, classes, features.shape[2])), logits.new_empty((batch, classes))


@torch.library.custom_op("isnet_trt::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale · q kᵀ + bias) v, one head.

    Args:
        q: (B, N, D) queries.
        k: (B, M, D) keys.
        v: (B, M, D) values.
        bias: (B, M) added to the scores of each key; -inf leaves the key out. At least one key must be left in.
        scale: factor of the dot products.

    Returns:
        (B, N, D).
    """
    mask = bias[:, None, None, :].expand(-1, 1, q.shape[1], -1)
    # Contiguous, as the fake version below says: exporter and compiler rely on its strides.
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], mask, scale=scale)[:, 0].contiguous()


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)
