"""The card, its driver and what is installed; its own matrix and copy rates, which all floors use."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

from benchmarks import machine as hardware
from benchmarks.gpu_check import timing
from benchmarks.gpu_check.check import Answer, CannotRun, Check, Setup, part
from benchmarks.gpu_check.place import device
from isnet_trt.cuda.gpu import probe_gpu

PACKAGES = (
    "torch", "triton", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "opencv-python",
    "opencv-python-headless", "tensorrt", "tensorrt-cu13", "tensorrt_rtx_cu13", "tensorrt_rtx_cu13_libs",
    "tensorrt_rtx_cu13_bindings", "pycuda", "cuda-bindings", "polygraphy", "cupy-cuda13x",
)  # fmt: skip
_SIDE, _COPY = 8192, 2**30
_SHORT_SIDE, _SHORT_COPY = 4096, 2**28


def machine(answer: Answer, setup: Setup) -> None:
    """Name, compute capability, driver, clocks, power limit, memory, multiprocessors, cache, versions."""
    for name, version in _versions().items():
        answer.figure(f"version {name}", version)
    gpu, reason = probe_gpu()
    if gpu is None:
        raise CannotRun(reason)
    answer.figure("gpu", gpu.name)
    answer.figure("compute capability", gpu.compute_capability)
    answer.figure("driver knows", gpu.driver)
    for row in hardware.gpus()[:1]:
        for name, value in row.items():
            answer.figure(name, value)
    _torch_says(answer)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _torch_says(answer: Answer) -> None:
    try:
        import torch

        properties = torch.cuda.get_device_properties(0)
    except Exception as error:  # without PyTorch the rest of the answer stands
        answer.missing("what PyTorch says of the card", f"{type(error).__name__}: {error}")
        return
    answer.figure("multiprocessors", properties.multi_processor_count)
    answer.figure("memory bytes", properties.total_memory)
    answer.figure("level-2 cache bytes", getattr(properties, "L2_cache_size", 0))
    answer.figure("CUDA of PyTorch", torch.version.cuda)


def rates(answer: Answer, setup: Setup) -> None:
    """Products of large random matrices, and a large copy counted as bytes read and written."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    side = _SHORT_SIDE if setup.quick else _SIDE
    for name, make in _PRODUCTS.items():
        with part(answer, f"matrix rate {name}", Exception):  # a type that this card or this PyTorch has not
            p50 = timing.seconds(make(side), captured=False).p50
            answer.figure(f"matrix {name}", 2 * side**3 / p50)
            answer.row(what=f"{name} product {side}³", ms=1e3 * p50, rate=f"{2e-12 * side**3 / p50:.1f} T/s")
    size = _SHORT_COPY if setup.quick else _COPY
    spread = timing.seconds(_copy(size), captured=False)
    answer.figure("copy", 2 * size / spread.p50)
    answer.row(what=f"copy of {size >> 20} MiB", ms=1e3 * spread.p50, rate=f"{2e-12 * size / spread.p50:.2f} TB/s")


def _plain(dtype: str, tf32: bool = False) -> Callable[[int], timing.Work]:
    def make(side: int) -> timing.Work:
        import torch

        a, b = (torch.randn(side, side, device=device()).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(a)

        def work(_: int) -> None:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            torch.mm(a, b, out=out)
            torch.backends.cuda.matmul.allow_tf32 = False

        return work

    return make


def _int8(side: int) -> timing.Work:
    import torch

    a, b = (torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device()) for _ in range(2))
    b = b.t()  # column-major, as the library wants the second factor
    return lambda _: torch._int_mm(a, b)


def _fp8(side: int) -> timing.Work:
    import torch

    a, b = (torch.randn(side, side, device=device()).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device())
    b = b.t()
    return lambda _: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


_PRODUCTS: dict[str, Callable[[int], timing.Work]] = {
    "fp16": _plain("float16"),
    "bf16": _plain("bfloat16"),
    "tf32": _plain("float32", tf32=True),
    "fp32": _plain("float32"),
    "int8": _int8,
    "fp8": _fp8,
}


def _copy(size: int) -> timing.Work:
    import torch

    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    return lambda _: target.copy_(source)


CHECKS = (
    # The first that imports PyTorch, perhaps from a slow disk.
    Check("machine", "the card, its driver and what is installed", machine, limit=240, rank=0),
    Check("rates", "matrix and copy rates of this card", rates, ("gpu", "torch-cuda"), 120, rank=1),
)
