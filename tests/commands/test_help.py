"""``--help`` of each command line, started as the documentation starts it."""

from __future__ import annotations

import pytest
from children import run_python


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
