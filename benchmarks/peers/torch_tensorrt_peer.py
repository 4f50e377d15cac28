"""Torch-TensorRT: the folded network through torch.compile's TensorRT backend, half precision.

API: docs.pytorch.org/TensorRT, "Torch-TensorRT torch.compile backend" (``backend="torch_tensorrt"``).
"""

from __future__ import annotations

import torch

from benchmarks.peers import Missing, Setup
from benchmarks.peers.eager import on_device
from benchmarks.peers.pipeline import PipelineRunner
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from isnet_trt.training.model import inference_form


def load(setup: Setup) -> PipelineRunner:
    """The folded network under Torch-TensorRT.

    Raises:
        Missing: there is no GPU, or Torch-TensorRT is not installed.
    """
    assert setup.ckpt is not None
    if not torch.cuda.is_available():
        raise Missing("Torch-TensorRT needs an NVIDIA GPU, and torch sees none")
    try:
        import torch_tensorrt  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise Missing(f"Torch-TensorRT is not installed ({error}); pip install torch-tensorrt") from None
    checkpoint = load_checkpoint(setup.ckpt)
    model = inference_form(load_model(checkpoint)).half().cuda()
    network = torch.compile(model, backend="torch_tensorrt", dynamic=False)
    about = f"Torch-TensorRT {torch_tensorrt.__version__}, fp16"
    return PipelineRunner(setup, on_device(network, torch.float16), about, checkpoint.recipe)
