"""The plain reference form in PyTorch eager: the network and the evaluation as the published code computes them.

A loop over the classes of each picture, dense attention over all positions in both context modules, scores of every
pass kept whole and resized one after the other. Weights and layers are those of `isnet_trt.training.model.ISNet`; only
what the runtime computes in another way is written out here, plainly.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from isnet_trt import geometry
from isnet_trt.preprocess import normalise, resize
from isnet_trt.settings import Inference, Preprocess, Size
from isnet_trt.training.model import ISNet
from isnet_trt.training.model.context import CrossAttention


def network(model: ISNet, x: Tensor) -> Tensor:
    """Raw logits (B, K, h, w) of normalised pictures (B, 3, H, W)."""
    stages = model.backbone_net(x)
    features = model.bottleneck(stages.stage4)
    mean = F.interpolate(features.mean((2, 3), keepdim=True), size=features.shape[2:], mode="bilinear")
    image = dense_attention(model.ilc_net.correlate_net, features, torch.cat([mean, features], 1))
    image_level = model.ilc_net.bottleneck(torch.cat([features, image], 1))
    centres = class_centres(features, model.decoder_stage1(features))
    semantic = dense_attention(model.slc_net.correlate_net, features, centres)
    context = model.slc_net.bottleneck(torch.cat([image_level, semantic], 1))
    if model.architecture.shortcut_channels:
        detail = model.shortcut(stages.stage1)
        context = torch.cat([F.interpolate(context, size=detail.shape[2:], mode="bilinear"), detail], 1)
    return model.decoder_stage2(context)


def dense_attention(block: CrossAttention, query: Tensor, key: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v over all positions, the (h·w)² weights in memory."""
    q, k, v = (t.flatten(2) for t in (block.query_project(query), block.key_project(key), block.value_project(key)))
    weights = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)
    context = (weights @ v.transpose(1, 2)).transpose(1, 2).contiguous()
    return block.out_project(context.reshape(*context.shape[:2], *query.shape[2:]))


def class_centres(features: Tensor, logits: Tensor) -> Tensor:
    """Each position replaced by its class's centre, picture by picture and class by class."""
    result = torch.zeros_like(features)
    for picture, scores, out in zip(features.flatten(2), logits.flatten(2), result.flatten(2), strict=True):
        labels = scores.argmax(0)
        for label in labels.unique():
            mask = labels == label
            weights = scores[label, mask].softmax(0)
            out[:, mask] = (picture[:, mask] * weights).sum(1, keepdim=True)
    return result


def score_volumes(
    model: ISNet, x: Tensor, inference: Inference, flip_pairs: tuple[tuple[int, int], ...] = ()
) -> list[Tensor]:
    """The score volume of every pass, whole: scales in order, each plain and then mirrored."""
    volumes = []
    for scale in inference.scales:
        scaled = F.interpolate(x, scale_factor=scale, mode="bilinear", recompute_scale_factor=False)
        volumes.append(_forward(model, scaled, inference))
        if inference.flip:
            mirrored = _forward(model, scaled.flip(3), inference)
            swapped = mirrored.clone()
            for left, right in flip_pairs:
                swapped[:, left], swapped[:, right] = mirrored[:, right], mirrored[:, left]
            volumes.append(swapped.flip(3))
    return volumes


def _forward(model: ISNet, x: Tensor, inference: Inference) -> Tensor:
    if inference.mode == "whole":
        logits = network(model, x)
        return logits.softmax(1) if inference.softmax_before_resize else logits
    height, width = x.shape[2:]
    total, cover = x.new_zeros(1, model.architecture.num_classes, height, width), x.new_zeros(height, width)
    assert inference.window is not None
    assert inference.stride is not None
    for top, bottom in geometry.starts(height, inference.window[0], inference.stride[0]):
        for left, right in geometry.starts(width, inference.window[1], inference.stride[1]):
            logits = network(model, x[:, :, top:bottom, left:right])
            logits = F.interpolate(logits, size=(bottom - top, right - left), mode="bilinear")
            total[:, :, top:bottom, left:right] += logits.softmax(1) if inference.softmax_before_resize else logits
            cover[top:bottom, left:right] += 1
    return total / cover


@torch.inference_mode()
def scores(
    model: ISNet, x: Tensor, size: Size, inference: Inference, flip_pairs: tuple[tuple[int, int], ...] = ()
) -> Tensor:
    """Mean scores (K, *size): every volume resized directly to the source's size, then averaged."""
    volumes = score_volumes(model, x, inference, flip_pairs)
    return torch.stack([F.interpolate(volume, size=size, mode="bilinear")[0] for volume in volumes]).mean(0)


def label_map(
    model: ISNet,
    image: NDArray[np.uint8],
    preprocess: Preprocess,
    inference: Inference,
    flip_pairs: tuple[tuple[int, int], ...] = (),
) -> NDArray[np.int64]:
    """The label map (H, W) of a uint8 RGB picture."""
    pixels = normalise(resize(image, preprocess), preprocess).transpose(2, 0, 1)[None]
    size = (image.shape[0], image.shape[1])
    return scores(model, torch.from_numpy(pixels.copy()), size, inference, flip_pairs).argmax(0).numpy()
