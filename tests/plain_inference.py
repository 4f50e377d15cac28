"""The inference rules written the plain way, with whole volumes and torch, for tests to compare against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from isnet_trt.settings import Inference

Network = Callable[[torch.Tensor], torch.Tensor]
"""(1, 3, h, w) to logits (1, K, ceil(h/s), ceil(w/s))."""


def scores(
    network: Network,
    picture: torch.Tensor,
    output: tuple[int, int],
    inference: Inference,
    pairs: Sequence[tuple[int, int]] = (),
) -> torch.Tensor:
    """Mean scores (K, *output) of a normalised picture (1, 3, H, W): a list of volumes, resized and averaged."""
    with one_thread():
        return _scores(network, picture, output, inference, pairs)


@contextmanager
def one_thread() -> Iterator[None]:
    """On one thread: on a busy machine torch spends more time on handing out such small work than on doing it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interpolate(x: torch.Tensor, **how: Any) -> torch.Tensor:
    """Resampled in float32, as the reference does it: positions rounded otherwise give other weights."""
    return F.interpolate(x.float(), mode="bilinear", **how).to(x.dtype)


def _scores(
    network: Network,
    picture: torch.Tensor,
    output: tuple[int, int],
    inference: Inference,
    pairs: Sequence[tuple[int, int]],
) -> torch.Tensor:
    volumes = []
    for scale in inference.scales:
        shown = interpolate(picture, scale_factor=scale, recompute_scale_factor=False)
        volumes.append(forward(network, shown, inference))
        if inference.flip:
            mirrored = forward(network, shown.flip(3), inference)
            swapped = mirrored.clone()
            for a, b in pairs:
                swapped[:, a], swapped[:, b] = mirrored[:, b], mirrored[:, a]
            volumes.append(swapped.flip(3))
    return torch.stack([interpolate(v, size=output)[0] for v in volumes]).mean(0)


def forward(network: Network, x: torch.Tensor, inference: Inference) -> torch.Tensor:
    if inference.mode == "whole":
        logits = network(x)
        return logits.softmax(1) if inference.softmax_before_resize else logits
    assert inference.window is not None
    assert inference.stride is not None
    height, width = x.shape[2:]
    (ch, cw), (sh, sw) = inference.window, inference.stride
    total, cover = None, torch.zeros(height, width, dtype=x.dtype)
    for i in range(math.floor(max(height - ch + sh - 1, 0) / sh) + 1):
        for j in range(math.floor(max(width - cw + sw - 1, 0) / sw) + 1):
            bottom, right = min(i * sh + ch, height), min(j * sw + cw, width)
            top, left = max(bottom - ch, 0), max(right - cw, 0)
            part = interpolate(network(x[:, :, top:bottom, left:right]), size=(bottom - top, right - left))
            part = part.softmax(1) if inference.softmax_before_resize else part
            total = torch.zeros(1, part.shape[1], height, width, dtype=x.dtype) if total is None else total
            total[:, :, top:bottom, left:right] += part
            cover[top:bottom, left:right] += 1
    assert cover.min() >= 1
    assert total is not None
    return total / cover
