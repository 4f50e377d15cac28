"""Modules of PyTorch as networks of a build: factories, weights, several outputs, sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from isnet_trt import Segmenter
from isnet_trt.errors import BuildError, CheckpointError, SettingsError
from isnet_trt.export import EngineOptions, Module, build
from isnet_trt.export.sources.module import load_weights
from isnet_trt.recipes import NetworkRecipe
from isnet_trt.recipes.custom import colours
from isnet_trt.settings import Inference, Labels, NetworkFacts, Preprocess

LABELS = Labels(tuple("abcde"), colours(5))
RECIPE = NetworkRecipe("mine", LABELS, Preprocess(None), NetworkFacts(), {"default": Inference()})


class Two(nn.Module):
    """A skip connection between even sizes, an enlargement at the end, and two outputs."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(16, 5, 1)
        self.register_buffer("index", torch.arange(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        wide = self.first(x).relu()
        deep = self.second(wide)
        low = self.head(torch.cat([functional.interpolate(deep, scale_factor=2), wide], 1))
        return {"out": functional.interpolate(low, size=x.shape[2:], mode="bilinear"), "deep": deep}


def load(factory: Any = Two, **options: Any) -> Any:
    return Module(factory, RECIPE, **options).load()


def test_a_module_with_two_outputs(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"returns 2 tensors; name one with --output: out: \(1, 5, "):
        load()
    source = Module(Two, RECIPE, output="out")
    bundle = build(source, tmp_path / "bundle", engine=EngineOptions("onnxruntime"))
    facts = bundle.manifest.network
    assert (bundle.manifest.output_stride, facts.size_multiple, facts.upsampling) == (2, 4, "half_pixel")
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (RECIPE.preprocess.mean, RECIPE.preprocess.std))
    with torch.inference_mode():
        pixels = (torch.from_numpy(image).permute(2, 0, 1).float() - mean) / std
        expected = Two().eval()(pixels[None])["out"][0].argmax(0).numpy()
    with Segmenter.open(bundle) as segmenter:
        assert (segmenter(image).labels == expected).mean() > 0.999


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_weights_are_read_from_a_file(tmp_path: Path, prefix: str) -> None:
    other = Two(seed=3)
    state = {prefix + name: tensor for name, tensor in other.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "weights.pth")
    module, notes = Two(), []
    load_weights(module, tmp_path / "weights.pth", notes)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in module.state_dict().items())
    assert any(repr(prefix) in note for note in notes) == bool(prefix)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state = Two().state_dict()
    state["more.weight"] = state.pop("head.weight")
    state["head.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: head.weight; 1 not the .*more.weight; 1 of another shape"):
        load(weights=tmp_path / "weights.pth")


def test_weights_are_read_without_running_them(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Two().state_dict(), "x": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        load_weights(Two(), tmp_path / "weights.pth", [])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_colon", "name a callable that returns the module as package.module:factory"),
        ("no_such_package.here:make", "there is no Python module 'no_such_package'"),
        ("math:nothing", "has no attribute 'nothing'"),
        ("math:pi", "is a float, not a callable"),
        ("builtins:dict", "returned a dict; it must return a torch.nn.Module"),
    ],
)
def test_factories_that_cannot_be_used(factory: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(factory)


def test_a_factory_that_fails() -> None:
    def broken() -> nn.Module:
        raise KeyError("no weights here")

    with pytest.raises(BuildError, match="KeyError: 'no weights here'"):
        load(broken)


class Untraceable(nn.Module):
    """Its Python code depends on the values of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) if float(x.mean()) > -9 else self.head(-x)


@pytest.mark.slow
def test_a_module_that_cannot_be_exported() -> None:
    with pytest.raises(BuildError, match=r"(?s)cannot be exported: .*give the file to --onnx"):
        load(Untraceable)


class Counting(nn.Conv2d):
    """A loop over rows, which the exporter unrolls."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + len(range(x.shape[2]))


def test_a_module_that_counts_with_its_sizes() -> None:
    with pytest.raises(BuildError, match=r"(?s)it fixed the sizes.*--static H W"):
        load(lambda: Counting(3, 5, 3, 2, 1))
