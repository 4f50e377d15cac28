"""What cannot work must end in the library's own error, in words, and leave the process usable."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check import rigs
from benchmarks.gpu_check.check import Answer, CannotRun, Check, Setup
from benchmarks.gpu_check.forms import FULL, here
from benchmarks.gpu_check.kernels import own_form
from benchmarks.gpu_check.needs import RUNTIME
from benchmarks.gpu_check.networks import Strided
from benchmarks.gpu_check.place import device
from benchmarks.gpu_check.rigs import GpuRig
from benchmarks.gpu_check.runtime import ade
from isnet_trt.errors import BundleError, EngineError, EngineUnavailable, IsnetError
from isnet_trt.pictures.interop import image_from
from isnet_trt.pictures.raw import RawImage

_TOO_LARGE = 60_000
"""Side of a picture whose source alone takes 10.8 GB; with the network's answers it fits no GPU."""


def refused(answer: Answer, what: str, work: Callable[[], Any], kind: type[IsnetError], *words: str) -> None:
    """``work`` must raise ``kind``, and its message have all ``words``."""
    try:
        work()
    except kind as error:
        said = str(error)
        answer.row(what=what, error=type(error).__name__, said=said)
        missing = [word for word in words if word not in said]
        answer.require(not missing, f"{what}: the message lacks {', '.join(missing)}: {said}")
    except Exception as error:
        answer.wrong(f"{what} ends in {type(error).__name__}, not in {kind.__name__}: {error}")
    else:
        answer.wrong(f"{what} was not refused")


def other_gpu(answer: Answer, setup: Setup) -> None:
    """Kernels of another architecture, or damaged ones."""
    from isnet_trt.cuda.device import Device
    from isnet_trt.cuda.kernels import Kernels

    capability, _ = here()
    form: Any = own_form(setup)
    folder, arch = form.folder / FULL, form.arch
    with tempfile.TemporaryDirectory() as temporary:
        other = Path(temporary) / "other"
        shutil.copytree(folder / f"sm_{arch}", other / "sm_200")
        refused(
            answer, "kernels for sm_200 only", lambda: Kernels.open(other, capability), EngineUnavailable,
            "sm_200", capability,
        )  # fmt: skip
        damaged = Path(temporary) / "damaged"
        shutil.copytree(folder, damaged)
        for file in (damaged / f"sm_{arch}").glob("resize.*"):
            file.write_bytes(file.read_bytes()[:-1] + b"x")
        refused(answer, "a changed kernel", lambda: Kernels.open(damaged, capability), BundleError, "resize", "SHA-256")
        with Device.open():
            kernels = Kernels.open(folder, capability)
            name = next(name for name in kernels.files.code if name == "resize")
            # The driver is not told how long code is: it must not find sizes in it.
            kernels.files.code[name] = b"\x7fELF" + bytes(4096)  # type: ignore[index]
            arguments = dict.fromkeys(("source", "picture"), 256) | dict.fromkeys(
                ("pitch", "pixel", "bgr", "source_height", "source_width", "height", "width"), 3
            )
            refused(answer, "code that is none", lambda: kernels.launch(name, 0, **arguments), EngineError, "resize")


def memory(answer: Answer, setup: Setup) -> None:
    """A picture that no GPU has room for, and an ordinary one afterwards."""
    case = ade()
    network = Strided(case.labels.count, case.stride, setup.seed)
    image = rigs.picture(case.size, setup.seed)
    pipeline = GpuRig(setup).pipeline(network, case)
    try:
        wanted = pipeline(image_from(image), case.inference)
        row = np.zeros(3, np.uint8)
        large = RawImage(row.ctypes.data, _TOO_LARGE, _TOO_LARGE, owner=row, device=device())
        every = case.inference.replace(scales=(1.0, 4.0, 8.0))
        refused(
            answer, f"a picture of {_TOO_LARGE}x{_TOO_LARGE}", lambda: _exact(pipeline, case)(large, every),
            EngineError, "not enough GPU memory", "MiB",
        )  # fmt: skip
        again = pipeline(image_from(image), case.inference)
        answer.require(np.array_equal(again, wanted), "after running out of memory the labels are others")
    finally:
        pipeline.close()


