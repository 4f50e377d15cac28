"""Eight bits on the reference's fixtures: how much of each block's output is left."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from golden_files import GOLDEN

from isnet_trt.export.graph import OUTPUT, borders, export_graph
from isnet_trt.export.parity import Picture
from isnet_trt.export.quantise import calibrate, quantise, twin
from isnet_trt.export.sessions import session_of
from isnet_trt.training.model import ISNet
from isnet_trt.training.recipes import recipe

LEAST = {"tensorrt": 0.93, "cpu": 0.95}
"""Cosine of every border and of the logits. The random weights of the fixtures make near ties and long chains of
rounding; ResNet-50 has 0.956 and 0.973 at its worst tensor (the first logits, the last logits)."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["isnet_resnet50os8_ade20k"])
def test_blocks_keep_their_direction(
    name: str, fill: ModuleType, filled: Callable[[str], dict[str, np.ndarray]]
) -> None:
    golden = np.load(GOLDEN / f"golden_{name}.npz")
    model = ISNet(recipe(name).architecture).eval()
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in filled(name).items()})
    image = fill.image(int(golden["seed"]), *map(int, golden["image_hw"]))
    x = np.ascontiguousarray(fill.network_input(image), np.float32)
    proto = export_graph(model, name)
    table = calibrate(proto, [Picture("golden", x)], progress=False)
    tensors = {**borders(proto), "logits": OUTPUT}
    with session_of(proto, tensors.values(), 2) as session:
        exact = session.run(list(tensors.values()), {"image": x})
    for flavour, least in LEAST.items():
        with session_of(twin(quantise(proto, table, flavour)), tensors.values(), 2) as session:
            rounded = session.run(list(tensors.values()), {"image": x})
        pairs = zip(tensors, exact, rounded, strict=True)
        cosines = {key: float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())) for key, a, b in pairs}
        assert min(cosines.values()) > least, (flavour, cosines)
