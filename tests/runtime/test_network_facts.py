"""Segmenter around networks other than ISNet: every fact against `network_reference`, on pictures of odd sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import network_reference
import numpy as np
import pytest
import tiny_model

from isnet_trt import Inference, Segmenter
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.errors import EngineError, SettingsError
from isnet_trt.pictures.preprocess import resize
from isnet_trt.settings import Labels, NetworkFacts, Preprocess

PICTURE = np.random.default_rng(7).integers(0, 256, (75, 131, 3), np.uint8)
AS_IS = Preprocess(None, mean=(100, 120, 140), std=(50, 60, 70))
BGR = dataclasses.replace(AS_IS, channel_order="bgr")
EXACT = dataclasses.replace(AS_IS, size=(60, 90), keep_ratio=False)
INFERENCES = {
    "whole": Inference(),
    "whole-ms": Inference(scales=(0.6, 1.0, 1.7), flip=True),
    "whole-ms-probabilities": Inference(scales=(0.6, 1.0, 1.7), flip=True, softmax_before_resize=True),
    "slide-ms": Inference("slide", (50, 67), (31, 45), (0.6, 1.0, 1.7), flip=True),
    "slide-ms-probabilities": Inference("slide", (50, 67), (31, 45), (0.6, 1, 1.7), True, softmax_before_resize=True),
}
Case = tuple[int, int, NetworkFacts, Preprocess]
"""Output channels, output stride, facts and preprocessing."""
CASES: dict[str, Case] = {
    "bgr": (5, 8, NetworkFacts(), dataclasses.replace(BGR, size=(160, 90))),
    "padded": (5, 8, NetworkFacts(size_multiple=32), AS_IS),
    "padded-all-round": (4, 4, NetworkFacts(size_multiple=16, padding_side="centre", padding_value=(9, 99, 255)), BGR),
    "enlarged": (3, 4, NetworkFacts(upsampling="half_pixel"), AS_IS),
    "aligned": (3, 8, NetworkFacts(upsampling="align_corners"), EXACT),
    "aligned-padded": (3, 8, NetworkFacts(upsampling="align_corners", size_multiple=8, padding_value=(0, 0, 0)), AS_IS),
    "full-size": (6, 1, NetworkFacts(), AS_IS),
    "full-size-padded": (6, 1, NetworkFacts(size_multiple=16, padding_side="centre"), AS_IS),
    "softmax": (4, 4, NetworkFacts("softmax", size_multiple=8), AS_IS),
    "sigmoid": (4, 8, NetworkFacts("sigmoid", upsampling="half_pixel"), AS_IS),
    "one-class": (1, 4, NetworkFacts(threshold=0.35, size_multiple=32), BGR),
    "one-class-sigmoid": (1, 1, NetworkFacts("sigmoid", threshold=0.6, size_multiple=32), BGR),
    "one-class-plain": (1, 8, NetworkFacts(threshold=0.5), AS_IS),
}  # fmt: skip


def opened(case: str, folder: Path, **options: Any) -> Segmenter:
    channels, stride, facts, preprocess = CASES[case]
    path = folder / "network.onnx"
    tiny_model.write_model(path, channels, stride=stride, activation=facts.activation)
    engine = open_onnx(path, threads=1)
    names = tiny_model.labels(max(channels, 2), ((1, 2),) if channels > 2 else ())
    return Segmenter(engine, names, preprocess, None, stride, network=facts, threads=1, **options)


def normalised(picture: np.ndarray, rule: Preprocess) -> np.ndarray:
    """A picture of the test size as the network gets it, from the definition: (3, H, W) float64."""
    pixels = picture[:, :, ::-1] if rule.channel_order == "bgr" else picture
    return ((pixels.astype(np.float64) - rule.mean) / rule.std).transpose(2, 0, 1)


def reference(segmenter: Segmenter, picture: np.ndarray, inference: Inference) -> np.ndarray:
    """Merged scores of a picture (already of the test size for rules that resize)."""
    facts, rule = segmenter.network, segmenter.preprocess
    value = rule.mean if facts.padding_value is None else facts.padding_value
    padding = (np.asarray(value) - rule.mean) / rule.std
    pairs = segmenter.labels.flip_pairs
    planes = normalised(picture, rule)
    return network_reference.scores(segmenter.engine.run, facts, planes, padding, PICTURE.shape[:2], inference, pairs)


@pytest.mark.parametrize("name", INFERENCES)
@pytest.mark.parametrize("case", CASES)
def test_labels_and_probabilities_are_those_of_the_rules(case: str, name: str, tmp_path: Path) -> None:
    inference = INFERENCES[name]
    with opened(case, tmp_path, batch=3) as segmenter:
        want = reference(segmenter, resize(PICTURE, segmenter.preprocess), inference)
        result = segmenter(PICTURE, inference=inference, probabilities=True, points=[(3, 5), (70, 130)])
        expected, margin = network_reference.labels(want, segmenter.network, inference)
        clear = margin > 1e-4 * max(want.std(), 0.01)
        assert clear.mean() > 0.99
        assert (result.labels == expected)[clear].all()
        assert len(np.unique(expected)) > 1
        averaged = inference.softmax_before_resize or segmenter.network.activation != "none"
        if len(want) == 1:
            want = np.concatenate([1 - want if averaged else 0 * want, want])
        assert result.scores == pytest.approx(want[:, [3, 70], [5, 130]].T, abs=2e-4 * max(want.std(), 0.1))
        if not averaged:
            want = np.exp(want - want.max(0))
            want /= want.sum(0)
        assert result.probabilities.shape == (segmenter.labels.count, *PICTURE.shape[:2])
        assert abs(result.probabilities - want).max() < 2e-4


def test_a_bundle_of_one_class_in_every_form(tmp_path: Path) -> None:
    network = NetworkFacts("sigmoid", threshold=0.6, size_multiple=32)
    labels = Labels(("paper", "text"), ((255, 255, 255), (200, 0, 0)))
    folder = tiny_model.write_bundle(tmp_path / "text", labels, network=network, preprocess=BGR, output_stride=4)
    with Segmenter.open(folder, threads=1) as segmenter:
        result = segmenter(PICTURE, probabilities=True, points=[(0, 0)])
        want = reference(segmenter, PICTURE, Inference())[0]
        clear = abs(want - 0.6) > 1e-4
        assert (result.labels == (want > 0.6))[clear].all()
        assert result.labels.dtype == np.uint8
        assert sorted(result.shares()) == [0, 1]
        assert result.probabilities.sum(0) == pytest.approx(1)
        assert result.scores[0] == pytest.approx([1 - want[0, 0], want[0, 0]], abs=1e-5)
        assert (result.colours()[result.labels == 1] == (200, 0, 0)).all()
        for form in ("labels", "overlay", "palette", "color", "probabilities", "polygons"):
            result.save(tmp_path / form, form, image=PICTURE)
            assert (tmp_path / form).stat().st_size > 0
        assert segmenter.score(normalised(PICTURE, BGR)[None].astype(np.float32), (9, 9)).shape == (2, 9, 9)
        assert segmenter.logits(np.zeros((1, 3, 32, 64), np.float32)).shape == (1, 1, 8, 16)
        assert segmenter.stats().calls == 1


def test_one_class_and_a_threshold_belong_together(tmp_path: Path) -> None:
    engine = tiny_model.open_tiny(tmp_path, 1)
    with pytest.raises(SettingsError, match="one class without a threshold: every label would be 0"):
        Segmenter(engine, tiny_model.labels(1, ()), AS_IS)
    with pytest.raises(SettingsError, match="separates two classes, background and one other, not 5"):
        Segmenter(engine, tiny_model.labels(5), AS_IS, network=NetworkFacts(threshold=0.5))
    engine.close()


def test_a_network_of_other_channels_is_an_error(tmp_path: Path) -> None:
    engine = tiny_model.open_tiny(tmp_path, 2)
    segmenter = Segmenter(engine, tiny_model.labels(2, ()), AS_IS, network=NetworkFacts(threshold=0.5))
    with segmenter, pytest.raises(EngineError, match="for 1 class at stride 8"):
        segmenter(PICTURE)