def _exact(pipeline: Any, case: Any) -> Any:
    """The pipeline for pictures as they are: the test resize would make the large one small."""
    import dataclasses

    from isnet_trt.settings import Preprocess

    exact = Preprocess((_TOO_LARGE, _TOO_LARGE), keep_ratio=False)
    pipeline.model = dataclasses.replace(pipeline.model, preprocess=exact)

    def call(image: Any, inference: Any) -> Any:
        try:
            return pipeline(image, inference)
        finally:
            pipeline.model = dataclasses.replace(pipeline.model, preprocess=case.preprocess)

    return call


def closed(answer: Answer, setup: Setup) -> None:
    """A closed segmenter, closing twice, and pictures that cannot be."""
    import torch

    case = ade()
    segmenter = rigs.on_gpu(GpuRig(setup), Strided(case.labels.count, case.stride, setup.seed), case)
    image = rigs.picture(case.size, setup.seed)
    segmenter(image)
    wrong = torch.zeros((4, 4), dtype=torch.float32, device=device())
    refused(answer, "a float picture in GPU memory", lambda: segmenter(wrong), IsnetError)
    small = torch.zeros((4, 4), dtype=torch.uint8, device=device())
    refused(answer, "labels of another size", lambda: segmenter(image, out=small), IsnetError)
    segmenter.close()
    segmenter.close()
    refused(answer, "a closed segmenter", lambda: segmenter(image), EngineError, "closed")


def engine(kind: str) -> Callable[[Answer, Setup], None]:
    """A bundle whose engine is damaged, or is for another GPU."""

    def run(answer: Answer, setup: Setup) -> None:
        from benchmarks.gpu_check.bundles import demo

        folder = demo(setup, kind)
        if folder is None:
            raise CannotRun(f"no {kind} bundle could be built here (check bundles.{kind})")
        damaged_engine(answer, folder, kind)

    return run


def damaged_engine(answer: Answer, folder: Path, kind: str) -> None:
    """The two refusals of a bundle, without touching it."""
    import dataclasses

    from isnet_trt import Segmenter
    from isnet_trt.bundle import ENGINE, read_bundle
    from isnet_trt.engines.library import EngineSource
    from isnet_trt.engines.table import library

    info = read_bundle(folder).manifest.engine
    other = dataclasses.replace(info, compute_capabilities=("1.0",))
    refused(answer, "an engine for another GPU", lambda: library(kind).check(other), EngineUnavailable, "1.0")
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy"
        shutil.copytree(folder, copy)
        content = (copy / ENGINE).read_bytes()
        (copy / ENGINE).write_bytes(content[: len(content) // 2])
        refused(answer, "half an engine in a bundle", lambda: Segmenter.open(copy), BundleError, ENGINE)
        kernels = copy / "kernels" if (copy / "kernels").is_dir() else None
        source = EngineSource(copy / ENGINE, info, kernels, 0, 0)
        # From here on a library may end the process: what is likeliest to do so comes last.
        (copy / ENGINE).write_bytes(bytes(byte ^ 0x55 for byte in content[:4096]) + content[4096:])
        refused(answer, "a damaged engine", lambda: library(kind).open(source), EngineError, kind)
        (copy / ENGINE).write_bytes(content[: len(content) // 2])
        refused(answer, "half an engine", lambda: library(kind).open(source), EngineError, kind)


CHECKS = (
    Check("refusals.other_gpu", "kernels of another GPU, changed or damaged", other_gpu, RUNTIME, alone=True, rank=10),
    Check("refusals.memory", "out of memory, then an ordinary picture", memory, RUNTIME, alone=True, rank=10),
    Check("refusals.closed", "a closed segmenter, wrong pictures", closed, RUNTIME, alone=True, rank=10),
    Check(
        "refusals.tensorrt-rtx", "damaged TensorRT-RTX engines", engine("tensorrt-rtx"),
        ("gpu", "cuda-bindings", "tensorrt-rtx"), 120, alone=True, rank=10,
    ),
    Check(
        "refusals.tensorrt", "damaged TensorRT engines", engine("tensorrt"),
        ("gpu", "cuda-bindings", "tensorrt"), 120, alone=True, rank=10,
    ),
)  # fmt: skip
