"""The real TensorRT has every name, flag and signature that our sources use, and our plugins work in it. No GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from children import explained, run_python
from marks import builds_rtx

from tests.real_tensorrt.conftest import HERE, Run
from tests.real_tensorrt.usage import CLASSES, MODULES, ROOT, SHARED, files, overridden, used_members, used_names

CONTRACT = HERE / "contract.py"
IN_PROCESS = """
import tensorrt
from isnet_trt.engines.tensorrt_api import collecting_logger, give_back
from isnet_trt.export.engines.tensorrt_family import progress_monitor
logger = collecting_logger(tensorrt)
assert isinstance(logger, tensorrt.ILogger)
logger.log(tensorrt.ILogger.Severity.ERROR, "wrong")
logger.log(tensorrt.ILogger.Severity.VERBOSE, "nothing")
assert logger.errors == ["wrong"], logger.errors
give_back(logger)
assert collecting_logger(tensorrt) is logger and logger.errors == []
monitor = progress_monitor(tensorrt)
assert isinstance(monitor, tensorrt.IProgressMonitor)
monitor.phase_start("tactics", None, 2)
assert monitor.step_complete("tactics", 0) is True
monitor.phase_finish("tactics")
print("done")
"""


def check(ran: str, kind: str) -> None:
    found = json.loads(ran)
    assert found["problems"] == {}, found["version"]
    some = {"ProfilingVerbosity.DETAILED", "LayerInformationFormat.JSON", "TensorIOMode.INPUT", "Runtime"}
    assert some <= set(found["checked"])
    assert len(found["checked"]) >= 80, kind


def test_names_and_signatures(run: Run) -> None:
    ran = run(CONTRACT, "tensorrt")
    assert ran.returncode == 0, explained(ran)
    check(ran.stdout, "tensorrt")


@builds_rtx
def test_names_and_signatures_of_tensorrt_rtx() -> None:
    ran = run_python(CONTRACT, "tensorrt_rtx")
    assert ran.returncode == 0, explained(ran)
    check(ran.stdout, "tensorrt_rtx")


def test_loggers_and_progress_monitors(run: Run) -> None:
    assert run("-c", IN_PROCESS).stdout == "done\n"


def test_plugins(run: Run) -> None:
    """Registered, created in both phases, serialised, restored, cloned, deregistered: the tests of the callbacks."""
    tests = ROOT / "tests/cuda/test_cuda_plugins.py"
    options = ("-q", "-n", "0", "-p", "no:cacheprovider", "-k", "not parser")
    ran = run("-m", "pytest", tests, *options, variables={"PLUGIN_LIBRARY": "tensorrt"}, cwd=ROOT)
    assert ran.returncode == 0, explained(ran)
    assert int(re.findall(r"(\d+) passed", ran.stdout)[-1]) >= 7, ran.stdout


def test_what_is_compared_is_what_the_sources_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No file that uses the library is left out, and a new use is seen."""
    pattern = re.compile(rf"\b(?:{'|'.join(MODULES)})\.[A-Z]\w+\.?")
    using = {
        path.relative_to(ROOT).as_posix()
        for folder in ("isnet_trt/engines", "isnet_trt/cuda", "export/engines")
        for path in (ROOT / folder).glob("*.py")
        if pattern.search(path.read_text("utf-8"))
    }
    known = {path.relative_to(ROOT).as_posix() for kind in ("tensorrt", "tensorrt_rtx") for path in files(kind)}
    assert using <= known
    assert {use.owner for use in used_members("tensorrt")} >= set(CLASSES.values())
    assert overridden("tensorrt")["IProgressMonitor"] == {"phase_start": 3, "step_complete": 2, "phase_finish": 1}
    more = tmp_path / "more.py"
    more.write_text("def f(module, config):\n    mode = module.NewMode\n    config.new_call(mode.ON, 1)\n", "utf-8")
    monkeypatch.setattr("tests.real_tensorrt.usage.SHARED", (*SHARED, str(more)))
    assert used_names("tensorrt") >= {"NewMode", "NewMode.ON"}
    assert any(use.name == "new_call" and use.arguments == 2 for use in used_members("tensorrt"))
