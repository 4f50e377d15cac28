"""PyTorch eager at its best: batch-norm folded, contexts collapsed, channels last; on a GPU if torch has one."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.peers import Setup
from benchmarks.peers.pipeline import Network, PipelineRunner
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from isnet_trt.training.model import inference_form

M = TypeVar("M", bound=nn.Module)


def load(setup: Setup) -> PipelineRunner:
    """The folded network under eager PyTorch."""
    assert setup.ckpt is not None
    torch.set_num_threads(setup.threads)
    checkpoint = load_checkpoint(setup.ckpt)
    model = channels_last(inference_form(load_model(checkpoint)).to(device()))
    about = f"PyTorch {torch.__version__} eager, {device()}, folded, channels last, {setup.threads} threads"
    return PipelineRunner(setup, on_device(model), about, checkpoint.recipe)


def device() -> str:
    """``cuda`` where torch has one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def channels_last(model: M) -> M:
    """``model`` with its convolution weights in the layout that channels-last inputs want."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def on_device(model: Network, dtype: torch.dtype = torch.float32) -> Network:
    """``model`` fed from the CPU and answering there, its input channels last and of ``dtype``."""

    def network(x: Tensor) -> Tensor:
        return model(x.to(device(), dtype, memory_format=torch.channels_last)).float().cpu()

    return network
