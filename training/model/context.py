"""Image-level and semantic-level context: training form (paper: Jin et al., ISNet, ICCV 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isnet_trt.recipes.architecture import Activation
from isnet_trt.training.model.layers import conv_bn_act
from isnet_trt.training.model.ops import class_mask, class_weights, rows


class CrossAttention(nn.Module):
    """softmax(q kᵀ / sqrt(D)) v with one head, where q, k and v have passed batch-norm and activation.

    Queries come from ``queries`` channels, keys and values from ``keys`` channels.
    """

    def __init__(self, queries: int, keys: int, width: int, outputs: int, act: Activation) -> None:
        super().__init__()
        self.key_project = nn.Sequential(conv_bn_act(keys, width, 1, act), conv_bn_act(width, width, 1, act))
        self.query_project = nn.Sequential(conv_bn_act(queries, width, 1, act), conv_bn_act(width, width, 1, act))
        self.value_project = conv_bn_act(keys, width, 1, act)
        self.out_project = conv_bn_act(width, outputs, 1, act)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, C, h, w) and (B, C', h, w) -> (B, outputs, h, w)."""
        q = self.query_project(query)
        k, v = self.key_project(key), self.value_project(key)
        # Never holds the (h·w)² weights, neither forwards nor for the backward pass.
        context = F.scaled_dot_product_attention(rows(q)[:, None], rows(k)[:, None], rows(v)[:, None])
        return self.out_project(context[:, 0].transpose(1, 2).reshape(q.shape))


class ImageLevelContext(nn.Module):
    """Each position attends to all positions, with the picture's mean feature beside each key and value."""

    def __init__(self, features: int, width: int, act: Activation) -> None:
        super().__init__()
        self.correlate_net = CrossAttention(features, 2 * features, width, features, act)
        self.bottleneck = conv_bn_act(2 * features, features, 3, act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        # Copied, so that the concatenation of an image in channels_last is in channels_last too.
        mean = x.mean((2, 3), keepdim=True).expand_as(x).contiguous(memory_format=torch.channels_last)
        out = self.correlate_net(x, torch.cat([mean, x], dim=1))
        return self.bottleneck(torch.cat([x, out], dim=1))


class SemanticLevelContext(nn.Module):
    """Each position attends to the centre of each position's class, as the first prediction sees the classes."""

    def __init__(self, features: int, width: int, act: Activation) -> None:
        super().__init__()
        self.correlate_net = CrossAttention(features, features, width, features, act)
        self.bottleneck = conv_bn_act(2 * features, features, 3, act)

    def forward(self, x: Tensor, image_level: Tensor, logits: Tensor) -> Tensor:
        """Features (B, C, h, w), image-level result (B, C, h, w), first logits (B, K, h, w) -> (B, C, h, w)."""
        out = self.correlate_net(x, class_map(x, logits))
        return self.bottleneck(torch.cat([image_level, out], dim=1))


def class_map(features: Tensor, logits: Tensor) -> Tensor:
    """Every position replaced by the centre of its class: (B, C, h, w), (B, K, h, w) -> (B, C, h, w).

    The class of a position is the first arg max of its logits. The centre of class k is the mean of the features of
    its positions, weighted by the softmax of logit k over these positions; gradients pass through these weights.
    Kept dense, since the batch statistics of the layers behind it count a centre once per position.
    """
    scores = logits.flatten(2)
    mask = class_mask(scores.argmax(dim=1), scores.shape[1])
    centres = class_weights(scores, mask) @ rows(features)
    # Each row of the transposed mask has a single 1, so the product selects a centre exactly. The backward pass of an
    # indexed read would add up with atomic operations, in the type of autocast and in varying order.
    selected = mask.transpose(1, 2).to(centres.dtype) @ centres
    return selected.transpose(1, 2).reshape(features.shape)
