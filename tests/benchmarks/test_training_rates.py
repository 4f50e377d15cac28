"""The training benchmark on tiny crops: a rate for each variant, and a gap for one that cannot run."""

import json
from pathlib import Path

import pytest

from benchmarks import training


@pytest.mark.slow
def test_variants_are_timed_and_one_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = training.Contender.iterate

    def iterate(contender: training.Contender, count: int) -> None:
        if contender.variant.compile:
            raise RuntimeError("no compiler was found")
        real(contender, count)

    monkeypatch.setattr(training.Contender, "iterate", iterate)
    names = ["float32", "bf16, SGD not fused", "bf16, compiled"]
    options = ["--batch", "2", "--iterations", "1", "--rounds", "1", "--device", "cpu", "--threads", "1", "--profile"]
    status = training.main(["--crop", "40", "56", *options, "--variants", *names, "--out", str(tmp_path / "r.json")])
    assert status == 1
    result = json.loads((tmp_path / "r.json").read_text())
    (record,) = result["records"]
    assert [row["variant"] for row in record["rows"]] == names[:2]
    assert all(row["crops/s"] > 0 for row in record["rows"])
    # The same products whatever the type, forwards and backwards.
    assert len({row["TFLOP an iteration"] for row in record["rows"]} - {0.0}) == 1
    assert [(gap["what"], gap["why"]) for gap in result["gaps"]] == [(names[2], "RuntimeError: no compiler was found")]
    assert "aten::convolution_backward" in capsys.readouterr().out
