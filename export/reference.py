"""The networks that engines are compared with: a graph of others as it was given; PyTorch is in `torch_reference`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from isnet_trt.engines.base import Engine
from isnet_trt.errors import EngineError
from isnet_trt.export.sessions import open_session

Blocks = dict[str, NDArray[np.float32]]
"""Name of a block -> its output."""


class Reference(Engine, Protocol):
    """An `Engine` that is right by definition. Its output may be larger than that of the engines compared with it."""

    stride: int
    """Input pixels per position of its own output."""

    def run_with_blocks(self, pixels: NDArray[np.float32], names: Iterable[str]) -> tuple[NDArray[np.float32], Blocks]:
        """Its output for ``pixels`` (1, 3, H, W) and those of the blocks ``names``."""
        ...


class GraphReference(Reference):
    """A graph of one input and one output under ONNX Runtime on the CPU, every node computed as it stands."""

    kind = "onnxruntime"

    def __init__(self, proto: onnx.ModelProto, stride: int) -> None:
        self.stride = stride
        self._resources = contextlib.ExitStack()
        self._session: Any = self._resources.enter_context(open_session(proto, optimised=False))
        self._input = self._session.get_inputs()[0].name
        self.description = "the given graph under ONNX Runtime, without optimisation"

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `isnet_trt.engines.base.Engine.run`."""
        if self._session is None:
            raise EngineError("this network was closed; open it again")
        return self._session.run(None, {self._input: batch})[0]

    def run_with_blocks(self, pixels: NDArray[np.float32], names: Iterable[str]) -> tuple[NDArray[np.float32], Blocks]:
        """See `Reference.run_with_blocks`; a graph of others has no named blocks."""
        return self.run(pixels), {}

    def close(self) -> None:
        """Give the memory back; closing twice is harmless."""
        self._session = None
        self._resources.close()
