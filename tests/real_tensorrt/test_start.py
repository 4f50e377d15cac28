"""How building and opening end where TensorRT does not start: without a driver, and with one on which CUDA fails.

An error of ours each time; no process ends by a signal (`conftest.run` asserts it).
"""

from __future__ import annotations

from pathlib import Path

import fake_libcuda
import numpy as np
import pytest
from marks import no_gpu
from onnx import helper
from onnx_networks import save_network
from small_bundle import write_bundle

from isnet_trt import cli
from isnet_trt.bundle import ENGINE
from isnet_trt.engines.info import EngineInfo
from tests.real_tensorrt.conftest import Run
from tests.real_tensorrt.usage import ROOT

pytestmark = [no_gpu, *fake_libcuda.NEEDED]
DEMO = ROOT / "training" / "assets" / "isnet_demo.pth"
OBJECTS = """
import sys, tensorrt
from isnet_trt.engines.tensorrt import LIBRARY
from isnet_trt.engines.tensorrt_api import collecting_logger
from isnet_trt.errors import EngineError
for name in ("create_runtime", "create_builder"):
    try:
        getattr(LIBRARY, name)(collecting_logger(tensorrt))
    except EngineError as error:
        print(name, "raises:", error)
"""

OPEN = """
import sys
from isnet_trt import Segmenter
from isnet_trt.errors import IsnetError
try:
    Segmenter.open(sys.argv[1])
except IsnetError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(params=["no driver", "driver without CUDA"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a process: without a driver, or with the tests' own, with which CUDA's runtime fails."""
    if request.param == "no driver":
        return {}
    folder = tmp_path / "driver"
    folder.mkdir()
    return fake_libcuda.compile_driver(folder)


def test_a_runtime_and_a_builder_are_errors(run: Run, driver: dict[str, str]) -> None:
    """Also when the interpreter ends and destroys what the library has returned."""
    ran = run("-c", OBJECTS, variables=driver)
    assert ran.returncode == 0, ran.stderr[-2000:]
    runtime, builder = ran.stdout.splitlines()
    assert runtime.startswith("create_runtime raises: tensorrt 1")
    assert builder.startswith("create_builder raises: tensorrt 1")
    assert "CUDA" in runtime
    assert "CUDA" in builder


def test_a_build_ends_with_an_error_before_the_export(run: Run, driver: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    ran = run("-m", "isnet_trt.build", "--ckpt", DEMO, "--out", out, "--engine", "tensorrt", variables=driver)
    assert ran.returncode == cli.ERROR, ran.stdout + ran.stderr
    assert "tensorrt" in ran.stderr.lower()
    assert "Traceback" not in ran.stderr
    assert "export" not in ran.stdout
    assert not out.exists()


def test_a_bundle_of_another_machine_is_not_opened(run: Run, driver: dict[str, str], tmp_path: Path) -> None:
    """Its engine is of the version that is installed, as far as its manifest says."""
    version = run("-c", "from isnet_trt.engines.tensorrt import LIBRARY; print(LIBRARY.installed_version())").stdout
    info = EngineInfo("tensorrt", version.strip(), ENGINE, context="native")
    write_bundle(tmp_path / "bundle", info)
    ran = run("-c", OPEN, tmp_path / "bundle", variables=driver)
    assert ran.returncode == 0, ran.stderr[-2000:]
    kind, _, message = ran.stdout.partition(": ")
    assert kind == ("EngineError" if driver else "EngineUnavailable")
    assert "tensorrt" in message


def test_a_trial_is_no_refusal(run: Run, driver: dict[str, str], tmp_path: Path) -> None:
    """A graph is refused with another exit status than a library that cannot be asked."""
    weights = {"w": np.ones((2, 3, 1, 1), np.float32)}
    graph = save_network(tmp_path / "small.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], 2, weights)
    ran = run("-m", "isnet_trt.engines.trial", "tensorrt", graph, variables=driver)
    assert ran.returncode == cli.ERROR, ran.stdout + ran.stderr
    assert ran.stdout == ""
