"""The trained demo network through the pipeline, on a drawn scene: a real network's near ties, pairs and presets."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from cuda_double import Gpu, open_device
from cuda_host import HostEngine, QueuedKernels, ReferenceKernels
from exports import export_once

from isnet_trt import Segmenter
from isnet_trt.cuda.pipeline import Pipeline
from isnet_trt.cuda.plan import Model
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.export.graph import save_graph
from isnet_trt.merging.merge import Head
from isnet_trt.pictures.interop import image_from
from isnet_trt.recipes import recipe
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from isnet_trt.training.scenes import draw_scene

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform"),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "model.onnx"
    save_graph(export_once(load_model(load_checkpoint(DEMO_CHECKPOINT)), "isnet_demo"), path)
    return path


@pytest.mark.parametrize("preset", ["default", "ms_flip"])
def test_label_maps_are_those_of_the_host(network: Path, preset: str) -> None:
    model = recipe("isnet_demo")
    inference = getattr(model, preset)
    head = Head(model.labels.count, model.architecture.output_stride, model.labels.flip_pairs)
    gpu = Gpu(total=1 << 32)
    engine = HostEngine(gpu, network, head.classes, head.stride)
    kernels = QueuedKernels(gpu, ReferenceKernels(head.classes))
    pipeline = Pipeline(open_device(gpu), kernels, engine, Model(head, model.preprocess, 4, True))
    host = Segmenter(open_onnx(network), model.labels, model.preprocess, inference, head.stride)
    image = draw_scene(21, 256, 512).image
    wanted = host(image).labels
    for _ in range(2):
        made = pipeline(image_from(image), inference)
        assert made is not None
        assert (made == wanted).mean() >= 0.9999
    assert len(np.unique(wanted)) > 4
    assert gpu.peak <= pipeline.plan((256, 512), inference).bytes
    pipeline.close()
    gpu.nothing_is_left()
