"""The machine, and every kernel on it against its float64 reference: cubin, portable PTX, Triton's own launch."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu_timing, machine
from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.architectures import PORTABLE
from tests.gpu.record import CannotRun, Record
from tests.gpu.target import Target
from tests.kernels.cases import FAMILIES, Family
from tests.kernels.context_trials import AttentionCase, attention
from tests.kernels.trials import examine, nearest, wrong
from tests.kernels.variants import SETS, Variant, set_folder, set_of

ATTENTION_FORMS = ((8, 8192, 1), (1, 5504, 3))
"""Images, queries and keys, and parts of the keys: Cityscapes' windows, and ADE."""
PACKAGES = (
    "torch", "triton", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "opencv-python",
    "opencv-python-headless", "tensorrt", "tensorrt-cu13", "tensorrt_rtx_cu13", "tensorrt_rtx_cu13_libs",
    "tensorrt_rtx_cu13_bindings", "pycuda", "cuda-bindings", "polygraphy", "cupy-cuda13x",
)  # fmt: skip


@pytest.mark.gpu("machine", 0, 240)
def test_machine(record: Record, target: Target) -> None:
    """The card, its driver and what is installed."""
    import torch

    from isnet_trt.cuda.gpu import probe_gpu

    for name in PACKAGES:
        try:
            record.figure(f"version {name}", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu, reason = probe_gpu()
    if gpu is None:
        raise CannotRun(reason)
    record.figure("gpu", gpu.name)
    record.figure("compute capability", gpu.compute_capability)
    record.figure("driver knows", gpu.driver)
    for name, value in (machine.gpus() or [{}])[0].items():
        record.figure(name, value)
    with record.part("what PyTorch says of the card", Exception):  # without PyTorch the rest stands
        properties = torch.cuda.get_device_properties(0)
        record.figure("multiprocessors", properties.multi_processor_count)
        record.figure("memory bytes", properties.total_memory)
        record.figure("level-2 cache bytes", getattr(properties, "L2_cache_size", 0))
        record.figure("CUDA of PyTorch", torch.version.cuda)


@pytest.mark.gpu("rates", 1, 120)
def test_rates(record: Record, target: Target) -> None:
    """Matrix and copy rates of this card."""
    from benchmarks.gpu_stages import measure_rates

    for name, rate in measure_rates(target.quick).items():
        if isinstance(rate, str):
            record.skip(f"rate {name}", rate)
        else:
            record.figure(name, rate)
    record.require("copy" in record.figures, "no rate of copying was measured")


@pytest.mark.gpu("kernels.compile", 2, 240)
def test_compile(record: Record, target: Target) -> None:
    """Kernels compile for this GPU, and the portable PTX."""
    arch = target.architecture()[1]
    record.figure("architecture", f"sm_{arch}")
    for message in target.compile(retry=True):
        record.fail(message)
    for one in dict.fromkeys((arch, PORTABLE)):
        sets = [name for name in SETS if set_folder(target.folder, name, one).is_dir()]
        record.row(arch=f"sm_{one}", compiled=sets)


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, id=name, marks=pytest.mark.gpu(f"kernels.{name}", 3, 240)) for name, one in FAMILIES.items()],
)
def test_kernels(record: Record, target: Target, family: Family) -> None:
    """A family of kernels against its reference in float64, by every variant, at odd sizes and those of models.

    Triton compiles anew for every case, and the reference of a real one takes the CPU seconds: quickly Triton has the
    first odd case only, and one real case is tried, in one type.
    """
    record.figure("seed", target.seed)
    variants = target.variants()
    ahead = variants[:-1]
    for number, case in enumerate(family.odd):
        compare(record, target, family, case, family.dtypes, ahead if target.quick and number else variants)
    for case in family.real[: 1 if target.quick else None]:
        compare(record, target, family, case, family.dtypes[: 1 if target.quick else None], ahead)


@pytest.mark.gpu("attention.forms", 2, 240, seconds=30)
def test_attention_forms(record: Record, target: Target) -> None:
    """Attention by tensor maps, as in bundles, and with specialised warps: right at real sizes, and which is faster."""
    variant = target.variants()[0]
    for batch, tokens, parts in ATTENTION_FORMS:
        times = {}
        for tile in (kernel_specs.MAP_TILES[0], kernel_specs.TRIAL_TILES[0]):
            form = "specialised warps" if tile.specialised else "tensor maps"
            what = f"{batch} x {tokens:,}, {form}"
            with record.part(what):
                name = kernel_specs.attention_by_maps("fp16", 256, parts > 1, tile).name
                if name not in variant.kernels(set_of("attention")):
                    raise CannotRun(f"no kernel {name} for this GPU")
                case = AttentionCase(
                    what, batch, tokens, tokens, parts, tile=tile.queries, specialised=tile.specialised
                )
                trial = attention(variant, case, "fp16", target.seed)
                mistakes = wrong(examine(trial, trial.reference()))
                for text in mistakes:
                    record.fail(f"{what}: {text}")
                times[form] = gpu_timing.seconds(lambda _, trial=trial: trial.launch()).p50  # type: ignore[misc]
                rate = trial.cost.flops / times[form] / 1e12
                record.row(case=what, right=not mistakes, **{"µs": 1e6 * times[form], "TFLOP/s": rate})
        if len(times) > 1:
            record.figure(f"{batch} x {tokens:,}: specialised is so many times as fast", np.divide(*times.values()))


def compare(
    record: Record, target: Target, family: Family, case: Any, dtypes: Sequence[str], variants: Sequence[Variant]
) -> None:
    """Examine a case in every type by every variant. What Triton's own launch raises is something that this machine
    lacks, such as the C compiler that it makes its launchers with."""
    for dtype in dtypes:
        reference = None
        for variant in variants:
            what = f"{family.name} {dtype}, {case.label}, {variant.name}"
            with record.part(what, *([Exception] if variant.name == "Triton" else [])):
                trial = family.trial(variant, case, dtype, target.seed)
                reference = trial.reference() if reference is None else reference
                deviations = examine(trial, reference)
                for text in wrong(deviations):
                    record.fail(f"{what}: {text}")
                cells = {"form": variant.name, "case": case.label, "type": dtype, "parts": trial.parts}
                record.row(**cells, right=not wrong(deviations), nearest=str(nearest(deviations)))
