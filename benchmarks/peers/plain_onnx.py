"""The graph that a user gets without this library: torch.onnx.export of the training form in evaluation mode."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch

from benchmarks.peers import Missing, Setup
from isnet_trt.recipes import Recipe
from isnet_trt.training.checkpoint import load_checkpoint, load_model

_SAMPLE = (2, 3, 73, 105)


def export(setup: Setup, path: Path) -> Recipe:
    """Write the graph to ``path``, batch, height and width free, with the exporter's own optimisation.

    Raises:
        Missing: the exporter failed.
    """
    assert setup.ckpt is not None
    checkpoint = load_checkpoint(setup.ckpt)
    model = load_model(checkpoint)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (torch.zeros(_SAMPLE),),
                dynamo=True,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=(sizes,),
                verbose=False,
            )
            assert program is not None
            program.save(str(path))
    except Exception as error:
        raise Missing(f"the training form cannot be exported: {error}") from None
    return checkpoint.recipe


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
