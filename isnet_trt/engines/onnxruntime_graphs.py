"""ONNX Runtime's own CUDA graphs: the network for one input shape as one launch.

A run of ONNX Runtime cannot be part of somebody else's capture: its replays refuse a stream that is being captured
(microsoft/onnxruntime#32081). Its own graphs hold a model only where no step is the host's: without control flow, and
with the whole of it on the provider. A session with free sizes keeps the computation of shapes on the host; one session
for each shape has constants in its place.

https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview
"""

from __future__ import annotations

import math
import threading
from typing import Any

from isnet_trt.cuda.device import Device, no_garbage_collection
from isnet_trt.cuda.element_types import ELEMENT_TYPES
from isnet_trt.cuda.protocols import Shape
from isnet_trt.engines.onnxruntime_cpu import BINDINGS
from isnet_trt.errors import EngineError

GRAPH_OPTIONS = {"enable_cuda_graph": "1"}
"""Options of the provider for sessions that are captured."""
GRAPH_RUN = {"gpu_graph_id": "1", "disable_synchronize_execution_providers": "1"}
"""Run configuration: 0 is reserved by ONNX Runtime, -1 means without a graph."""
Tensor = tuple[str, tuple[int, ...], str]
"""Name, shape and element type."""


def fix_sizes(options: Any, model_shape: tuple[Any, ...], shape: Shape) -> None:
    """Give the free sizes of a model's input, known by their names, the values of ``shape``, in session options.

    Raises:
        EngineError: a free size has no name.
    """
    free = {name: size for name, size in zip(model_shape, shape, strict=True) if not isinstance(name, int)}
    if not all(isinstance(name, str) and name for name in free):
        raise EngineError("free sizes of the model's input have no names, by which they could be fixed")
    for name, size in free.items():
        options.add_free_dimension_override_by_name(name, size)


class ShapeGraph:
    """A session of fixed sizes, which the first run captures and later ones replay.

    A replay uses the memory of the capture, whatever is bound: input and output have memory of their own here, and are
    copied on the GPU. ``tensors`` are the input and the output; ``gpu`` is the number of ``device``.
    """

    def __init__(self, session: Any, device: Device, gpu: int, tensors: tuple[Tensor, Tensor], options: Any) -> None:
        self._session, self._device, self._options = session, device, options
        self._sizes = [ELEMENT_TYPES[kind].size * math.prod(shape) for _, shape, kind in tensors]
        self._addresses: list[int] = []
        self._captured: set[int] = set()  # threads: ONNX Runtime keeps the graphs of each apart
        try:
            for size in self._sizes:
                self._addresses.append(device.allocate(size))
            self._binding = session.io_binding()
            binds = self._binding.bind_input, self._binding.bind_output
            for bind, (name, shape, kind), address in zip(binds, tensors, self._addresses, strict=True):
                bind(name, "cuda", gpu, BINDINGS[kind], shape, address)
        except BaseException:
            self.close()
            raise

    def enqueue(self, input_address: int, output_address: int, stream: int) -> None:
        """Queue the network on ``stream``, the session's own; whatever ONNX Runtime raises where it cannot."""
        self._device.copy(self._addresses[0], input_address, self._sizes[0], stream)
        if threading.get_ident() in self._captured:
            self._run()
        else:
            with no_garbage_collection():
                self._run()
            self._captured.add(threading.get_ident())
        self._device.copy(output_address, self._addresses[1], self._sizes[1], stream)

    def _run(self) -> None:
        self._session.run_with_iobinding(self._binding, self._options)

    def close(self) -> None:
        """Free session and memory, when nothing of it is running."""
        self._binding = self._session = None
        while self._addresses:
            self._device.free(self._addresses.pop())
