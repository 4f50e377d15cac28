"""What a build starts from, whatever its source: a network with its recipe, its graph, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from isnet_trt.bundle import CheckpointInfo
from isnet_trt.export.reference import Reference
from isnet_trt.merging.merge import Head
from isnet_trt.recipes import NetworkRecipe, Recipe
from isnet_trt.settings import Size


@dataclass(frozen=True)
class Network:
    """A network to build a bundle from.

    Attributes:
        recipe: its classes, preprocessing, facts and presets, with what was found by running it.
        path: the file or the callable that it comes from, for messages.
        source: name and digest of that, for manifest and report.
        stride: input pixels per output position.
        reference: what the engine is compared with.
        export: makes the float32 graph, with input ``image`` and output ``logits``.
        context_width: channels of its context operations (`isnet_trt.export.functions`); None: it has none.
        size, batch: the only input size and number of images that it takes; None: any.
        findings: what was found by running it, one line each.
        notes: what else the user should know.
        identity: what else the figures of a tuning depend on.
    """

    recipe: Recipe | NetworkRecipe
    path: str
    source: CheckpointInfo
    stride: int
    reference: Reference
    export: Callable[[], onnx.ModelProto]
    context_width: int | None = None
    size: Size | None = None
    batch: int | None = None
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    identity: str = ""

    @property
    def head(self) -> Head:
        """The network's output, as the merge takes it."""
        return Head.of(self.recipe.labels, self.stride, self.recipe.network)
