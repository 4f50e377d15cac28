"""A module of PyTorch that maps images to scores as the network of a build."""

from __future__ import annotations

import functools
import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isnet_trt.bundle import CheckpointInfo
from isnet_trt.errors import BuildError, CheckpointError, SettingsError, first_few
from isnet_trt.export.graph import note_source
from isnet_trt.export.intake.graph import take_in
from isnet_trt.export.intake.probe import Prober, odd_multiples
from isnet_trt.export.network import Network
from isnet_trt.export.network_inputs import built_in
from isnet_trt.export.onnx_edit import copied
from isnet_trt.export.sources import Module, read_recipe
from isnet_trt.export.sources.facts import settle
from isnet_trt.export.torch_reference import TorchReference
from isnet_trt.export.tracing import traced
from isnet_trt.files import printable
from isnet_trt.recipes import NetworkRecipe
from isnet_trt.settings import Size
from isnet_trt.training.archive import opened
from isnet_trt.training.wrapped import state_dict_in

_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""Put before all names by wrappers of a network."""


def load(source: Module, static: Size | None = None) -> Network:
    """See `isnet_trt.export.sources.Source.load`."""
    recipe, name = read_recipe(source.recipe), _name(source)
    notes: list[str] = []
    module = _create_module(source.factory, name)
    if source.weights is not None:
        load_weights(module, Path(source.weights), notes)
    selected = _Selected(module.float().cpu().eval(), source.output, name)
    own_stride, multiple = _probed(selected, recipe, name, static)
    size = static or odd_multiples(multiple)
    try:
        proto = traced(selected, size, None if static else multiple)
    except BuildError as error:
        raise BuildError(
            f"{name} cannot be exported: {error}\nExport it yourself and give the file to --onnx"
            + ("" if static else ", or build for one size: --static H W")
        ) from None
    channels, padded_to = recipe.network.channels(recipe.labels), recipe.network.size_multiple
    intake = take_in(proto, recipe.preprocess, channels, name, size_multiple=padded_to)
    settled = settle(recipe, intake, name, static)
    note_source(intake.proto, recipe.name, {})
    digest = _digest(module)
    return Network(
        recipe=settled,
        path=name,
        source=CheckpointInfo(printable(Path(source.weights).name if source.weights else name), digest),
        stride=intake.probed.stride,
        reference=TorchReference(selected, own_stride),
        export=functools.partial(copied, intake.proto),
        size=intake.probed.size,
        batch=intake.probed.batch,
        findings=tuple(intake.probed.lines()),
        notes=tuple(notes),
        identity=digest,
    )


def _name(source: Module) -> str:
    if isinstance(source.factory, str):
        return source.factory
    return getattr(source.factory, "__qualname__", type(source.factory).__name__)


def _create_module(factory: Any, name: str) -> nn.Module:
    """The module that a factory returns; importing and calling it runs the user's code."""
    try:
        module = (_imported(factory) if isinstance(factory, str) else factory)()
    except (SettingsError, KeyboardInterrupt):
        raise
    except Exception as error:  # of whatever type: it is the user's code
        raise BuildError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise SettingsError(f"{name} returned a {type(module).__name__}; it must return a torch.nn.Module")
    return module


def _imported(text: str) -> Any:
    """The callable that ``package.module:factory`` names; modules of the working folder are found too."""
    package, _, attribute = text.partition(":")
    if not package or not attribute:
        raise SettingsError(f"--module {text!r}: name a callable that returns the module as package.module:factory")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = importlib.import_module(package)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except ModuleNotFoundError as error:
        raise SettingsError(f"--module {text}: there is no Python module {error.name!r}") from None
    except AttributeError as error:
        raise SettingsError(f"--module {text}: {error}") from None
    if not callable(factory):
        raise SettingsError(f"--module {text} is a {type(factory).__name__}, not a callable that returns the module")
    return factory


def load_weights(module: nn.Module, path: Path, notes: list[str]) -> None:
    """Load a state dict into the module; its names and shapes must be the module's, except for a common prefix."""
    with opened(path) as file:
        entries = state_dict_in(file.content, path, notes)
        expected = module.state_dict()
        for prefix in _PREFIXES:
            if entries and all(name.startswith(prefix) for name in entries) and not set(entries) & set(expected):
                entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
                notes.append(f"the prefix {prefix!r} was taken off all names")
        _check_fit({name: tuple(entry.shape) for name, entry in entries.items()}, expected, path)
        state = {name: file.tensor(entry) for name, entry in entries.items()}
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(f"{path}: NaN or infinite values in {len(bad)} entries: {first_few(bad)}")
    module.load_state_dict(state)


def _check_fit(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor], path: Path) -> None:
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    other = [
        f"{name} ({shape} instead of {tuple(expected[name].shape)})"
        for name, shape in shapes.items()
        if name in expected and shape != tuple(expected[name].shape)
    ]
    kinds = {"missing": missing, "not the module's": unknown, "of another shape": other}
    if problems := [f"{len(names)} {kind}: {first_few(names)}" for kind, names in kinds.items() if names]:
        raise CheckpointError(f"{path} does not fit the module: {'; '.join(problems)}")


class _Selected(nn.Module):
    """A module with one tensor as output, whatever the inner module returns."""

    def __init__(self, inner: nn.Module, key: str | None, name: str) -> None:
        super().__init__()
        self.inner, self.key, self.name = inner, key, name

    def forward(self, image: Tensor) -> Tensor:
        return self.selected(self.inner(image))

    def selected(self, result: Any) -> Tensor:
        """The tensor of ``result``, a tensor or a mapping or sequence of such."""
        if isinstance(result, Tensor):
            return result
        pairs = result.items() if isinstance(result, Mapping) else enumerate(result) if result is not None else ()
        tensors = {str(key): value for key, value in pairs if isinstance(value, Tensor)}
        if self.key is None and len(tensors) == 1:
            return next(iter(tensors.values()))
        if self.key is None or self.key not in tensors:
            known = ", ".join(f"{key}: {tuple(value.shape)}" for key, value in tensors.items())
            raise SettingsError(f"{self.name} returns {len(tensors)} tensors; name one with --output: {known}")
        return tensors[self.key]


def _probed(module: _Selected, recipe: NetworkRecipe, name: str, static: Size | None) -> tuple[int, int]:
    """The stride of the module's output, and what sides must be divisible by."""

    def run(pixels: NDArray[np.float32]) -> NDArray:
        with torch.inference_mode():
            return module(torch.from_numpy(pixels)).numpy()

    network = Prober(run, built_in(recipe.preprocess), recipe.network.channels(recipe.labels), name, static)
    return network.grid(*network.first_run())


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
