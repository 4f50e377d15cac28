"""The two context operations through `isnet_trt.cuda.context_ops`, kernels and all, against their references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from host_kernels import HostKernels

from isnet_trt.cuda.context_ops import Attention, Pool
from isnet_trt.kernels import attention, region_pool

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Weights are rounded to the values' type before they are multiplied, the result once more.
TOLERANCE = {"fp32": 3e-6, "fp16": 2e-3, "bf16": 2e-2}
POISON = 7777.0
GUARD = 64


class Memory:
    """A block of host memory at a multiple of 256, with a guard behind it that must stay as it is."""

    def __init__(self, size: int) -> None:
        self.bytes = torch.full((size + 256 + GUARD,), 0x5A, dtype=torch.uint8)
        self.address = -(-self.bytes.data_ptr() // 256) * 256
        self._end = self.address - self.bytes.data_ptr() + size

    def intact(self) -> bool:
        return bool((self.bytes[self._end : self._end + GUARD] == 0x5A).all())


def poisoned(*shape: int, dtype: str = "fp32") -> torch.Tensor:
    return torch.full(shape, POISON, dtype=TORCH[dtype])


def normal(rng: np.random.Generator, *shape: int, dtype: str = "fp32", gain: float = 1) -> torch.Tensor:
    return torch.from_numpy(gain * rng.standard_normal(shape)).to(TORCH[dtype])


def values(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().numpy()


def addresses(**tensors: torch.Tensor) -> dict[str, Any]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


@pytest.mark.parametrize("types", [("fp32", "fp32"), ("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "fp16")])
@pytest.mark.parametrize(
    ("batch", "classes", "positions", "channels", "multiprocessors"), [(2, 19, 101, 70, 1), (1, 37, 331, 33, 13)]
)
def test_region_pool(
    types: tuple[str, str], batch: int, classes: int, positions: int, channels: int, multiprocessors: int
) -> None:
    rng = np.random.default_rng(positions)
    logits = normal(rng, batch, classes, positions, dtype=types[0], gain=4)
    logits[:, 2] = -40  # wins nowhere
    features = normal(rng, batch, positions, channels, dtype=types[1])
    size = Pool(batch, classes, positions, channels, *types)
    centres, log_counts = poisoned(batch, classes, channels, dtype=types[1]), poisoned(batch, classes)
    kernels, workspace = HostKernels(types), Memory(size.workspace())
    if multiprocessors > 1:
        assert size.parts(kernels, multiprocessors) > 1
    tensors = addresses(logits=logits, features=features, centres=centres, log_counts=log_counts)
    size.launch(kernels, 0, multiprocessors, **tensors, workspace=workspace.address)
    wanted, wanted_counts = region_pool.reference(values(logits), values(features))
    np.testing.assert_allclose(values(centres), wanted, atol=TOLERANCE[types[1]])
    np.testing.assert_allclose(values(log_counts), wanted_counts, rtol=1e-6)
    assert np.isneginf(values(log_counts)[:, 2]).all()
    assert workspace.intact()
    assert kernels.log == [f"assign_{types[0]}", f"pool_{types[1]}", f"pool_combine_{types[1]}"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("width", [32, 256])
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "multiprocessors"), [(2, 45, 71, 1), (1, 67, 19, 1), (1, 35, 333, 13)]
)
def test_attention(dtype: str, width: int, batch: int, queries: int, keys: int, multiprocessors: int) -> None:
    rng = np.random.default_rng(queries)
    q = normal(rng, batch, queries, width, dtype=dtype)
    k, v = (normal(rng, batch, keys, width, dtype=dtype) for _ in range(2))
    bias = normal(rng, batch, keys)
    bias[:, 1:9] = -np.inf
    size = Attention(batch, queries, keys, width, dtype)
    out = poisoned(batch, queries, width, dtype=dtype)
    kernels, workspace = HostKernels((dtype,), width=width), Memory(size.workspace())
    tensors = addresses(q=q, k=k, v=v, bias=bias, out=out)
    size.launch(kernels, 0, multiprocessors, width**-0.5, **tensors, workspace=workspace.address)
    wanted = attention.reference(values(q), values(k), values(v), values(bias), width**-0.5)
    np.testing.assert_allclose(values(out), wanted, atol=TOLERANCE[dtype])
    assert workspace.intact()
    assert len(kernels.log) == (1 if multiprocessors == 1 else 2)
