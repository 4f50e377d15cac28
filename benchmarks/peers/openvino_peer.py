"""OpenVINO on the plainly exported graph, its CPU plugin in float32.

API: docs.openvino.ai, "Optimizing for latency" (PERFORMANCE_HINT, INFERENCE_NUM_THREADS, INFERENCE_PRECISION_HINT).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers import Missing, Setup
from benchmarks.peers.pipeline import PipelineRunner
from benchmarks.peers.plain_onnx import export


def load(setup: Setup) -> PipelineRunner:
    """The training form under OpenVINO.

    Raises:
        Missing: OpenVINO is not installed, or cannot load the graph.
    """
    try:
        import openvino  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise Missing(f"OpenVINO is not installed ({error}); pip install openvino") from None
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(setup.threads),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    with tempfile.TemporaryDirectory() as folder:
        recipe = export(setup, Path(folder) / "plain.onnx")
        try:
            compiled = openvino.Core().compile_model(str(Path(folder) / "plain.onnx"), "CPU", settings)
        except RuntimeError as error:
            raise Missing(f"OpenVINO cannot load the plain graph: {error}") from None

    def network(x: Tensor) -> Tensor:
        return torch.from_numpy(compiled([x.contiguous().numpy()])[0].copy())

    about = f"OpenVINO {openvino.__version__}, CPU, f32, plain export, {setup.threads} threads"
    return PipelineRunner(setup, network, about, recipe)
