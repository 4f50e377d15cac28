"""What a host must know to launch a kernel, as data, and how to divide its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isnet_trt.cuda.work import Axis, blocks, splits

__all__ = ["TYPES", "Launch", "splits"]

TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Triton's name of each type that an engine may have -> numpy's and torch's name."""


@dataclass(frozen=True)
class Launch:
    """One compiled form of a kernel.

    Attributes:
        name: unique among all launches, such as ``attention_fp16``.
        kernel: the Triton function.
        types: argument -> Triton type in the kernel's order, such as ``*fp16`` (device pointer), ``i32``, ``fp32``.
        constants: compile-time arguments.
        grid: axes x, y, z in terms of integer arguments.
        num_warps: warps per block; a block has 32 * num_warps threads.
        num_stages: depth of the software pipeline.
        unaligned: pointers that need not be multiples of 16; all others must be.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    grid: tuple[Axis, Axis, Axis]
    num_warps: int = 4
    num_stages: int = 2
    unaligned: tuple[str, ...] = ()

    def blocks(self, arguments: Mapping[str, Any]) -> tuple[int, int, int]:
        """The grid (x, y, z) for integer ``arguments``."""
        return blocks(self.grid, arguments)

    def run(self, **arguments: Any) -> None:
        """Launch through Triton itself: in its interpreter, or compiled just in time on a GPU.

        Raises:
            TypeError: an argument is missing or unknown.
        """
        if set(arguments) != set(self.types):
            wrong = ", ".join(sorted(set(arguments) ^ set(self.types)))
            raise TypeError(f"kernel {self.name} takes {', '.join(self.types)}; missing or unknown: {wrong}")
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        self.kernel[self.blocks(arguments)](**arguments, **self.constants, **options)
