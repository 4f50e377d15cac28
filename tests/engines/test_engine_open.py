"""Which engine a bundle opens with, and what is said where it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from children import run_python
from marks import needs_rtx, no_gpu, no_tensorrt
from small_bundle import expected, write_bundle

from isnet_trt.bundle import ENGINE
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import PORTABLE, PRECISIONS
from isnet_trt.engines.select import check_engine
from isnet_trt.engines.table import KINDS, library
from isnet_trt.engines.tensorrt_api import runs_engine_of
from isnet_trt.errors import EngineUnavailable, SettingsError
from isnet_trt.runtime.opening import open_engine

RTX = library("tensorrt-rtx").installed_version()


def _rtx(version: str = RTX or "") -> EngineInfo:
    return EngineInfo("tensorrt-rtx", version, ENGINE, ("8.6", "8.9"), shapes=((1, 3, 32, 32),) * 3)


@pytest.mark.parametrize("info", [None, EngineInfo("tensorrt", "10.1.2", ENGINE), _rtx()])
def test_every_bundle_opens_with_onnx_runtime(tmp_path: Path, info: EngineInfo | None) -> None:
    bundle = write_bundle(tmp_path / "small", info)
    batch = np.ones((1, 3, 16, 8), np.float32)
    with open_engine(bundle, "onnxruntime", threads=1) as engine:
        np.testing.assert_allclose(engine.run(batch), expected(batch), atol=1e-5)  # float32
        assert "1 thread" in engine.description


@no_tensorrt
def test_never_silently_another_engine(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "small", EngineInfo("tensorrt", "10.13.3.9", ENGINE, ("8.9",)))
    with pytest.raises(EngineUnavailable) as caught:
        open_engine(bundle)
    for part in ("tensorrt", "pip install '.[gpu]'", "engine='onnxruntime'"):
        assert part in str(caught.value)


def test_an_engine_that_the_bundle_does_not_hold(tmp_path: Path) -> None:
    plain = write_bundle(tmp_path / "plain")
    with pytest.raises(
        EngineUnavailable, match=r"holds only its ONNX graph, no tensorrt engine; build one with python"
    ):
        open_engine(plain, "tensorrt")
    rtx = write_bundle(tmp_path / "rtx", _rtx("1.0"))
    with pytest.raises(EngineUnavailable, match=r"holds a tensorrt-rtx engine and its ONNX graph, no tensorrt engine"):
        open_engine(rtx, "tensorrt")


def test_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'openvino' is unknown"):
        open_engine(write_bundle(tmp_path / "small"), "openvino")
    with pytest.raises(
        EngineUnavailable, match=r"new was built for the engine 'new', which this isnet_trt does not know"
    ):
        open_engine(write_bundle(tmp_path / "new", EngineInfo("new", "1", ENGINE)))


@needs_rtx
def test_built_with_another_version_of_the_library(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "small", _rtx("1.6.0.99"))
    with pytest.raises(EngineUnavailable) as caught:
        open_engine(bundle)
    for part in (f"tensorrt-rtx 1.6.0.99, but {RTX} is installed", "==1.6.0.99'", "isnet_trt.build", "'onnxruntime'"):
        assert part in str(caught.value)


@needs_rtx
@no_gpu
def test_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"needs an NVIDIA GPU and its driver: .*engine='onnxruntime'"):
        open_engine(write_bundle(tmp_path / "small", _rtx()))


@needs_rtx
def test_refusals_import_no_engine_library(tmp_path: Path) -> None:
    """Importing a CUDA library where it cannot work may abort a process; the manifest is asked first."""
    bundle = write_bundle(tmp_path / "small", _rtx("0.1"))
    command = (
        "import sys; from isnet_trt.bundle import read_bundle; from isnet_trt.runtime.opening import open_engine\n"
        "from isnet_trt.errors import EngineUnavailable\n"
        "try: open_engine(read_bundle(sys.argv[1]))\n"
        "except EngineUnavailable: print([m for m in sys.modules if m.split('.')[0] in"
        " ('onnxruntime', 'tensorrt', 'tensorrt_rtx', 'cuda', 'torch', 'onnx')])"
    )
    assert run_python("-c", command, bundle.folder, check=True).stdout.strip() == "[]"


def test_onnx_runtime_bundles_run_under_any_version(tmp_path: Path) -> None:
    info = write_bundle(tmp_path / "small", EngineInfo("onnxruntime", "0.0.1", "model.onnx")).manifest.engine
    check_engine(info)


@needs_rtx
def test_version_without_import_is_the_modules() -> None:
    assert RTX is not None
    assert runs_engine_of(RTX, library("tensorrt-rtx").load().__version__, False)


@no_tensorrt
def test_missing_library_says_what_to_install() -> None:
    with pytest.raises(EngineUnavailable, match=r"pip install '\.\[gpu\]'"):
        library("tensorrt").load()


@pytest.mark.parametrize("kind", KINDS)
def test_each_library_describes_itself(kind: str) -> None:
    described = library(kind)
    assert described.kind == kind
    assert "fp32" in described.precisions
    assert set(described.precisions) <= set(PRECISIONS)
    assert described.needs_gpu or kind == PORTABLE


def test_an_engine_of_an_unknown_library_cannot_run_here() -> None:
    with pytest.raises(EngineUnavailable, match=r"'new' is unknown.*engine='onnxruntime'"):
        check_engine(EngineInfo("new", "1", ENGINE))
