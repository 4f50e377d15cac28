"""Cases of the runtime's tests, and how label maps of the CUDA runtime are compared with those of the host's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from isnet_trt import Segmenter
from isnet_trt.cuda.plan import Model
from isnet_trt.merging.merge import Head
from isnet_trt.pictures.interop import image_from
from isnet_trt.pictures.preprocess import normalise, resize
from isnet_trt.recipes import RECIPES
from isnet_trt.runtime.gpu import GpuRuntime
from isnet_trt.settings import Inference, Labels, Preprocess, Size
from tests.gpu.networks import Network
from tests.gpu.record import Record
from tests.gpu.target import Target

CLEAR = 0.05
"""A pixel is clear where its best class leads the next by this share of the scores' standard deviation."""
EQUAL = {"fp32": (0.999, 1.0), "fp16": (0.998, 0.999)}
"""Precision -> least share of pixels, and of clear pixels, whose labels must be the host's. Two float16 runs of one
network may round differently: on an H100 99.81 % and 100 % were equal (ResNet-50 for ADE20k, scales and flip)."""
SIZES = {"ade20k": (480, 640), "cocostuff10k": (480, 640), "cityscapes": (1024, 2048), "lip": (301, 199)}
"""Data set -> a source image's size."""


@dataclass(frozen=True)
class Case:
    """A model's settings and an image's size."""

    label: str
    labels: Labels
    preprocess: Preprocess
    inference: Inference
    size: Size
    stride: int = 8
    batch: int = 1

    @property
    def model(self) -> Model:
        """What plans are made for: always full batches."""
        head = Head(self.labels.count, self.stride, self.labels.flip_pairs)
        return Model(head, self.preprocess, self.batch, self.batch > 1)


def recipe_case(name: str, preset: str) -> Case:
    """A published model at its data set's size."""
    recipe = RECIPES[name]
    inference = recipe.preset(preset)
    size = SIZES.get(recipe.dataset.lower(), (480, 640))
    batch = 8 if inference.mode == "slide" else 1
    stride = recipe.architecture.output_stride
    return Case(f"{name} {preset}", recipe.labels, recipe.preprocess, inference, size, stride, batch)


def cases(quick: bool) -> Iterator[Case]:
    """Every distinct way in which a published model shows images; quickly the defaults, and LIP's scales and flip."""
    seen: set[Any] = set()
    for name, recipe in RECIPES.items():
        for preset in ("default", "ms-flip"):
            case = recipe_case(name, preset)
            key = (case.labels.count, case.preprocess, case.inference)
            left_out = quick and preset != "default" and recipe.dataset != "LIP"
            if name != "isnet_demo" and key not in seen and not left_out:
                seen.add(key)
                yield case


def ade() -> Case:
    """ADE's whole image."""
    return recipe_case("isnet_resnet50os8_ade20k", "default")


def host(network: Network, case: Case) -> Segmenter:
    """The host's runtime around the network, with the same batches."""
    return Segmenter(
        network, case.labels, case.preprocess, case.inference, case.stride,
        batch=case.batch, full_batches=case.batch > 1,
    )  # fmt: skip


def on_gpu(target: Target, network: Network, case: Case) -> Segmenter:
    """The library's own segmenter around the network, with all stages on the GPU."""
    return around(network, case, target.pipeline(network, case))


def around(network: Network, case: Case, pipeline: Any) -> Segmenter:
    """The library's own segmenter around a pipeline."""
    runtime = GpuRuntime(network, pipeline)
    return Segmenter(network, case.labels, case.preprocess, case.inference, case.stride, runtime=runtime)


def image(size: Size, seed: int) -> NDArray[np.uint8]:
    """Random and smooth, uint8 (H, W, 3): neighbouring pixels are often of one class, and no label is everywhere."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, size[0] // 24), max(2, size[1] // 24), 3), np.uint8)
    smooth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


def call(pipeline: Any, source: NDArray[np.uint8], case: Case) -> NDArray[Any]:
    """The label map of an image, by the pipeline."""
    labels: NDArray[Any] = pipeline(image_from(source), case.inference)
    return labels


def agreement(host: Segmenter, source: NDArray[np.uint8], case: Case, labels: NDArray[Any]) -> dict[str, Any]:
    """Shares of labels that are the host's, of all pixels and of the clear ones."""
    planes = normalise(resize(source, case.preprocess), case.preprocess)
    scores = host.score(planes, source.shape[:2])
    best = np.partition(scores, -2, axis=0)[-2:]
    clear = best[1] - best[0] > CLEAR * scores.std()
    equal = scores.argmax(axis=0) == labels
    return {
        "equal %": 100 * float(equal.mean()),
        "clear equal %": 100 * float(equal[clear].mean()) if clear.any() else float("nan"),
        "clear %": 100 * float(clear.mean()),
        "classes": len(np.unique(labels)),
    }


def judge(record: Record, what: str, cells: dict[str, Any], precision: str = "fp32") -> None:
    """Record what is wrong with an agreement; a label map of one class shows nothing."""
    least, clear = (100 * share for share in EQUAL[precision])
    record.require(cells["equal %"] >= least, f"{what}: {cells['equal %']:.3f} % of the labels are the host's")
    right = f"{what}: {cells['clear equal %']:.4f} % of the clear pixels are the host's, not {clear:g} %"
    record.require(cells["clear equal %"] >= clear, right)
    record.require(cells["classes"] > 1, f"{what}: all pixels have one class: nothing was compared")
