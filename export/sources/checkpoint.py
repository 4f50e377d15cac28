"""A checkpoint of an ISNet as the network of a build."""

from __future__ import annotations

import functools
import hashlib

from isnet_trt.bundle import CheckpointInfo
from isnet_trt.export.network import Network
from isnet_trt.export.sources import CheckpointFile
from isnet_trt.export.torch_reference import TorchReference
from isnet_trt.export.tracing import export_graph
from isnet_trt.files import printable
from isnet_trt.training.checkpoint import Checkpoint, load_checkpoint, load_model
from isnet_trt.training.model import ISNet


def load(source: CheckpointFile) -> Network:
    """See `isnet_trt.export.sources.Source.load`."""
    return network_of(load_checkpoint(source.path, source.recipe, source.weights))


def network_of(checkpoint: Checkpoint) -> Network:
    """The network of a checkpoint that was read."""
    model, recipe = load_model(checkpoint), checkpoint.recipe
    stride = recipe.architecture.output_stride
    return Network(
        recipe=recipe,
        path=str(checkpoint.path),
        source=CheckpointInfo(printable(checkpoint.path.name), checkpoint.sha256, checkpoint.weights),
        stride=stride,
        reference=TorchReference(model, stride),
        export=functools.partial(export_graph, model, recipe.name),
        context_width=recipe.architecture.context_channels,
        notes=checkpoint.notes,
        identity=_digest(model),
    )


def _digest(model: ISNet) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()
