"""Loops around the session of a bundle give the labels of the runtime, and those that cannot say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_bundle import write_bundle

from benchmarks import pipelines, results
from benchmarks.peers import PEERS, Missing, Setup, load
from benchmarks.rounds import Case
from isnet_trt import Inference, Segmenter
from isnet_trt.errors import SettingsError
from isnet_trt.settings import Preprocess

IMAGE = np.random.default_rng(8).integers(0, 256, (6, 8, 3), np.uint8).repeat(12, 0).repeat(12, 1)[:61, :93]
SLIDE = Inference("slide", (33, 65), (21, 43))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loops") / "bundle"
    write_bundle(folder, preprocess=Preprocess((61, 93), keep_ratio=False))
    return folder


@pytest.mark.parametrize("inference", [Inference(), SLIDE], ids=["whole", "windows"])
@pytest.mark.parametrize("flip", [False, True])
def test_loops_give_the_labels_of_the_runtime(inference: Inference, flip: bool, bundle: Path) -> None:
    settings = inference.replace(flip=flip, softmax_before_resize=flip)
    with Segmenter.open(bundle, threads=1) as segmenter:
        expected = segmenter(IMAGE, inference=settings).labels
    outputs = [load(Setup(name, name, 1, bundle=bundle)).run(IMAGE, settings) for name in ("torch-loop", "numpy-loop")]
    assert outputs[0].clear is not None
    clear = outputs[0].clear()
    assert clear.mean() > 0.5
    assert len(np.unique(expected)) > 1
    for output in outputs:
        assert set(output.stages) == {"engine", "merge"}
        np.testing.assert_array_equal(output.labels[clear], expected[clear])


def test_a_loop_without_a_bundle_says_so() -> None:
    with pytest.raises(Missing, match="needs a bundle"):
        load(Setup("numpy-loop", "numpy-loop", 1))


def test_transformers_takes_whole_pictures_only() -> None:
    for name in pipelines.PEERS:
        able = [
            settings
            for settings, inference in pipelines.SETTINGS.items()
            if pipelines._takes(Setup(name, name, 1), Case("case", IMAGE, inference, Preprocess((61, 93))))
        ]
        assert able == (["whole"] if name.startswith("transformers") else list(pipelines.SETTINGS))
        assert name in PEERS


def test_a_run_is_continued(tmp_path: Path) -> None:
    """Records of the file are kept, and those that it has are not measured: no library of others is imported."""
    title = pipelines._title((64, 96), 9, "whole")
    record = {"kind": "pipeline", "case": title, "picture": [64, 96], "contenders": []}
    out = tmp_path / "result.json"
    results.write(out, results.result([record], []))
    options = ["--image-size", "64", "96", "--classes", "9", "--settings", "whole", "--out", str(out)]
    assert pipelines.main([*options, "--resume"]) == 0
    data = results.read(out)
    assert data["records"] == [{**record, "date": data["records"][0]["date"]}]
    data["machine"]["processor"] = "another"
    results.write(out, data)
    with pytest.raises(SettingsError, match="results do not mix"):
        pipelines.main([*options, "--resume"])
