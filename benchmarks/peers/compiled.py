"""torch.compile: Inductor with frozen weights; half precision on a GPU."""

from __future__ import annotations

import shutil

import torch

from benchmarks.peers import Missing, Setup
from benchmarks.peers.eager import channels_last, device, on_device
from benchmarks.peers.pipeline import PipelineRunner
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from isnet_trt.training.model import inference_form


def load(setup: Setup) -> PipelineRunner:
    """The folded network under torch.compile; each input shape is compiled when it is first seen."""
    assert setup.ckpt is not None
    if device() == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise Missing("torch.compile needs a C++ compiler on the CPU, and there is none (apt install g++)")
    torch.set_num_threads(setup.threads)
    torch._inductor.config.freezing = True
    checkpoint = load_checkpoint(setup.ckpt)
    dtype = torch.float16 if device() == "cuda" else torch.float32
    model = channels_last(inference_form(load_model(checkpoint)).to(device(), dtype))
    network = torch.compile(model, dynamic=False)
    about = f"torch.compile {torch.__version__}, {device()}, {dtype}, frozen, {setup.threads} threads"
    return PipelineRunner(setup, on_device(network, dtype), about, checkpoint.recipe)
