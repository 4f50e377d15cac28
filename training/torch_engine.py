"""PyTorch as an engine of the runtime, so that a checkpoint runs in the same runtime as a bundle."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from isnet_trt.engines.base import Engine, check_batch
from isnet_trt.errors import EngineError, EngineUnavailable, engine_error, is_out_of_memory
from isnet_trt.recipes import PRESETS
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import Inference, Placement
from isnet_trt.training.checkpoint import Checkpoint, load_model


class TorchEngine(Engine):
    """A module in evaluation mode (ISNet: its training form), float32 without TF32; an `isnet_trt.engines.Engine`."""

    kind = "torch"

    def __init__(self, model: nn.Module, device: str = "auto") -> None:
        """``device`` is as `Placement.parse` takes it; "auto": GPU 0 if torch sees one.

        Raises:
            SettingsError: ``device`` is unknown.
            EngineUnavailable: a GPU is asked for that torch does not see.
        """
        self.device = _torch_device(Placement.parse(device))
        self.device_name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        self.description = f"PyTorch {torch.__version__} on {self.device_name}"
        if self.device.type == "cpu":
            self.description += f", {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
        self._model: nn.Module | None = model.to(self.device).eval()

    @torch.inference_mode()
    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw logits (B, K, ceil(H/s), ceil(W/s)) float32 of normalised ``batch`` (B, 3, H, W).

        Raises:
            EngineError: closed, out of memory, or not such a batch.
        """
        if self._model is None:
            raise EngineError("this engine was closed; open it again")
        check_batch(batch)
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                logits = self._model(torch.from_numpy(batch).to(self.device))
                return logits.float().contiguous().cpu().numpy()
        except RuntimeError as error:
            raise engine_error(_explained(error, batch.shape), error) from error

    def close(self) -> None:
        """Give the memory back; closing twice is harmless."""
        self._model = None


def _torch_device(placement: Placement) -> torch.device:
    available = torch.cuda.is_available()
    if placement.kind == "cpu" or (placement.kind == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise EngineUnavailable("torch sees no NVIDIA GPU here (torch.cuda.is_available() is false); use cpu")
    names = [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    if placement.gpu >= len(names):
        count = f"{len(names)} GPU{'s' * (len(names) > 1)}"
        raise EngineUnavailable(f"there is no cuda:{placement.gpu}; torch sees {count}: {', '.join(names)}")
    return torch.device("cuda", placement.gpu)


def _explained(error: RuntimeError, shape: tuple[int, ...]) -> str:
    first = str(error).strip().splitlines()[0]
    advice = (
        "; the picture is too large for this device: use one with more memory (the CPU), or a preset with windows"
        if is_out_of_memory(error)
        else ""
    )
    return f"PyTorch failed on an input of {shape}: {first}{advice}"


def open_checkpoint(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    inference: Inference | None = None,
    threads: int | None = None,
) -> Segmenter:
    """A segmenter around `TorchEngine` with the settings of the checkpoint's recipe.

    ``inference`` replaces the recipe's default preset; ``threads`` limits the CPU threads of torch (for the whole
    process) and of the merge.

    Raises:
        EngineUnavailable: as `TorchEngine`.
    """
    if threads:
        torch.set_num_threads(threads)
    recipe = checkpoint.recipe
    return Segmenter(
        TorchEngine(load_model(checkpoint), device),
        recipe.labels,
        recipe.preprocess,
        inference or recipe.default,
        recipe.architecture.output_stride,
        presets={name: recipe.preset(name) for name in PRESETS},
        threads=threads,
    )
