"""The engine's entry in a bundle's manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EngineInfo:
    """The engine that the bundle was built for.

    ``compute_capabilities`` are the GPUs that the engine may run on, such as ("8.6", "8.9"); empty for a CPU engine.
    ``shapes`` are the smallest, usual and largest input (B, 3, H, W); empty means any. ``context`` says who computes
    the two context operations: ``plugin`` (kernels of the bundle) or ``native`` (the engine's own layers); None for
    ONNX Runtime. ``version_compatible`` engines run under later versions of their library as well.
    """

    kind: str
    library_version: str
    file: str
    compute_capabilities: tuple[str, ...] = ()
    gpu: str | None = None
    driver: str | None = None
    shapes: tuple[tuple[int, int, int, int], ...] = ()
    context: Literal["plugin", "native"] | None = None
    version_compatible: bool = False
