"""Which version of a library runs which engine."""

from __future__ import annotations

import pytest

from isnet_trt.bundle import ENGINE
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines import tensorrt_family
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.tensorrt import LIBRARY
from isnet_trt.engines.tensorrt_api import runs_engine_of
from isnet_trt.errors import EngineUnavailable


@pytest.mark.parametrize(
    ("installed", "built", "compatible", "runs"),
    [
        ("10.13.3.9", "10.13.3.9", False, True),
        ("10.13.3.9.post1", "10.13.3.9", False, True),
        ("10.13.3.9.post1", "10.13.3.9", True, True),
        ("1.7.1.116", "1.7.1.116+cu13", False, True),
        ("1.7.1.116", "1.7.1.11", False, False),
        ("1.7.1", "1.7.1.116", False, False),
        ("", "1.7", False, False),
        ("10.14.0", "10.13.3.9", False, False),
        ("10.14.0", "10.13.3.9", True, True),
        ("10.9.1", "10.13.3.9", True, False),
        ("11.0.0", "10.13.3.9", True, False),
    ],
)
def test_runs_engine_of(installed: str, built: str, compatible: bool, runs: bool) -> None:
    assert runs_engine_of(installed, built, compatible) == runs


def test_the_manifest_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA Double", "8.9", "CUDA 13.0")
    monkeypatch.setattr(type(LIBRARY), "installed_version", lambda self: "10.14.0")
    monkeypatch.setattr(tensorrt_family, "probe_gpu", lambda: (gpu, ""))
    plain = EngineInfo("tensorrt", "10.13.3.9", ENGINE, ("8.9",), context="native")
    with pytest.raises(EngineUnavailable, match="runs only under the version that built it; pip install"):
        LIBRARY.check(plain)
    lasting = EngineInfo("tensorrt", "10.13.3.9", ENGINE, ("8.9",), context="native", version_compatible=True)
    assert LIBRARY.check(lasting) is gpu
    monkeypatch.setattr(type(LIBRARY), "installed_version", lambda self: "11.0.0")
    with pytest.raises(EngineUnavailable, match="or a later one of the same major version"):
        LIBRARY.check(lasting)
