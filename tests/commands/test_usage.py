"""``--help`` of each command line, started as the documentation starts it, and arguments that make no sense."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from children import CHECKOUT, run_python

from benchmarks import networks
from isnet_trt import cli
from isnet_trt.commands import build, evaluate, predict, qat
from isnet_trt.errors import SettingsError
from isnet_trt.training import DEMO_CHECKPOINT


@pytest.mark.parametrize(
    ("module", "texts"),
    [
        ("build", ()),
        ("predict", ("_labels.png", "--preset ms-flip", "Exit status", "--no-softmax-before-resize")),
        ("evaluate", ("--dataset scenes", "--against", "torchrun", "Exit status", "evaluation.json")),
    ],
)
def test_help_shows_examples_options_and_results(module: str, texts: tuple[str, ...]) -> None:
    page = run_python("-m", f"isnet_trt.{module}", "--help", check=True).stdout
    assert [text for text in ("examples:", *texts) if text not in page] == []


@pytest.mark.parametrize(
    ("command", "required", "wrong"),
    [
        (predict, "bundle image --out out", ("--window 0 5", "--threads x", "--engine cuda", "--mode both")),
        (evaluate, "bundle --dataset lip", ("--limit 0", "--split all", "--device tpu", "--engine caffe")),
        (qat, "--ckpt a.pth --out b.pth", ("--workers -1", "--lr nan", "--epochs 0")),
    ],
    ids=["predict", "evaluate", "qat"],
)
def test_wrong_arguments_end_with_usage(
    command: ModuleType, required: str, wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for options in wrong:
        with pytest.raises(SystemExit) as ended:
            command.main(f"{required} {options}".split())
        assert ended.value.code == cli.ERROR
        assert f"argument {options.split()[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "line", "message"),
    [
        (evaluate, ". --dataset lip --against-engine torch", "--against-engine has no effect without --against:"),
        (evaluate, ". --dataset lip --weights ema", "--weights ema is for checkpoints"),
        (evaluate, ". --dataset lip --against . --recipe r", "--recipe r is for checkpoints"),
        (build, "--ckpt a.pth --out b --data d", "--data has no effect without --score-on:"),
        (build, "--ckpt a.pth --out b --calib-inputs 3", "--calib-inputs has no effect without --calib:"),
        (build, "--ckpt a.pth --out b --rest bf16 --precision fp16", "--rest has no effect with --precision fp16"),
        (networks, "--resume", "--resume has no effect without --out:"),
    ],
)
def test_options_without_effect_are_refused(command: ModuleType, line: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        command.main(line.split())


LACKING = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {lacking!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
for line in {lines!r}:
    module, *sys.argv[1:] = line.split()
    sys.modules.pop(module, None)  # an earlier command may have imported it, of which runpy warns
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        print(line.split()[0], ended.code, file=sys.stderr)
"""
"""Runs command lines in one process that lacks packages."""
EXTRAS = (
    *("torch", "onnx", "onnxscript", "onnx_graphsurgeon", "ml_dtypes", "polygraphy", "matplotlib", "triton", "scipy"),
    *("yaml", "PIL", "tensorboard", "pynvml", "psutil", "tabulate", "markdown_it", "cuda", "tensorrt", "tensorrt_rtx"),
)
MODULES = (
    *("isnet_trt", "isnet_trt.build", "isnet_trt.predict", "isnet_trt.evaluate", "isnet_trt.demo", "isnet_trt.bundle"),
    *(f"isnet_trt.training.{name}" for name in ("train", "qat", "recipes", "data", "scenes")),
    *("isnet_trt.export.compare", "isnet_trt.kernels.compile", "benchmarks"),
    *(f"benchmarks.{name}" for name in ("accuracy", "growth", "kernels", "latency", "limit", "postprocess")),
    *(f"benchmarks.{name}" for name in ("precision", "regress", "report", "suite")),
)


def run_lacking(lines: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return run_python(
        "-W", "ignore", "-c", LACKING.format(lacking=EXTRAS, lines=tuple(lines)), check=True, cwd=CHECKOUT
    )


def test_every_command_has_its_help_without_optional_packages() -> None:
    result = run_lacking([f"{module} --help" for module in MODULES])
    assert result.stderr.splitlines() == [f"{module} 0" for module in MODULES]
    assert result.stdout.count("usage: ") == len(MODULES)


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("isnet_trt.build --ckpt {demo} --out {out}", "build"),
        ("isnet_trt.demo --out {out}", "build"),
        ("isnet_trt.evaluate {demo} --dataset scenes --limit 1 --out {out}", "train"),
        ("isnet_trt.training.train --out {out}", "train"),
        ("isnet_trt.training.qat --ckpt {demo} --out {out}", "build,train"),
        ("isnet_trt.training.recipes own.yaml", "train"),
        ("isnet_trt.export.compare {out} {out}", "build"),
        ("benchmarks.suite --out {out}", ""),
        ("benchmarks.precision", ""),
        ("benchmarks.postprocess", ""),
    ],
)
def test_a_command_that_needs_more_packages_names_them_in_one_line(line: str, extra: str, tmp_path: Path) -> None:
    output = run_lacking([line.format(demo=DEMO_CHECKPOINT, out=tmp_path / "out")]).stderr
    message, status = output.splitlines()[-2:]
    assert "Traceback" not in output
    assert message.startswith("error: ")
    assert f"pip install '.[{extra}" in message
    assert status == f"{line.split()[0]} {cli.ERROR}"
