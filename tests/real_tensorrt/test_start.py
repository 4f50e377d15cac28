"""How building and opening end where TensorRT does not start: without a driver, and with one on which CUDA fails.

An error of ours each time; no process ends by a signal (`conftest.run` asserts it).
"""

from __future__ import annotations

import re
from pathlib import Path

import fake_libcuda
import numpy as np
import pytest
from children import explained
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


TOO_OLD = """
from isnet_trt.engines import tensorrt_install
from isnet_trt.engines.tensorrt import LIBRARY
from isnet_trt.errors import IsnetError
print(tensorrt_install.toolkit(LIBRARY.load())[0])
try:
    LIBRARY.start_builder()
except IsnetError as error:
    print(f"{type(error).__name__}: {error}")
"""

POLYGRAPHY = """
from isnet_trt.cuda.gpu import probe_gpu
from isnet_trt.errors import EngineError
from isnet_trt.export.comparison_backends import _polygraphy_runner
try:
    with _polygraphy_runner("tensorrt", b"engine", None, probe_gpu()[0]):
        print("it runs")
except EngineError as error:
    print(error)
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
    assert ran.returncode == 0, explained(ran)
    runtime, builder = ran.stdout.splitlines()
    assert runtime.startswith("create_runtime raises: tensorrt 1")
    assert builder.startswith("create_builder raises: tensorrt 1")
    assert "CUDA" in runtime
    assert "CUDA" in builder


def test_a_build_ends_with_an_error_before_the_export(run: Run, driver: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    ran = run("-m", "isnet_trt.build", "--ckpt", DEMO, "--out", out, "--engine", "tensorrt", variables=driver)
    assert ran.returncode == cli.ERROR, explained(ran)
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
    assert ran.returncode == 0, explained(ran)
    kind, _, message = ran.stdout.partition(": ")
    assert kind == ("EngineError" if driver else "EngineUnavailable")
    assert "tensorrt" in message


@pytest.mark.parametrize("version", ["11080", "12020"])
def test_a_driver_too_old_is_found_before_the_library_is_asked(run: Run, tmp_path: Path, version: str) -> None:
    """With both versions and what to do; the driver of CUDA 12.2 suffices for a TensorRT that was built for CUDA 12."""
    variables = {**fake_libcuda.compile_driver(tmp_path), "FAKE_DRIVER_VERSION": version}
    ran = run("-c", TOO_OLD, variables=variables)
    assert ran.returncode == 0, explained(ran)
    built, message = ran.stdout.splitlines()
    driver = f"{int(version) // 1000}.{int(version) % 1000 // 10}"
    if int(built) > int(version) // 1000:
        assert re.search(rf"EngineUnavailable: tensorrt 1\S+ was built for CUDA {built}\.\d, and the NVIDIA ", message)
        assert f"driver supports CUDA {driver} only: install a driver for CUDA {built} (" in message
    else:
        assert message.startswith("EngineError: tensorrt 1")


@pytest.mark.parametrize("status", ["34", "100", "803"])
def test_a_driver_that_does_not_start(run: Run, tmp_path: Path, status: str) -> None:
    variables = {**fake_libcuda.compile_driver(tmp_path), "FAKE_DRIVER_INIT": status}
    ran = run("-c", TOO_OLD, variables=variables)
    assert ran.returncode == 0, explained(ran)
    assert f"({status}) to cuInit; " in ran.stdout or f"error {status} to cuInit; " in ran.stdout


def test_polygraphys_runner_has_a_runtime_of_ours(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("polygraphy")
    ran = run("-c", POLYGRAPHY, variables=fake_libcuda.compile_driver(tmp_path))
    assert ran.returncode == 0, explained(ran)
    assert " creates no Runtime: createInferRuntime: " in ran.stdout


def test_reducing_a_graph_invents_no_refusal(run: Run, driver: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    weights = {"w": np.ones((2, 3, 1, 1), np.float32)}
    graph = save_network(tmp_path / "small.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], 2, weights)
    part = tmp_path / "part.onnx"
    ran = run("-m", "isnet_trt.export.compare", graph, "tensorrt", "--reduce", part, variables=driver)
    assert ran.returncode == cli.ERROR, explained(ran)
    assert "tensorrt could not be tried (exit status 2), so what it refuses is not known" in ran.stderr
    assert ran.stdout == ""
    assert not part.exists()


def test_a_trial_is_no_refusal(run: Run, driver: dict[str, str], tmp_path: Path) -> None:
    """A graph is refused with another exit status than a library that cannot be asked."""
    weights = {"w": np.ones((2, 3, 1, 1), np.float32)}
    graph = save_network(tmp_path / "small.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], 2, weights)
    ran = run("-m", "isnet_trt.engines.trial", "tensorrt", graph, variables=driver)
    assert ran.returncode == cli.ERROR, explained(ran)
    assert ran.stdout == ""
