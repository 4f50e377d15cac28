"""The two context operators against their definitions, written as loops in float64."""

import math

import pytest
import torch
from torch import Tensor

from isnet_trt.training.model.ops import attention, region_pool

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
"""Largest absolute error; values are of order 1. Log counts are computed in float32 whatever the type."""


def pool_by_loops(logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    batch, classes, _ = logits.shape
    centres = torch.zeros(batch, classes, features.shape[2], dtype=torch.float64)
    counts = torch.zeros(batch, classes, dtype=torch.float64)
    for b in range(batch):
        columns = logits[b].double().T.tolist()
        labels = [column.index(max(column)) for column in columns]
        for k in range(classes):
            own = [n for n, label in enumerate(labels) if label == k]
            counts[b, k] = len(own)
            if own:
                weights = torch.softmax(logits[b, k, own].double(), 0)
                centres[b, k] = weights @ features[b, own].double()
    return centres, counts


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(2, 5, 77, 13), (1, 19, 123, 31), (3, 1, 5, 2), (1, 7, 1, 3)])
def test_region_pool(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    batch, classes, positions, channels = shape
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(batch, classes, positions, generator=generator).to(dtype) * 3
    features = torch.randn(batch, positions, channels, generator=generator).to(dtype)
    centres, log_counts = region_pool(logits, features)
    want, counts = pool_by_loops(logits, features)
    assert centres.dtype == log_counts.dtype == dtype
    assert (centres.double() - want).abs().max() < TOLERANCE[dtype]
    assert torch.equal(log_counts.double().exp().round(), counts)


def test_region_pool_of_absent_classes_ties_and_large_scores() -> None:
    logits = torch.tensor([[[3e4, 0.0, 7.0], [3e4, 0.0, -9.0], [-3e4, -1.0, 7.0], [-1e30, -2.0, 0.0]]])
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    centres, log_counts = region_pool(logits, features)
    assert torch.equal(centres, torch.tensor([[[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]))
    assert log_counts[0].tolist() == [pytest.approx(math.log(3)), -math.inf, -math.inf, -math.inf]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(2, 75, 31, 17), (1, 129, 129, 32), (1, 3, 1, 5)])
def test_attention(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    batch, queries, keys, width = shape
    generator = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(batch, n, width, generator=generator).to(dtype) for n in (queries, keys, keys))
    bias = torch.randn(batch, keys, generator=generator).to(dtype)
    bias[:, 1::4] = -math.inf
    got = attention(q, k, v, bias, 0.3)
    scores = 0.3 * q.double() @ k.double().transpose(1, 2) + bias.double()[:, None, :]
    assert got.is_contiguous()
    assert (got.double() - scores.softmax(2) @ v.double()).abs().max() < TOLERANCE[dtype]


def test_operators_are_well_formed() -> None:
    logits, features = torch.randn(2, 5, 11), torch.randn(2, 11, 6)
    torch.library.opcheck(region_pool, (logits, features))
    torch.library.opcheck(attention, (features, features, features, torch.zeros(2, 11), 0.25))
