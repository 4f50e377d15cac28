"""Sets of kernels that do not compile, or not all of them, cost the tests that need them and no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from children import explained

from isnet_trt.errors import BuildError
from tests.interpreter import NEEDED, ROOT
from tests.kernels import variants


class Compiler:
    """In the place of `subprocess.run`: how often it ran, and what does not compile, as a whole or in part."""

    def __init__(self, broken: str = "", partly: str = "") -> None:
        self.broken, self.partly, self.runs = broken, partly, 0

    def __call__(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        self.runs += 1
        folder, arch = Path(command[command.index("--out") + 1]), command[command.index("--arch") + 1]
        if folder.name == self.broken:
            return subprocess.CompletedProcess(command, 2, "", "error: no such\noption")
        (folder / arch).mkdir(parents=True, exist_ok=True)
        (folder / arch / "launch.json").write_text("{}", "utf-8")
        partly = folder.name == self.partly
        return subprocess.CompletedProcess(command, int(partly), "", "1 of 2 kernels do not compile: two" * partly)


def test_a_set_that_does_not_compile_is_tried_once_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler("w32", "300")
    monkeypatch.setattr(variants.subprocess, "run", compiler)
    messages = variants.compile_sets(tmp_path, (90, 80))
    assert "kernels of set w32 for sm_90: error: no such option" in messages
    assert "kernels of set 300 for sm_80: 1 of 2 kernels do not compile: two" in messages
    assert (len(messages), compiler.runs) == (4, 2 * len(variants.SETS))
    assert variants.compile_sets(tmp_path, (90, 80)) == messages
    assert compiler.runs == 2 * len(variants.SETS)  # what is there, and what is not, is known
    card = SimpleNamespace(multi_processor_count=1)
    monkeypatch.setattr(variants.torch.cuda, "get_device_properties", lambda index: card)
    variant = variants.ahead_of_time(tmp_path, 90, "9.0")
    assert variant.name == "sm_90 cubin"
    with pytest.raises(BuildError, match="kernels of set w32 for sm_90: error: no such option"):
        variant.kernels("w32")
    compiler.broken = compiler.partly = ""
    assert variants.compile_sets(tmp_path, (90, 80), retry=True) == []
    assert compiler.runs == 2 * len(variants.SETS) + 4


@NEEDED
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
    assert ran.returncode == 1, explained(ran)
    assert "1 of 2 kernels do not compile: kernel finite_fp32 cannot be compiled for sm_80: no reason" in ran.stderr
    assert list(json.loads((tmp_path / "sm_80" / "launch.json").read_text("utf-8"))["kernels"]) == ["resize"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ran.returncode != 0, explained(ran)
    assert "BuildError: kernel finite_fp32 cannot be compiled" in ran.stderr
