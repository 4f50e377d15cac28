"""The builder's configuration, on the real one of TensorRT-RTX; what only TensorRT has, on a double of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from marks import builds_rtx
from small_bundle import manifest, save_model
from tqdm import tqdm

from isnet_trt.bundle import ENGINE, ONNX, TIMING_CACHE, new_bundle
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.tensorrt import LIBRARY as TENSORRT
from isnet_trt.engines.tensorrt_api import collecting_logger
from isnet_trt.engines.tensorrt_rtx import LIBRARY
from isnet_trt.errors import EngineUnavailable
from isnet_trt.export.engines import tensorrt, tensorrt_family
from isnet_trt.export.engines.base import BuildRequest
from isnet_trt.export.engines.profiles import shapes_for
from isnet_trt.export.engines.tensorrt import BUILDER as TENSORRT_BUILDER
from isnet_trt.export.engines.tensorrt_rtx import BUILDER
from isnet_trt.export.options import EngineOptions
from isnet_trt.recipes import recipe


@pytest.fixture
def library() -> Any:
    return LIBRARY.load()


@builds_rtx
def test_settings_reach_the_library(library: Any) -> None:
    builder = library.Builder(collecting_logger(library))
    config = builder.create_builder_config()
    config.set_flag(library.BuilderFlag.TF32)
    options = EngineOptions(targets=("8.6", "12.0"), workspace=1.5, optimisation_level=2, streams=3)
    BUILDER.configure(library, config, options, ("8.6", "12.0"))
    assert config.get_memory_pool_limit(library.MemoryPoolType.WORKSPACE) == 3 << 29
    assert (config.builder_optimization_level, config.max_aux_streams) == (2, 2)
    assert not config.get_flag(library.BuilderFlag.TF32)
    assert config.get_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)
    assert config.profiling_verbosity == library.ProfilingVerbosity.DETAILED
    capabilities = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    assert capabilities == [library.ComputeCapability.SM86, library.ComputeCapability.SM120]


@builds_rtx
def test_names_of_what_only_tensorrt_has(library: Any) -> None:
    """TensorRT-RTX keeps TensorRT's names, so that they can be held against a real module."""
    builder = library.Builder(collecting_logger(library))
    config = builder.create_builder_config()
    for name in ("hardware_compatibility_level", "create_timing_cache", "set_timing_cache", "set_flag"):
        assert hasattr(config, name)
    assert library.HardwareCompatibilityLevel.AMPERE_PLUS != library.HardwareCompatibilityLevel.NONE
    assert library.BuilderFlag.VERSION_COMPATIBLE
    assert hasattr(library.ITimingCache, "serialize")


