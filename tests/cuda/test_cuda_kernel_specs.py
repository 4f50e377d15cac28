"""Declarations of kernels: names and arguments are checked without Triton."""

from __future__ import annotations

import numpy as np
import pytest

from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.architectures import GPU_ARCHITECTURES, KERNEL_TARGETS, PORTABLE
from isnet_trt.cuda.kernel_specs import bundle_kernels, class_parts, label_element, needed_kernels, rows_per_thread
from isnet_trt.cuda.plan_steps import Launch
from isnet_trt.merging.resample import positions

PLACE = ("buffer", 0)


def test_sizes_that_are_compiled_in() -> None:
    names = [kernel_specs.accumulate("fp32", k).name for k in (1, 19, 32, 33, 4096)]
    assert names == [*(f"accumulate_fp32_k{k}" for k in (1, 19, 32)), *["accumulate_tiles_fp32"] * 2]
    assert [label_element(k) for k in (2, 256, 257)] == ["u8", "u8", "u16"]


def test_each_kernel_has_a_name_of_its_own() -> None:
    names = [spec.name for spec in bundle_kernels(90, ("fp16", "fp32", "bf16"), 19)]
    assert len(set(names)) == len(names) == 54
    context = {"pool_fp16_bf16", "attention_fp16"}
    specs = {spec.name for spec in bundle_kernels(90, ("fp32",), 19, context=context)}
    assert specs == context | {
        "resize", "yuv_resize", "gather_fp32", "accumulate_fp32_k19", "finite_fp32", "finish_fp32_u8",
        "finish_fp32_u8_rows4", "finish_fp32_u8_rows8", "upsample_argmax_fp32_u8", "upsample_argmax_fp32_u8_rows4",
        "upsample_argmax_fp32_u8_rows8",
    }  # fmt: skip


def test_kernels_are_for_the_type_of_the_logits_alone() -> None:
    specs = {spec.name for spec in bundle_kernels(90, ("fp32",), 19, context=(), logits="fp16")}
    assert specs == {
        "resize", "yuv_resize", "gather_fp32", "accumulate_fp16_k19", "finite_fp16", "finish_fp32_u8",
        "finish_fp32_u8_rows4", "finish_fp32_u8_rows8", "finish_fp16_u8", "finish_fp16_u8_rows4",
        "finish_fp16_u8_rows8", "upsample_argmax_fp16_u8", "upsample_argmax_fp16_u8_rows4",
        "upsample_argmax_fp16_u8_rows8",
    }  # fmt: skip
    assert {spec.name for spec in needed_kernels(19, logits="fp16")} == specs - {"yuv_resize"}


def test_kernels_of_earlier_bundles_serve() -> None:
    """Names of bundles from before kernels kept a pixel's classes in one thread."""
    earlier = ["resize", "gather_fp32", "finite_fp32", "finish_fp32_u8", "upsample_argmax_fp32_u8"]
    for classes, accumulate in ((19, "accumulate_fp32_32"), (33, "accumulate_fp32_64"), (150, "accumulate_fp32_256")):
        kernels = [*earlier, accumulate]
        assert {spec.available(kernels) for spec in needed_kernels(classes)} == set(kernels)
    assert kernel_specs.accumulate("fp32", 150).available(earlier) == ""
    assert kernel_specs.finite("fp32").available(["finite_fp16"]) == ""


@pytest.mark.parametrize(("step", "rows"), [(0.125, 8), (0.15, 4), (1 / 3, 1), (2, 1)])
def test_all_rows_of_a_thread_lie_between_three_input_rows(step: float, rows: int) -> None:
    assert rows_per_thread(step) == rows


@pytest.mark.parametrize("step", [0.0321, 1 / 8, 0.1427, 0.25, 0.3329])
def test_so_do_they_at_every_row(step: float) -> None:
    rows = rows_per_thread(step)
    assert rows > 1
    length = 2000
    low, _, _ = positions(length, np.float32(step), 0, int(length / step))
    assert (low[rows - 1 :] - low[: 1 - rows]).max() <= 1


def test_small_volumes_are_cut_by_classes() -> None:
    spec = kernel_specs.accumulate("fp32", 150)
    assert [class_parts(spec, rows, width, 150) for rows, width in ((512, 683), (64, 86), (1, 1))] == [1, 16, 38]


def test_blocks_cover_the_work() -> None:
    spec = kernel_specs.finite("fp32")
    assert spec.blocks({"count": 4097}) == (2, 1, 1)


@pytest.mark.parametrize(
    ("pointers", "scalars", "message"),
    [
        (("values", "flag"), ("at",), "kernel finite_fp32 takes values, flag, at, count; missing or unknown: count"),
        (("values", "flag"), ("at", "count", "size"), "missing or unknown: size"),
        (("values", "flag", "at"), ("count",), "at is a number for a pointer or the reverse"),
        (("values",), ("at", "count", "flag"), "flag is a number for a pointer or the reverse"),
    ],
)
def test_a_plan_step_with_wrong_arguments_fails_at_once(pointers: tuple, scalars: tuple, message: str) -> None:
    spec = kernel_specs.finite("fp32")
    Launch("finite", spec, dict.fromkeys(("values", "flag"), PLACE), dict.fromkeys(("at", "count"), 1))
    with pytest.raises(TypeError, match=message):
        Launch("finite", spec, dict.fromkeys(pointers, PLACE), dict.fromkeys(scalars, 1))


def test_architectures() -> None:
    assert PORTABLE == 80
    assert KERNEL_TARGETS[PORTABLE].portable
    numbers = [arch.number for arch in GPU_ARCHITECTURES]
    assert numbers == sorted(numbers)
    portable = [target for target in KERNEL_TARGETS.values() if target.portable]
    assert all(PORTABLE <= arch < 90 for arch, target in KERNEL_TARGETS.items() if target.portable)
    # Blocks of 99 KiB are the least of all later GPUs, and drivers from 525 on read PTX 8.0.
    assert all((target.shared_kib, target.ptx_version) == (99, 80) for target in portable)
