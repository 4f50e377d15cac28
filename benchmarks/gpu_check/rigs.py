"""A network with the host's runtime around it and with the CUDA runtime around it, and how the two are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.check import Answer, Row, Setup
from benchmarks.gpu_check.networks import Network
from isnet_trt import Segmenter
from isnet_trt.merging.merge import Head
from isnet_trt.pictures.interop import image_from
from isnet_trt.pictures.preprocess import normalise, resize
from isnet_trt.runtime.gpu import GpuRuntime
from isnet_trt.settings import Inference, Labels, Preprocess, Size

CLEAR = 0.05
"""A pixel is clear where its best class leads the next by this share of the scores' standard deviation."""
EQUAL = {"fp32": 0.999, "fp16": 0.999}
"""Precision -> least share of all pixels on which host and CUDA runtime must agree; in fp32 on all clear ones."""


@dataclass(frozen=True)
class Case:
    """A model's settings and a picture's size."""

    label: str
    labels: Labels
    preprocess: Preprocess
    inference: Inference
    size: Size
    stride: int = 8
    batch: int = 1

    @property
    def head(self) -> Head:
        """What the network puts out."""
        return Head(self.labels.count, self.stride, self.labels.flip_pairs)


class Rig(Protocol):
    """Where pipelines come from: this GPU, or in tests host memory."""

    def pipeline(self, network: Network, case: Case) -> Any:
        """An open `isnet_trt.cuda.pipeline.Pipeline`."""
        ...


class GpuRig:
    """This GPU with the kernels that were compiled for it."""

    def __init__(self, setup: Setup) -> None:
        from benchmarks.gpu_check.kernels import own_form

        self.form: Any = own_form(setup)

    def pipeline(self, network: Network, case: Case) -> Any:
        """See `Rig.pipeline`."""
        from benchmarks.gpu_check.forms import model_of
        from isnet_trt.cuda.device import Device
        from isnet_trt.cuda.pipeline import Pipeline

        return Pipeline(Device.open(), self.form.kernels(model_of(case.labels.count)), network.on_device(), model(case))


def model(case: Case) -> Any:
    """What plans are made for: always full batches."""
    from isnet_trt.cuda.plan import Model

    return Model(case.head, case.preprocess, case.batch, case.batch > 1)


def host(network: Network, case: Case) -> Segmenter:
    """The host's runtime around the network, with the same batches."""
    return Segmenter(
        network, case.labels, case.preprocess, case.inference, case.stride,
        batch=case.batch, full_batches=case.batch > 1,
    )  # fmt: skip


def picture(size: Size, seed: int) -> NDArray[np.uint8]:
    """Random and smooth, uint8 (H, W, 3): neighbouring pixels are often of one class, and no label is everywhere."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, size[0] // 24), max(2, size[1] // 24), 3), np.uint8)
    smooth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


def agreement(segmenter: Segmenter, image: NDArray[np.uint8], case: Case, made: NDArray[Any]) -> Row:
    """Shares of equal labels, of all pixels and of the clear ones."""
    scores = segmenter.score(normalise(resize(image, case.preprocess), case.preprocess), image.shape[:2])
    best = np.partition(scores, -2, axis=0)[-2:]
    clear = best[1] - best[0] > CLEAR * scores.std()
    equal = scores.argmax(axis=0) == made
    return {
        "equal %": 100 * float(equal.mean()),
        "clear equal %": 100 * float(equal[clear].mean()) if clear.any() else float("nan"),
        "clear %": 100 * float(clear.mean()),
        "classes": len(np.unique(made)),
    }


def judge(answer: Answer, what: str, cells: Row, precision: str = "fp32") -> None:
    """What is wrong with an agreement; a label map of one class shows nothing."""
    least = 100 * EQUAL[precision]
    answer.require(cells["equal %"] >= least, f"{what}: {cells['equal %']:.3f} % of the labels are the host's")
    clear = cells["clear equal %"] == 100 or precision != "fp32"
    answer.require(clear, f"{what}: {cells['clear equal %']:.4f} % of the clear pixels are the host's, not all")
    answer.require(cells["classes"] > 1, f"{what}: all pixels have one class: nothing was compared")


def three(pipeline: Any, case: Case, seed: int) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[Any]]]:
    """(how, picture, labels) of three pictures: launched one by one, captured, replayed."""
    for number, how in enumerate(("eager", "captured", "replayed")):
        image = picture(case.size, seed + number)
        yield how, image, pipeline(image_from(image), case.inference)


def on_gpu(rig: Rig, network: Network, case: Case) -> Segmenter:
    """The library's own segmenter around the network, with all stages on the GPU."""
    pipeline = rig.pipeline(network, case)
    return Segmenter(
        network, case.labels, case.preprocess, case.inference, case.stride,
        runtime=GpuRuntime(network, pipeline),
    )  # fmt: skip
