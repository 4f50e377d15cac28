"""Where tensors lie."""

from __future__ import annotations

DEVICE = "cuda"
"""PyTorch's name of the GPU; tests put everything on the CPU, to run the checks' own code before it meets a GPU."""


def device() -> str:
    """`DEVICE` as it is now."""
    return DEVICE
