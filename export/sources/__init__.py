"""Where a build's network comes from: a checkpoint of an ISNet, an ONNX file, or a module of PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from isnet_trt.recipes import NetworkRecipe, network_recipe
from isnet_trt.settings import Size

if TYPE_CHECKING:
    from torch import nn

    from isnet_trt.export.network import Network

AnyPath = str | os.PathLike[str]


class Source(Protocol):
    """What `isnet_trt.export.build` builds from."""

    def load(self, static: Size | None = None) -> Network:
        """Read and examine the network; ``static`` is the one input size of the engine, if it has one.

        Raises:
            CheckpointError, SettingsError, BuildError: it cannot be used; the message says why and what to do.
        """
        ...


@dataclass(frozen=True)
class CheckpointFile:
    """A released or trained checkpoint of an ISNet; ``recipe`` None: found from its content."""

    path: AnyPath
    recipe: str | None = None
    weights: Literal["plain", "ema"] = "plain"

    def load(self, static: Size | None = None) -> Network:
        """See `Source.load`."""
        from isnet_trt.export.sources.checkpoint import load

        return load(self)


@dataclass(frozen=True)
class OnnxFile:
    """The ONNX graph of any segmentation network.

    Attributes:
        path: the file; its external data lie beside it.
        recipe: what the graph does not say, or the YAML file that says it (``docs/any-network.md``).
        input, output: names where there are several, or of inner tensors.
    """

    path: AnyPath
    recipe: AnyPath | NetworkRecipe
    input: str | None = None
    output: str | None = None

    def load(self, static: Size | None = None) -> Network:
        """See `Source.load`."""
        from isnet_trt.export.sources.onnx_file import load

        return load(self, static)


@dataclass(frozen=True)
class Module:
    """A module of PyTorch that maps normalised images (B, 3, H, W) to scores (B, K, h, w).

    Attributes:
        factory: a callable that returns the module, or its name, ``package.module:factory``.
        recipe: as for `OnnxFile`.
        weights: its state dict, ``.pth`` or ``.safetensors``; nothing in the file is run. None: the module has them.
        output: which of its outputs, by the key or number that the module gives it, where there are several.
    """

    factory: str | Callable[[], nn.Module]
    recipe: AnyPath | NetworkRecipe
    weights: AnyPath | None = None
    output: str | None = None

    def load(self, static: Size | None = None) -> Network:
        """See `Source.load`."""
        from isnet_trt.export.sources.module import load

        return load(self, static)


def read_recipe(recipe: AnyPath | NetworkRecipe) -> NetworkRecipe:
    """``recipe`` itself, or that in a YAML file.

    Raises:
        SettingsError: the file cannot be read, or a key or value is wrong.
    """
    return recipe if isinstance(recipe, NetworkRecipe) else network_recipe(Path(recipe))
