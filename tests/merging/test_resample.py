"""Bilinear resampling by ratio and by factor against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isnet_trt.merging.geometry import scaled_size
from isnet_trt.merging.resample import Part, column_taps, combine, product, scale_rows, taps

ERROR = (np.float32, 2e-6)
"""Type and largest absolute error against PyTorch's float32 for inputs of variance 1: same weights, other sums."""


def by_ratio(x, size):
    return F.interpolate(torch.from_numpy(x)[None], size, mode="bilinear")[0].numpy()


def by_factor(x, scale):
    x = torch.from_numpy(x)[None]
    return F.interpolate(x, scale_factor=scale, mode="bilinear", recompute_scale_factor=False)[0].numpy()


@pytest.mark.parametrize("scale", [0.1, 0.33, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 3.7])
@pytest.mark.parametrize("size", [(11, 13), (121, 167), (64, 86), (300, 41), (513, 12), (17, 4099)])
def test_factor_is_torchs(size, scale):
    """The last picture is so wide that positions rounded otherwise would move its pixels by 1e-3."""
    x = np.random.default_rng(1).standard_normal((3, *size), dtype=np.float32)
    height, width = scaled_size(size, scale)
    got = scale_rows(x, scale, width, 0, height)
    want = by_factor(x, scale)
    assert got.shape == want.shape
    assert got.dtype == ERROR[0]
    assert np.abs(got - want).max() <= ERROR[1]


def test_factor_is_not_the_ratio_of_sizes():
    x = np.random.default_rng(1).standard_normal((1, 121, 167), dtype=np.float32)
    height, width = scaled_size((121, 167), 1.25)
    got = scale_rows(x, 1.25, width, 0, height)
    assert np.abs(got - by_ratio(x, (height, width))).max() > 0.05


@pytest.mark.parametrize("part", [(0, 40), (40, 300), (299, 437)])
def test_some_rows_are_those_of_the_whole(part):
    x = np.random.default_rng(2).standard_normal((3, 250, 31), dtype=np.float32)
    whole = scale_rows(x, 1.75, 54, 0, 437)
    assert np.array_equal(scale_rows(x, 1.75, 54, *part), whole[:, slice(*part)])


@pytest.mark.parametrize("source", [(1, 1), (3, 70), (16, 21), (65, 129)])
@pytest.mark.parametrize("output", [(1, 1), (150, 200), (7, 300), (64, 5)])
def test_blocks_by_ratio_are_torchs(source, output):
    x = np.random.default_rng(3).standard_normal((5, *source), dtype=np.float32)
    want = by_ratio(x, output)
    for rows, columns in [((0, output[0]), (0, output[1])), ((output[0] // 3, output[0]), (output[1] // 2, output[1]))]:
        y = taps(source[0], output[0], *rows)
        span, x_taps = column_taps(source[1], output[1], *columns)
        got = combine([Part(x[:, slice(*y.span), slice(*span)], y.matrix, x_taps)])
        assert np.abs(got - want[:, slice(*rows), slice(*columns)]).max() <= ERROR[1]


def test_parts_are_added_up():
    rng = np.random.default_rng(4)
    volumes = [rng.standard_normal((4, h, w), dtype=np.float32) for h, w in ((5, 9), (12, 3))]
    parts = []
    for volume in volumes:
        span, columns = column_taps(volume.shape[2], 90, 0, 90)
        parts.append(Part(volume[:, :, slice(*span)], taps(volume.shape[1], 40, 0, 40).matrix, columns))
    want = sum(by_ratio(volume, (40, 90)) for volume in volumes)
    assert np.abs(combine(parts) - want).max() <= ERROR[1]


def test_products_in_pieces_are_the_product():
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((3, 700, 40), dtype=np.float32), rng.standard_normal((3, 40, 90), dtype=np.float32)
    out = product(a, b, np.empty((3, 700, 90), np.float32))
    assert np.abs(out - a.astype(np.float64) @ b).max() <= 2e-5  # sums of forty products
