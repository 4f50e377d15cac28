"""``--help`` of each command line, started as the documentation starts it, and arguments that make no sense."""

from __future__ import annotations

from types import ModuleType

import pytest
from children import run_python

from isnet_trt import cli
from isnet_trt.commands import evaluate, predict, qat


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