class Config:
    """Notes what a builder's configuration is given; ``knows`` is the measurement that it takes."""

    def __init__(self, knows: bytes = b"") -> None:
        self.flags: list[str] = []
        self.caches: list[bytes] = []
        self.knows = knows

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def create_timing_cache(self, data: bytes) -> Any:
        return None if data == b"damaged" else SimpleNamespace(data=data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch  # measurements of another GPU are worth nothing here
        accepted = cache.data in (b"", self.knows)
        if accepted:
            self.caches.append(cache.data)
        return accepted


def test_compatible_engines() -> None:
    module = SimpleNamespace(
        __name__="tensorrt",
        __version__="10.13.3",
        BuilderFlag=SimpleNamespace(VERSION_COMPATIBLE="versions"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="all"),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere"),
    )
    config: Any = Config()
    options = EngineOptions(context="native", hardware_compatible=True, version_compatible=True)
    TENSORRT_BUILDER.configure(module, config, options, ())
    assert config.hardware_compatibility_level == "ampere"
    assert config.flags == ["versions"]
    del module.HardwareCompatibilityLevel
    with pytest.raises(EngineUnavailable, match=r"tensorrt 10\.13\.3 lacks what --hardware-compatible needs"):
        TENSORRT_BUILDER.configure(module, Config(), options, ())


@pytest.mark.parametrize(
    ("earlier", "taken", "reused"),
    [(b"", b"", False), (b"mine", b"mine", True), (b"another GPU's", b"", False), (b"damaged", b"", False)],
)
def test_earlier_measurements_are_taken_where_they_fit(earlier: bytes, taken: bytes, reused: bool) -> None:
    config = Config(knows=b"mine")
    cache, used = tensorrt.timing_cache(config, earlier)
    assert (cache.data, used) == (taken, reused)
    assert config.caches == [taken]


@builds_rtx
def test_ctrl_c_during_a_build(graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is asked to stop and does; no exception crosses it, and no engine is left."""
    steps = []

    def interrupted(self: tqdm, n: float | None = 1) -> None:
        steps.append(n)
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_family.tqdm, "update", interrupted)
    shapes, options = shapes_for(recipe("isnet_demo"), static=(97, 129)), EngineOptions(targets=("8.6",))
    with pytest.raises(KeyboardInterrupt):
        BUILDER.serialise(BuildRequest(graph, shapes, options), tmp_path / "model.engine")
    assert steps
    assert not list(tmp_path.iterdir())


@builds_rtx
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_tensorrts_path_through_its_sibling(
    graph: onnx.ModelProto, library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX in TensorRT's place: its names, a builder that needs no GPU, a timing cache that stays empty."""
    monkeypatch.setattr(type(TENSORRT), "load", lambda self: library)
    gpu = Gpu("NVIDIA Double", "8.6", "CUDA 13.0", 84)
    monkeypatch.setattr(tensorrt, "find_gpu", lambda index=0: gpu)
    monkeypatch.setattr(tensorrt_family, "probe_gpu", lambda index=0: (gpu, ""))
    shapes, path = shapes_for(recipe("isnet_demo"), batch=2), tmp_path / "model.engine"
    first = TENSORRT_BUILDER.serialise(BuildRequest(graph, shapes, EngineOptions(workspace=1), progress=False), path)
    assert first.capabilities == ("8.6",)
    assert sum(layer.plugin for layer in first.layers) == 3 * len(shapes.profiles) == 6
    assert (bool(first.timing_cache), first.reused) == (True, False)
    (tmp_path / "timing.cache").write_bytes(first.timing_cache)
    options = EngineOptions(context="native", timing_cache=tmp_path / "timing.cache")
    second = TENSORRT_BUILDER.serialise(BuildRequest(graph, shapes, options, progress=False), path)
    assert second.reused
    assert not any(layer.plugin for layer in second.layers)


def test_the_measurements_of_a_bundle_that_is_replaced(tmp_path: Path) -> None:
    engine = EngineInfo("tensorrt", "10.13.3.9", ENGINE, ("8.9",), context="native")
    with new_bundle(tmp_path / "old") as draft:
        save_model(draft.folder / ONNX)
        (draft.folder / ENGINE).write_bytes(b"engine")
        (draft.folder / TIMING_CACHE).write_bytes(b"measured")
        draft.finish(manifest(engine))
    (tmp_path / "named.cache").write_bytes(b"named")
    plain = BuildRequest(onnx.ModelProto(), shapes_for(recipe("isnet_demo")), replaced=tmp_path / "old")
    request = dataclasses.replace(plain, measurements=tmp_path / "old.timing.cache")
    assert tensorrt.earlier_measurements(request) == b"measured"  # nothing is beside it yet
    (tmp_path / "old.timing.cache").write_bytes(b"kept")
    named = EngineOptions(timing_cache=tmp_path / "named.cache")
    assert tensorrt.earlier_measurements(request) == b"kept"
    assert tensorrt.earlier_measurements(plain) == b"measured"
    assert tensorrt.earlier_measurements(dataclasses.replace(request, options=named)) == b"named"
    assert tensorrt.earlier_measurements(dataclasses.replace(plain, replaced=tmp_path / "nowhere")) == b""
    assert BUILDER.attach_timing_cache(None, request) == (None, False)  # has no use for it


def test_measurements_are_kept_beside_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = tensorrt_family.SerialisedEngine(("8.9",), 7, (), timing_cache=b"measured now")
    monkeypatch.setattr(type(TENSORRT), "installed_version", lambda self: "10.13.3.9")
    monkeypatch.setattr(type(TENSORRT_BUILDER), "serialise", lambda self, request, path: built)
    shapes, kept = shapes_for(recipe("isnet_demo")), tmp_path / "bundle.timing.cache"
    (tmp_path / "draft").mkdir()
    kept.write_bytes(b"damaged")
    output = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)
    graph = onnx.ModelProto(graph=onnx.GraphProto(output=[output]))
    TENSORRT_BUILDER.build(BuildRequest(graph, shapes, measurements=kept), tmp_path / "draft")
    assert kept.read_bytes() == (tmp_path / "draft" / TIMING_CACHE).read_bytes() == b"measured now"
