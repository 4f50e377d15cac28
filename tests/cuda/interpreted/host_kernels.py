"""The compiled kernels' stand-in: the same kernels by the same names in Triton's interpreter, on host addresses."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import torch
from interpreted_fma import round_once

from isnet_trt.cuda.context_ops import WIDTH
from isnet_trt.kernels import catalogue
from isnet_trt.kernels.launch import Launch

assert os.environ.get("TRITON_INTERPRET") == "1", "run these files through the test that starts their own process"
torch.set_num_threads(1)
round_once()

_ELEMENTS: dict[str, tuple[Any, torch.dtype]] = {
    "fp32": (ctypes.c_float, torch.float32),
    "fp16": (ctypes.c_uint16, torch.float16),
    "bf16": (ctypes.c_uint16, torch.bfloat16),
    "i32": (ctypes.c_int32, torch.int32),
    "i64": (ctypes.c_int64, torch.int64),
    "u8": (ctypes.c_uint8, torch.uint8),
    "u16": (ctypes.c_uint16, torch.uint16),
}


def at(address: int, kind: str) -> torch.Tensor:
    """A tensor of one element of Triton type ``kind`` that lies at ``address``: a pointer, for the interpreter."""
    element, dtype = _ELEMENTS[kind]
    return torch.frombuffer(element.from_address(address), dtype=dtype)


class HostKernels:
    """`isnet_trt.cuda.kernels.Kernels` on host memory: the launches of the catalogue for tiles of sm_``arch``.

    bfloat16 is multiplied in float32, since the interpreter multiplies its bits as integers. ``log`` has every launch.
    """

    def __init__(
        self, dtypes: Iterable[str] = ("fp32",), classes: int = 19, width: int = WIDTH, arch: int = 86
    ) -> None:
        made = catalogue.launches(arch, dtypes, classes, width)
        self.launches = {launch.name: _upcast(launch) for launch in made}
        self.log: list[str] = []

    def __contains__(self, name: object) -> bool:
        return name in self.launches

    def constants(self, name: str) -> dict[str, Any]:
        return dict(self.launches[name].constants)

    def launch(self, name: str, stream: int, **arguments: int | float) -> None:
        launch = self.launches[name]
        self.log.append(name)
        given: dict[str, Any] = dict(arguments)
        for argument, kind in launch.types.items():
            if kind.startswith("*") and argument in given:
                address = int(given[argument])
                assert address, f"{name}: {argument} is a null pointer"
                assert argument in launch.unaligned or address % 16 == 0, f"{name}: {argument} is not aligned"
                given[argument] = at(address, kind[1:])
        launch.run(**given)


def _upcast(launch: Launch) -> Launch:
    if "UPCAST" not in launch.constants or "*bf16" not in launch.types.values():
        return launch
    return dataclasses.replace(launch, constants={**launch.constants, "UPCAST": True})
