"""Launching a kernel through Triton itself: in its interpreter on the CPU, or compiled just in time on a GPU."""

from __future__ import annotations

import importlib
from typing import Any

from isnet_trt.cuda.kernel_specs import KernelSpec
from isnet_trt.cuda.tensor_maps import TensorMap, strides


def triton_function(spec: KernelSpec) -> Any:
    """The Triton function of ``spec``; this imports triton."""
    module, name = spec.function.split(".")
    return getattr(importlib.import_module(f"isnet_trt.kernels.{module}"), name)


def map_layout(tensor: TensorMap) -> Any:
    """The layout of a tile of two-byte values in shared memory, which Gluon has declared; Triton finds the same."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    return NVMMASharedLayout(min(128, 2 * tensor.box[-1]), element_bitwidth=16, rank=len(tensor.box))


def run(spec: KernelSpec, **arguments: Any) -> None:
    """Launch ``spec``; tensors stand for pointers.

    Raises:
        TypeError: an argument is missing or unknown.
    """
    from triton.runtime.interpreter import InterpretedFunction
    from triton.tools.tensor_descriptor import TensorDescriptor

    spec.check(arguments)
    function, constants = triton_function(spec), dict(spec.constants)
    # The interpreter multiplies the bits of bfloat16 as if they were integers: there products are taken in float32.
    if "UPCAST" in constants and "*bf16" in spec.arguments.values() and isinstance(function, InterpretedFunction):
        constants["UPCAST"] = True
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages}
    for name, tensor in spec.maps.items():
        sizes = tensor.sizes(arguments)
        arguments[name] = TensorDescriptor(arguments[name], list(sizes), list(strides(sizes)), list(tensor.box))
    function[spec.blocks(arguments)](**arguments, **constants, **options)
