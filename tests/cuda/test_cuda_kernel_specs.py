"""Declarations of kernels: names and arguments are checked without Triton."""

from __future__ import annotations

import pytest

from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.architectures import GPU_ARCHITECTURES, KERNEL_TARGETS, PORTABLE
from isnet_trt.cuda.kernel_specs import bundle_kernels, label_element, padded_classes
from isnet_trt.cuda.plan_steps import Launch

PLACE = ("buffer", 0)


def test_sizes_that_are_compiled_in() -> None:
    assert [padded_classes(k) for k in (1, 19, 32, 33, 150, 256, 300)] == [32, 32, 32, 64, 256, 256, 512]
    assert [label_element(k) for k in (2, 256, 257)] == ["u8", "u8", "u16"]


def test_each_kernel_has_a_name_of_its_own() -> None:
    names = [spec.name for spec in bundle_kernels(90, ("fp16", "fp32", "bf16"), 19)]
    assert len(set(names)) == len(names) == 35
    context = {"assign_bf16", "attention_fp16"}
    specs = {spec.name for spec in bundle_kernels(90, ("fp32",), 19, context=context)}
    assert specs == context | {
        "resize", "yuv_resize", "gather_fp32", "accumulate_fp32_32", "upsample_argmax_fp32_u8", "finite_fp32",
        "finish_fp32_u8",
    }  # fmt: skip


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
