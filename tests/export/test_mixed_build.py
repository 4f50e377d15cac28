"""``--max-drop`` through the command line: searched, kept within the bound, reported, and taken again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from own_pictures import write_pngs

from isnet_trt import build as command
from isnet_trt import cli
from isnet_trt.bundle import read_bundle
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.scenes import draw_scene

pytestmark = pytest.mark.usefixtures("traced_once")
BOUND = 0.1
"""Points of equal labels: the demo model in uint8 loses about 0.4 on these pictures."""


@pytest.mark.slow
def test_bound_holds_and_the_search_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    street = write_pngs(tmp_path / "street", [draw_scene(seed, 256, 512).image for seed in range(2)])
    options = ["--precision", "int8", "--engine", "onnxruntime", "--calib", street, "--calib-inputs", 4]
    arguments = ["--ckpt", DEMO_CHECKPOINT, "--out", tmp_path / "bundle", *options, "--max-drop", BOUND]
    assert cli.run(command.main, [str(argument) for argument in arguments]) == 0
    assert "sensitivity" in capsys.readouterr().out
    bundle = read_bundle(tmp_path / "bundle")
    report = bundle.manifest.parity
    kept = report["graph"]["kept out"]
    assert 1 <= len(kept) < 20
    # The search compares with the float32 graph, the gate with the checkpoint: a few near ties apart.
    assert 100 * report["agreement"] >= 100 - BOUND - 0.05
    page = (bundle.folder / "precision.md").read_text("utf-8")
    assert "## What stays out of eight bits" in page
    assert f"| {kept[0]} |" in page
    assert {"mix.png", "precision.png"} <= set(bundle.manifest.files)
    stored = tmp_path / "bundle.calibration" / "mix-cpu.json"
    content = json.loads(stored.read_text("utf-8"))
    assert content["skip"] == kept
    assert content["drop"] <= BOUND
    content["skip"] = kept[:-1]  # still first in the ranking, as a stored search is: the second build takes it
    stored.write_text(json.dumps(content), "utf-8")
    assert cli.run(command.main, [*(str(argument) for argument in arguments), "--force"]) == 0
    assert read_bundle(tmp_path / "bundle").manifest.parity["graph"]["kept out"] == kept[:-1]
