"""ONNX Runtime's CUDA provider on the plainly exported graph."""

from __future__ import annotations

from benchmarks.peers import Setup, ort
from benchmarks.peers.pipeline import PipelineRunner


def load(setup: Setup) -> PipelineRunner:
    """See `benchmarks.peers.ort.load`."""
    return ort.load(setup, "CUDAExecutionProvider")
