"""Metrics of a graph under ONNX Runtime: one number in points (0 … 100, more is better)."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from isnet_trt.engines.base import Engine
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.onnx_edit import save
from isnet_trt.export.quantise.qdq_emulation import emulate_qdq
from isnet_trt.merging.merge import Head
from isnet_trt.metrics import Confusion
from isnet_trt.recipes import NetworkRecipe, Recipe
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import Inference

Labelled = tuple[NDArray[np.uint8], NDArray[np.integer]]
"""An RGB image (H, W, 3) and its labels (H, W)."""


class Evaluate(Protocol):
    """Scores a float32 or quantised graph; ``unit`` names what the points are of."""

    unit: str

    def __call__(self, proto: onnx.ModelProto) -> float:
        """Points of ``proto``."""


@contextmanager
def open_graph(proto: onnx.ModelProto, threads: int | None = None) -> Iterator[Engine]:
    """An engine that runs ``proto`` under ONNX Runtime, with Q/DQ emulation if it was quantised for TensorRT."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(proto if _is_portable(proto) else emulate_qdq(proto), path)
        engine = open_onnx(path, threads=threads)
        try:
            yield engine
        finally:
            engine.close()


def _is_portable(proto: onnx.ModelProto) -> bool:
    """Whether the graph is not quantised, or was quantised for ONNX Runtime, whose own integer kernels are measured."""
    quantised = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    return not quantised or any(tensor.data_type == onnx.TensorProto.UINT8 for tensor in proto.graph.initializer)


class Agreement:
    """Share of positions with the same label as the float32 graph ``reference`` gives, on network inputs.

    ``head`` says what the output is; by default the label is the class with the largest logit.
    """

    unit = "labels equal"

    def __init__(
        self,
        reference: onnx.ModelProto,
        inputs: Iterable[NetworkInput],
        head: Head | None = None,
        threads: int | None = None,
    ) -> None:
        self.inputs, self.head, self.threads = list(inputs), head, threads
        self.expected = self._labels(reference)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the inputs."""
        return _digest(*(item.pixels for item in self.inputs))

    def _labels(self, proto: onnx.ModelProto) -> list[NDArray[np.intp]]:
        with open_graph(proto, self.threads) as engine:
            return [self._label(engine.run(item.pixels)) for item in self.inputs]

    def _label(self, logits: NDArray[np.float32]) -> NDArray[Any]:
        return self.head.labels(logits[0], Inference()) if self.head else logits.argmax(1)

    def __call__(self, proto: onnx.ModelProto) -> float:
        """100 times the share of equal labels."""
        pairs = zip(self._labels(proto), self.expected, strict=True)
        return 100 * float(np.mean(np.concatenate([(labels == expected).ravel() for labels, expected in pairs])))


class MeanIoU:
    """Mean intersection over union on labelled images, through the runtime with the given settings."""

    unit = "mIoU"

    def __init__(
        self,
        recipe: Recipe | NetworkRecipe,
        pictures: Sequence[Labelled],
        inference: Inference,
        stride: int,
        threads: int | None = None,
    ) -> None:
        """``stride`` is the network's: input pixels per output position."""
        self.recipe, self.pictures, self.inference, self.threads = recipe, pictures, inference, threads
        self.stride = stride

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images, labels and settings."""
        arrays = (array for picture in self.pictures for array in picture)
        return f"{self.inference.describe()} {_digest(*arrays)}"

    def __call__(self, proto: onnx.ModelProto) -> float:
        """100 times the mIoU over all images together."""
        return self.of(self.labels(proto))

    def labels(
        self, proto: onnx.ModelProto, indices: Sequence[int] | None = None
    ) -> Iterator[NDArray[np.unsignedinteger]]:
        """The label map (H, W) of each image, or of those with the given ``indices``."""
        recipe = self.recipe
        with open_graph(proto, self.threads) as engine:
            segmenter = Segmenter(
                engine,
                recipe.labels,
                recipe.preprocess,
                self.inference,
                self.stride,
                network=recipe.network,
                threads=self.threads,
            )
            for index in range(len(self.pictures)) if indices is None else indices:
                yield segmenter(self.pictures[index][0]).labels

    def of(self, labels: Iterable[NDArray[np.integer]]) -> float:
        """100 times the mIoU of label maps, one for each image."""
        confusion = Confusion(self.recipe.labels.count)
        for predicted, (_, truth) in zip(labels, self.pictures, strict=True):
            confusion.add(predicted, truth)
        return 100 * confusion.metrics().miou


def _digest(*arrays: NDArray[Any]) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array))
    return sha.hexdigest()
