"""`attention` against its reference."""

from __future__ import annotations

import numpy as np
import pytest
from interpreter import poisoned, tensor, values

from isnet_trt.kernels import attention

# The weights are rounded to the values' type before they are multiplied, the result once more.
TOLERANCE = {"fp32": 3e-6, "fp16": 2e-3, "bf16": 2e-2}
WIDTH = attention.WIDTH


def attend(q, k, v, bias, scale, parts, dtype):
    batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    out, norms = poisoned(batch, queries, WIDTH, dtype=dtype), poisoned(parts, batch, queries)
    partial = poisoned(parts, batch, queries, WIDTH) if parts > 1 else out
    launch = attention.launch_attention(dtype, 86, parts > 1, upcast=dtype == "bf16")
    launch.run(
        q=q, k=k, v=v, bias=bias, out=partial, norms=norms, scale=scale * attention.LOG2_E,
        batch=batch, queries=queries, keys=keys, splits=parts,
    )  # fmt: skip
    if parts > 1:
        launch = attention.launch_combine(dtype)
        launch.run(parts=partial, norms=norms, out=out, rows=batch * queries, splits=parts)
    return values(out)


def inputs(batch, queries, keys, dtype):
    rng = np.random.default_rng(queries + keys)
    shapes = (batch, queries, WIDTH), (batch, keys, WIDTH), (batch, keys, WIDTH)
    return [tensor(rng.standard_normal(shape), dtype) for shape in shapes], rng


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "parts"),
    [(2, 45, 71, 1), (1, 70, 70, 2), (1, 67, 19, 1), (2, 3, 150, 3), (1, 1, 1, 1)],
)
def test_pixels_and_class_centres_as_keys(batch, queries, keys, parts, dtype):
    (q, k, v), rng = inputs(batch, queries, keys, dtype)
    bias = tensor(rng.uniform(-3, 7, (batch, keys)).astype(np.float32))
    bias[:, 1:9] = -np.inf  # classes that do not occur
    out = attend(q, k, v, bias, 1 / 16, parts, dtype)
    wanted = attention.reference(values(q), values(k), values(v), values(bias), 1 / 16)
    np.testing.assert_allclose(out, wanted, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("parts", [1, 3])
def test_a_first_tile_or_a_whole_part_without_keys(parts):
    (q, k, v), _ = inputs(1, 5, 96, "fp32")
    bias = np.zeros((1, 96), np.float32)
    bias[:, :40] = -np.inf
    out = attend(q, k, v, tensor(bias), 1 / 16, parts, "fp32")
    np.testing.assert_allclose(out, attention.reference(*map(values, (q, k, v)), bias, 1 / 16), atol=TOLERANCE["fp32"])


@pytest.mark.parametrize("parts", [1, 2])
def test_no_key_at_all_gives_zero(parts):
    (q, k, v), _ = inputs(1, 3, 20, "fp32")
    assert (attend(q, k, v, tensor(np.full((1, 20), -np.inf, np.float32)), 1 / 16, parts, "fp32") == 0).all()


def test_great_scores_do_not_overflow():
    (q, k, v), _ = inputs(1, 4, 40, "fp16")
    q *= 60
    bias = np.zeros((1, 40), np.float32)
    out = attend(q, k, v, tensor(bias), 1.0, 1, "fp16")
    np.testing.assert_allclose(out, attention.reference(*map(values, (q, k, v)), bias, 1.0), atol=2e-3)


def test_the_reference_is_the_operator_of_the_model():
    from isnet_trt.training.model import ops

    rng = np.random.default_rng(2)
    q, k, v, bias = (rng.standard_normal(shape) for shape in ((2, 9, 8), (2, 5, 8), (2, 5, 8), (2, 5)))
    made = ops.attention(*map(tensor, (q, k, v, bias)), 0.25)
    np.testing.assert_allclose(made.numpy(), attention.reference(q, k, v, bias, 0.25), atol=1e-12)
