"""The plain reference form in PyTorch eager: the network and the evaluation as the published code computes them.

A loop over the classes of each picture, dense attention over all positions in both context modules, scores of every
pass kept whole and resized one after the other. Weights and layers are those of `isnet_trt.training.model.ISNet`; only
what the runtime computes in another way is written out here, plainly.
"""

from __future__ import annotations

import functools
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.peers import Output, Runner, Setup
from benchmarks.peers.evaluation import merged, network_input, score_volumes
from benchmarks.peers.networks import device
from isnet_trt.settings import Inference, Size
from isnet_trt.training.checkpoint import Checkpoint, load_model
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


@torch.inference_mode()
def scores(
    model: ISNet, x: Tensor, size: Size, inference: Inference, flip_pairs: tuple[tuple[int, int], ...] = ()
) -> Tensor:
    """Mean scores (K, *size): every volume resized directly to the source's size, then averaged."""
    return merged(score_volumes(functools.partial(network, model), x, inference, flip_pairs), size)


def load(setup: Setup) -> ReferenceRunner:
    """The training form's layers in the plain form."""
    torch.set_num_threads(setup.threads)
    torch.backends.cudnn.allow_tf32 = False  # the others' labels are compared with these
    return ReferenceRunner(setup.checkpoint())


class ReferenceRunner(Runner):
    """The plain form as a contender, whose labels the others are compared with."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.description = f"PyTorch {torch.__version__} eager, {device()}, {torch.get_num_threads()} threads"
        self._network = functools.partial(network, load_model(checkpoint).to(device()))
        self._recipe = checkpoint.recipe

    @torch.inference_mode()
    def run(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        """See `benchmarks.peers.Runner.run`."""
        start = time.perf_counter()
        x = network_input(image, self._recipe.preprocess).to(device())
        read = time.perf_counter()
        volumes = score_volumes(self._network, x, inference, self._recipe.labels.flip_pairs)
        networks = time.perf_counter()
        mean = merged(volumes, (image.shape[0], image.shape[1]))
        labels = mean.argmax(0).numpy()
        stages = {"resize": read - start, "engine": networks - read, "merge": time.perf_counter() - networks}
        return Output(labels, stages, lambda: clear_pixels(mean))


CLEAR = 0.05
"""A pixel is clear where its best class leads the next by this share of the scores' standard deviation."""


def clear_pixels(scores: Tensor) -> NDArray[np.bool_]:
    """Where the labels of ``scores`` (K, H, W) do not hang on a rounding error: (H, W) bool."""
    best = scores.topk(2, dim=0).values
    return (best[0] - best[1] > CLEAR * scores.std()).numpy()
