"""Figures of cost, and that the README has those that the code gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import kernel_cost as cost
from isnet_trt.settings import Inference

README = Path(__file__).parents[2] / "kernels" / "README.md"


def test_the_readme_has_the_table_that_the_command_prints():
    assert cost.table() in README.read_text("utf-8")


def test_attention_counts_two_products():
    estimate = cost.attention(queries=3, keys=5)
    assert estimate.flops == 2 * 2 * 3 * 5 * 256
    assert estimate.bytes == 2 * 256 * (3 + 3 + 5 + 5) + 4 * 5


def test_engines_take_and_give_float32_whatever_they_compute_in():
    """The runtime launches `gather_fp32`, `finite_fp32` and so on: see `isnet_trt.cuda.kernel_specs.needed_kernels`."""
    assert cost.gather((4, 6), (8, 8), batch=2).bytes == 3 * 4 * 6 + 4 * 2 * 3 * 8 * 8
    assert cost.finite(2, (16, 16), classes=5).bytes == 4 * 2 * 5 * 2 * 2


def test_the_label_map_has_the_sources_size():
    estimate = cost.upsample_argmax(3, picture=(16, 24), size_out=(10, 15))
    assert estimate.bytes == 4 * 3 * 2 * 3 + 10 * 15
    assert estimate.flops == 10 * 3 * 10 * 15


def test_the_floor_is_the_slower_of_memory_and_arithmetic():
    card = cost.Card("card", memory=10.0, matrix=100.0, vector=1.0)
    assert cost.Cost(20, 10).floor(card) == 10
    assert cost.Cost(20, 10, "matrix").floor(card) == 2
    assert (cost.Cost(20, 10) * 3).floor(card) == 30


def test_accumulate_counts_every_window_and_writes_each_volume_once():
    one = Inference("slide", (16, 16), (8, 8))
    estimate = cost.accumulate((16, 24), one, classes=2)
    assert estimate.bytes == 2 * (4 * 2 * (2 * 2) + 4 * 16 * 24)
    assert estimate.flops == 10 * 2 * 2 * 16 * 16
    assert cost.accumulate((16, 24), one.replace(flip=True), 2).flops == 2 * estimate.flops
    assert cost.finish((16, 24), one, 2).bytes == pytest.approx(4 * 2 * 16 * 24 + 16 * 24)
