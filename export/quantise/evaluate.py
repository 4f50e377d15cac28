"""How good a graph is, as one number in points (0 … 100, more is better), run by ONNX Runtime."""

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
from isnet_trt.export.parity import NetworkInput
from isnet_trt.export.quantise.qdq_emulation import emulate_qdq
from isnet_trt.metrics import Confusion
from isnet_trt.recipes import Recipe
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import Inference

Labelled = tuple[NDArray[np.uint8], NDArray[np.integer]]
"""A picture (H, W, 3) RGB and its labels (H, W)."""


class Evaluate(Protocol):
    """Scores a float32 or quantised graph; ``unit`` says what the points are of."""

    unit: str

    def __call__(self, proto: onnx.ModelProto) -> float:
        """Points of ``proto``."""


@contextmanager
def open_graph(proto: onnx.ModelProto, threads: int | None = None) -> Iterator[Engine]:
    """An engine for ``proto`` under ONNX Runtime; of graphs for TensorRT it runs the `twin`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(proto if _runs_as_it_is(proto) else emulate_qdq(proto), str(path))
        engine = open_onnx(path, threads=threads)
        try:
            yield engine
        finally:
            engine.close()


def _runs_as_it_is(proto: onnx.ModelProto) -> bool:
    """Whether nothing is quantised, or for ONNX Runtime: then the optimised graph is the one to judge."""
    kinds = {tensor.data_type for tensor in proto.graph.initializer}
    rounds = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    return not rounds or onnx.TensorProto.UINT8 in kinds


class Agreement:
    """Share of positions with the same arg max as the float32 graph ``reference``, on network inputs."""

    unit = "labels equal"

    def __init__(self, reference: onnx.ModelProto, inputs: Iterable[NetworkInput], threads: int | None = None) -> None:
        self.inputs, self.threads = list(inputs), threads
        self.wanted = self._labels(reference)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the inputs."""
        return _digest(*(one.pixels for one in self.inputs))

    def _labels(self, proto: onnx.ModelProto) -> list[NDArray[np.intp]]:
        with open_graph(proto, self.threads) as engine:
            return [engine.run(one.pixels).argmax(1) for one in self.inputs]

    def __call__(self, proto: onnx.ModelProto) -> float:
        """100 times the share of equal labels."""
        pairs = zip(self._labels(proto), self.wanted, strict=True)
        return 100 * float(np.mean(np.concatenate([(got == want).ravel() for got, want in pairs])))


class MeanIoU:
    """Mean intersection over union on labelled pictures, through the runtime with the given settings."""

    unit = "mIoU"

    def __init__(
        self, recipe: Recipe, pictures: Sequence[Labelled], inference: Inference, threads: int | None = None
    ) -> None:
        self.recipe, self.pictures, self.inference, self.threads = recipe, pictures, inference, threads

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of pictures, truth and settings."""
        arrays = (array for picture in self.pictures for array in picture)
        return f"{self.inference.describe()} {_digest(*arrays)}"

    def __call__(self, proto: onnx.ModelProto) -> float:
        """100 times the mIoU over all pictures together."""
        return self.of(self.labels(proto))

    def labels(
        self, proto: onnx.ModelProto, indices: Sequence[int] | None = None
    ) -> Iterator[NDArray[np.unsignedinteger]]:
        """The label map (H, W) of each picture in turn, or of those with the given numbers."""
        recipe = self.recipe
        with open_graph(proto, self.threads) as engine:
            stride = recipe.architecture.output_stride
            segmenter = Segmenter(
                engine, recipe.labels, recipe.preprocess, self.inference, stride, threads=self.threads
            )
            for index in range(len(self.pictures)) if indices is None else indices:
                yield segmenter(self.pictures[index][0]).labels

    def of(self, labels: Iterable[NDArray[np.integer]]) -> float:
        """100 times the mIoU of label maps, one for each picture."""
        confusion = Confusion(self.recipe.labels.count)
        for found, (_, truth) in zip(labels, self.pictures, strict=True):
            confusion.add(found, truth)
        return 100 * confusion.metrics().miou


def _digest(*arrays: NDArray[Any]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()
