"""Softmax at every size of score, mirrored sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isnet_trt.merging import volumes
from isnet_trt.merging.geometry import passes
from isnet_trt.merging.volumes import softmax
from isnet_trt.settings import Inference

PROBABILITY = (np.float32, 1e-6)
"""Type and bound of the largest error of a probability."""


@pytest.mark.parametrize("spread", [0.1, 8.0, 30.0, 200.0, 3000.0])
def test_softmax_is_right_whether_or_not_exp_would_overflow(spread: float) -> None:
    scores = np.random.default_rng(2).standard_normal((11, 5, 7)).astype(np.float32) * np.float32(spread)
    want = torch.from_numpy(scores).double().softmax(0).numpy()
    bounds = np.array([scores.min(), scores.max()])
    for out, within in ((None, None), (np.empty_like(scores), scores), (np.empty_like(scores), bounds)):
        got = softmax(scores, out, within)
        assert got.dtype == PROBABILITY[0]
        assert out is None or got is out
        assert np.abs(got - want).max() <= PROBABILITY[1]


def test_softmax_does_not_overflow() -> None:
    scores = np.array([[1000.0, -1000.0], [999.0, -1000.0]], np.float32)
    want = torch.from_numpy(scores).softmax(0).numpy()
    assert np.abs(softmax(scores) - want).max() <= PROBABILITY[1]


@pytest.mark.parametrize("size", [(5, 7), (1, 6), (4, 1)])
@pytest.mark.parametrize("pairs", [(), ((0, 3), (4, 2))])
def test_mirrored_scores_are_added_with_classes_exchanged(size: tuple[int, int], pairs: tuple) -> None:
    rng = np.random.default_rng(4)
    total, scores = (rng.standard_normal((5, *size)).astype(np.float32) for _ in range(2))
    order = [0, 1, 2, 3, 4] if not pairs else [3, 1, 4, 0, 2]
    want = total + scores[order][:, :, ::-1]
    volumes.add_mirrored(total, scores, pairs)
    assert np.array_equal(total, want)


@pytest.mark.parametrize("first", ["plain", "mirrored"])
def test_passes_of_a_scale_add_up_in_either_order_and_any_layout(first: str) -> None:
    size = (67, 131)
    inference = Inference(flip=True, softmax_before_resize=True)
    plain, mirrored = (volumes.Window(one, 0, size[0], 0, size[1]) for one in passes(size, inference))
    rng = np.random.default_rng(6)
    scores = {w.of.index: rng.standard_normal((37, 9, 17)).astype(np.float32) for w in (plain, mirrored)}
    want = softmax(scores[0]) + softmax(scores[1])[:, :, ::-1]
    coarse = volumes.Coarse((9, 17), 2, True, ())
    for window in (plain, mirrored) if first == "plain" else (mirrored, plain):
        assert coarse.ready() == 0
        given = np.asfortranarray(scores[window.of.index])
        coarse.add(window, given)
    assert coarse.ready() == 9
    assert np.abs(coarse.block((2, 9), (3, 17)) - want[:, 2:9, 3:17]).max() <= PROBABILITY[1]
