"""`region_pool` against its reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreter import poisoned, tensor, values

from isnet_trt.kernels import region_pool

# The weights are rounded to the features' type before they are multiplied, the result once more.
TOLERANCE = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 2e-2}


def pool(logits, features, parts, types):
    (batch, classes, n), channels = logits.shape, features.shape[2]
    sizes = {"batch": batch, "classes": classes, "positions": n}
    labels = torch.full((batch, n), -7, dtype=torch.int32)
    scores, sums = poisoned(batch, n), poisoned(parts, batch, classes, channels)
    tops, masses = poisoned(parts, batch, classes), poisoned(parts, batch, classes)
    counts = torch.full((parts, batch, classes), -7, dtype=torch.int32)
    centres, log_counts = poisoned(batch, classes, channels, dtype=types[1]), poisoned(batch, classes)
    held = {"sums": sums, "tops": tops, "masses": masses, "counts": counts}
    region_pool.launch_assign(types[0]).run(logits=logits, labels=labels, scores=scores, **sizes)
    region_pool.launch_pool(types[1], upcast=types[1] == "bf16").run(
        labels=labels, scores=scores, features=features, **held, **sizes, channels=channels, splits=parts
    )
    region_pool.launch_combine(types[1]).run(
        **held, centres=centres, log_counts=log_counts, batch=batch, classes=classes, channels=channels, splits=parts
    )
    return labels.numpy(), values(centres), values(log_counts)


@pytest.mark.parametrize(
    "types", [("fp32", "fp32"), ("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "fp16")], ids="-".join
)
@pytest.mark.parametrize(
    ("batch", "classes", "positions", "channels", "parts"),
    [(2, 19, 101, 70, 1), (1, 37, 131, 33, 2), (1, 5, 1, 3, 3), (2, 3, 200, 129, 4)],
)
def test_centres_and_counts(batch, classes, positions, channels, parts, types):
    rng = np.random.default_rng(positions)
    logits = tensor(4 * rng.standard_normal((batch, classes, positions)), types[0])
    logits[:, 2] = -40  # wins nowhere
    features = tensor(rng.standard_normal((batch, positions, channels)), types[1])
    labels, centres, log_counts = pool(logits, features, parts, types)
    wanted, wanted_log_counts = region_pool.reference(values(logits), values(features))
    np.testing.assert_array_equal(labels, values(logits).argmax(axis=1))
    np.testing.assert_allclose(centres, wanted, atol=TOLERANCE[types[1]])
    np.testing.assert_allclose(log_counts, wanted_log_counts, rtol=1e-6)
    assert np.isneginf(log_counts[:, 2]).all()
    assert (centres[:, 2] == 0).all()


def test_a_tie_belongs_to_the_first_class():
    logits = np.zeros((1, 40, 70), np.float32)
    logits[0, [7, 8, 23, 39], 10:] = 3
    labels, _, log_counts = pool(tensor(logits), tensor(np.ones((1, 70, 4), np.float32)), 1, ("fp32", "fp32"))
    assert (labels[0, :10] == 0).all()
    assert (labels[0, 10:] == 7).all()
    assert np.exp(log_counts[0, 7]) == pytest.approx(60)


def test_scores_far_from_zero_neither_overflow_nor_vanish():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((1, 3, 90)).astype(np.float32) + np.float32(5000)
    logits[:, 1] -= 10000
    features = rng.standard_normal((1, 90, 8)).astype(np.float32)
    _, centres, _ = pool(tensor(logits), tensor(features), 2, ("fp32", "fp32"))
    np.testing.assert_allclose(centres, region_pool.reference(logits, features)[0], atol=2e-6)


def test_the_reference_is_the_operator_of_the_model():
    from isnet_trt.training.model import ops

    rng = np.random.default_rng(2)
    logits, features = rng.standard_normal((2, 6, 50)), rng.standard_normal((2, 50, 7))
    centres, log_counts = ops.region_pool(tensor(logits), tensor(features))
    wanted, wanted_log_counts = region_pool.reference(logits, features)
    np.testing.assert_allclose(centres.numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(log_counts.numpy(), wanted_log_counts, rtol=1e-6)


def test_more_logits_than_an_int32_can_count():
    """Zeros that nobody touches take no memory; one block of positions is enough."""
    classes, positions = 900, 3_000_000
    logits = np.zeros((1, classes, positions), np.float16)
    assert logits.size > 2**31
    logits[0, 890, :64] = 1
    labels, scores = torch.full((64,), -7, dtype=torch.int32), poisoned(64)
    launch = region_pool.launch_assign("fp16")
    launch.kernel[(1, 1, 1)](
        logits=torch.from_numpy(logits), labels=labels, scores=scores, batch=1, classes=classes, positions=positions,
        **launch.constants,
    )  # fmt: skip
    assert (labels == 890).all()
    assert (scores == 1).all()


@pytest.mark.parametrize("classes", [2, slice(None)])
def test_a_nan_is_not_hidden(classes):
    """As in the model's operator: what a network of too low a precision gives is refused in the end, not labelled."""
    rng = np.random.default_rng(4)
    logits, features = rng.standard_normal((1, 20, 70)), rng.standard_normal((1, 70, 4))
    logits[0, classes, 5] = np.nan
    _, centres, _ = pool(tensor(logits, "fp16"), tensor(features, "fp16"), 2, ("fp16", "fp16"))
    assert np.isnan(centres).any(axis=2).sum() == 1
