"""A small model with random weights whose every part matters, and its graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import random_model

from isnet_trt.export.tracing import export_graph
from isnet_trt.training.model import ISNet


@pytest.fixture(scope="session")
def model() -> ISNet:
    return random_model()


@pytest.fixture(scope="session")
def graph(model: ISNet) -> onnx.ModelProto:
    return export_graph(model, "isnet_demo")


@pytest.fixture(scope="session")
def checkpoint(model: ISNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "demo.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def picture() -> np.ndarray:
    """A normalised network input of odd size."""
    return np.random.default_rng(3).standard_normal((1, 3, 77, 105)).astype(np.float32)
