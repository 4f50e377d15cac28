"""Iterations of training on a GPU: `benchmarks.training` at the size of a published model."""

from __future__ import annotations

import pytest

from benchmarks import results, training
from tests.gpu.record import Record
from tests.gpu.target import Target

AIM = 150
"""Crops a second, of the fastest variant. The H100 of docs/gpu.md had 67 in bfloat16, eagerly."""
REAL = ["--recipe", "isnet_resnet50os8_ade20k", "--batch", "16", "--variants", "bf16", "bf16, SGD not fused"]
REAL += ["bf16, compiled", "--profile"]
SMALL = ["--batch", "2", "--crop", "40", "56", "--variants", "float32", "--iterations", "1", "--rounds", "1"]
"""In a dry run."""


@pytest.mark.gpu("training", 8, 600, seconds=180)
def test_training(record: Record, target: Target) -> None:
    """R50 ADE, batch 16, bfloat16, channels last: fused SGD, SGD not fused, compiled; the slowest kernels."""
    out, real = target.folder / "training.json", target.device == "cuda"
    out.unlink(missing_ok=True)
    effort = ["--rounds", "3", "--iterations", "5"] if target.quick and real else []
    options = [*(REAL if real else SMALL), *effort, "--device", target.device, "--out", str(out)]
    training.main(options)
    content = results.read(out)
    rows = [row for found in content["records"] for row in found["rows"]]
    for row in rows:
        record.row(**row)
    for gap in content["gaps"]:
        record.skip(gap["what"], gap["why"])
    best = max((row["crops/s"] for row in rows), default=0.0)
    record.figure("crops/s", best)
    record.figure("aim crops/s", AIM)
    if real:
        record.require(best >= AIM, f"{best:.0f} crops a second, the aim is {AIM}")
