"""The GPU check's sharing and refusals on the real cuda-bindings; what becomes of kernels that do not compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_libcuda
import pytest
from gpu_check_answers import Collected

from benchmarks.gpu_check import forms, kernels
from benchmarks.gpu_check.check import Setup
from isnet_trt.errors import BuildError

pytestmark = fake_libcuda.NEEDED
ROOT = Path(__file__).parents[2]


def test_sharing_and_refusals(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver")
    command = [sys.executable, "-m", "isnet_trt.kernels.compile", "--arch", "sm_89", "--only", "resize"]
    subprocess.run([*command, "--out", str(tmp_path / "150")], check=True, cwd=ROOT, capture_output=True)
    script = Path(__file__).parent / "gpu_check_on_fake_driver.py"
    ran = fake_libcuda.run(tmp_path, script, str(tmp_path), TRITON_INTERPRET="1")
    assert (ran.returncode, ran.stdout) == (0, "as it should be\n"), ran.stderr


class Compiler:
    """In the place of `subprocess.run`: what it is asked, and what of it does not compile."""

    def __init__(self, broken: str = "", partly: str = "") -> None:
        self.broken, self.partly, self.asked = broken, partly, 0

    def __call__(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        self.asked += 1
        folder, arch = Path(command[command.index("--out") + 1]), command[command.index("--arch") + 1]
        if folder.name == self.broken:
            return subprocess.CompletedProcess(command, 2, "", "error: no such\noption")
        (folder / arch).mkdir(parents=True)
        entry = {"registers": 40, "spill_bytes": 0}
        (folder / arch / "launch.json").write_text(json.dumps({"kernels": {"one": entry}}), "utf-8")
        partly = folder.name == self.partly
        return subprocess.CompletedProcess(command, int(partly), "", "1 of 2 kernels do not compile: two" * partly)


def test_kernels_that_do_not_compile_cost_their_folder_and_are_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler("w32", "300")
    monkeypatch.setattr(forms.subprocess, "run", compiler)
    monkeypatch.setattr(forms, "here", lambda: ("9.0", 90))
    monkeypatch.setattr(kernels, "here", lambda: ("9.0", 90))
    answer, setup = Collected(), Setup(folder=tmp_path / "new")
    kernels.compile_here(answer, setup)
    said = [text.split(": ", 1) for text in answer.said]
    assert ["kernels of folder w32 for sm_90", "error: no such option"] in said
    assert ["kernels of folder 300 for sm_80", "1 of 2 kernels do not compile: two"] in said
    assert len(said) == 4
    assert answer.rows[0] == {"arch": "sm_90", "compiled": ["150", "19", "300"]}
    assert compiler.asked == 8
    own = kernels.own_form(setup)
    assert compiler.asked == 8  # what is there, and what is not, is known
    with pytest.raises(BuildError, match="kernels of folder w32 for sm_90: error: no such option"):
        own.kernels("w32")  # type: ignore[attr-defined]
    compiler.broken = compiler.partly = ""
    answer = Collected()
    kernels.compile_here(answer, setup)
    assert (answer.said, compiler.asked) == ([], 12)


def test_a_kernel_that_does_not_compile_is_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    script = """
import sys
from isnet_trt.kernels import compile
plain = compile.compile_kernel
def broken(spec, arch):
    if spec.name == "finite_fp32":
        raise compile.BuildError("kernel finite_fp32 cannot be compiled for sm_80: no reason")
    return plain(spec, arch)
compile.compile_kernel = broken
sys.exit(compile.main(sys.argv[1:]))
"""
    options = ["--arch", "sm_80", "--dtype", "fp32", "--only", "finite", "resize", "--out", str(tmp_path)]
    command = [sys.executable, "-c", script, *options]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run([*command, "--keep-going"], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ran.returncode == 1
    assert "1 of 2 kernels do not compile: kernel finite_fp32 cannot be compiled for sm_80: no reason" in ran.stderr
    assert list(json.loads((tmp_path / "sm_80" / "launch.json").read_text("utf-8"))["kernels"]) == ["resize"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ran.returncode != 0
    assert "BuildError: kernel finite_fp32 cannot be compiled" in ran.stderr
