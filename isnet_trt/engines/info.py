"""The engine's entry in a bundle's manifest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from isnet_trt.errors import SettingsError
from isnet_trt.settings import MOST_PIXELS


@dataclass(frozen=True)
class EngineInfo:
    """The engine that the bundle was built for.

    ``compute_capabilities`` are the GPUs that the engine may run on, such as ("8.6", "8.9"); empty for a CPU engine.
    ``shapes`` are the smallest, usual and largest input (B, 3, H, W); empty means any. ``context`` says who computes
    the two context operations: ``plugin`` (kernels of the bundle) or ``native`` (the engine's own layers); None for
    ONNX Runtime. ``version_compatible`` engines run under later versions of their library as well. ``output`` is the
    element type of the logits that ``file`` gives.
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
    output: Literal["fp32", "fp16", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+!-]{1,64}", self.library_version, re.ASCII):
            raise SettingsError(f"library version {self.library_version[:80]!r} is no version")
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d{1,3}\.\d", capability, re.ASCII):
                raise SettingsError(f"compute capability {capability[:80]!r} is not written as 8.9")
        if self.shapes:
            self._check_shapes()

    def _check_shapes(self) -> None:
        if len(self.shapes) != 3:
            raise SettingsError(f"{len(self.shapes)} shapes instead of the smallest, usual and largest")
        if any(min(shape) < 1 or shape[0] * shape[2] * shape[3] > MOST_PIXELS for shape in self.shapes):
            raise SettingsError(f"shapes {self.shapes} must be positive and have at most {MOST_PIXELS} pixels")
        smallest, usual, largest = self.shapes
        if not all(a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True)):
            raise SettingsError(f"shapes {self.shapes} are not the smallest, usual and largest in this order")
