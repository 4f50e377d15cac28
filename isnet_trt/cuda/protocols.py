"""What the pipeline and the plugins need of kernels and of an engine."""

from __future__ import annotations

from typing import Any, Protocol

Shape = tuple[int, int, int, int]
"""(B, 3, H, W)."""


class Launcher(Protocol):
    """What launches kernels: `isnet_trt.cuda.kernels.Kernels`."""

    def launch(self, name: str, stream: int, **arguments: int | float) -> None:
        """Queue a kernel on ``stream``; pointers are device addresses."""
        ...

    def constants(self, name: str) -> dict[str, Any]:
        """The compile-time arguments of a kernel, such as its tile."""
        ...

    def __contains__(self, name: object) -> bool: ...


class DeviceEngine(Protocol):
    """A network that reads and writes device memory.

    ``output_type`` is the type of the elements of its logits, one of `isnet_trt.cuda.element_types.FLOATS`.
    """

    output_type: str

    def no_graph(self, shapes: frozenset[Shape], stream: int) -> str:
        """The reason why runs of ``shapes`` on ``stream`` cannot be captured as a CUDA graph; "" if it can be tried.

        Each of ``shapes`` has run before. Without any shape: whether the engine can be captured at all.
        """
        ...

    def output_shape(self, shape: Shape) -> tuple[int, ...]:
        """The shape of the logits for an input of ``shape``; EngineError if the network takes no such input."""
        ...

    def enqueue(self, input_address: int, output_address: int, shape: Shape, stream: int) -> None:
        """Queue the network on ``stream``: float32 ``shape`` at one address to logits at the other."""
        ...

    def keep(self, shapes: frozenset[Shape]) -> None:
        """Free what was prepared for input shapes other than ``shapes``; none of it is running or part of a graph."""
        ...
