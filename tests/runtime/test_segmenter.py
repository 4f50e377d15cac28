"""Segmenter from a picture to a label map, with a real (small) engine."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
import pytest
import tiny_model
import torch
from children import PATIENCE
from plain_inference import scores as plain_scores

from isnet_trt import Inference, Segmenter
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.errors import EngineError, ImageError, SettingsError
from isnet_trt.pictures.preprocess import normalise, resize
from isnet_trt.settings import Preprocess

CLASSES = 11
RULE = Preprocess((2048, 96))
SLIDE = Inference("slide", (64, 80), (43, 53), (0.75, 1.0, 1.5), flip=True, softmax_before_resize=True)
PRESETS = {"default": Inference(), "ms-flip": SLIDE}
PICTURE = np.random.default_rng(7).integers(0, 256, (75, 130, 3), np.uint8)


@pytest.fixture
def segmenter(tmp_path):
    engine = tiny_model.open_tiny(tmp_path, CLASSES)
    with Segmenter(engine, tiny_model.labels(CLASSES), RULE, presets=PRESETS, threads=2) as opened:
        yield opened


def plain(picture, inference, output):
    """The rules in float64 torch, around the same network."""
    kernel = torch.from_numpy(tiny_model.weights(CLASSES)).double()

    def network(x):
        return torch.nn.functional.conv2d(x, kernel, stride=tiny_model.STRIDE, padding=3)

    x = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None].double()
    return plain_scores(network, x, output, inference, ((1, 2),)).numpy()


def test_label_map_is_that_of_the_rules(segmenter):
    for inference in PRESETS.values():
        result = segmenter(PICTURE, inference=inference)
        want = plain(normalise(resize(PICTURE, RULE), RULE), inference, PICTURE.shape[:2])
        best = np.sort(want, axis=0)
        clear = best[-1] - best[-2] > 1e-4 * want.std()
        assert clear.mean() > 0.99
        assert result.labels.dtype == np.uint8
        assert result.labels.shape == PICTURE.shape[:2]
        assert (result.labels == want.argmax(0))[clear].all()
        assert result.labels.max() > 3  # a constant map would show nothing


@pytest.mark.parametrize("name", PRESETS)
def test_scores_of_a_normalised_picture(segmenter, name):
    x = np.random.default_rng(0).standard_normal((90, 121, 3), dtype=np.float32)
    want = plain(x, PRESETS[name], (150, 33))
    for form in (x, np.ascontiguousarray(x.transpose(2, 0, 1)[None])):
        got = segmenter.score(form, (150, 33), PRESETS[name])
        assert got.dtype == np.float32
        assert np.abs(got - want).max() <= 2e-5 * max(want.std(), 0.1)


def test_logits_are_the_networks(segmenter):
    x = np.random.default_rng(0).standard_normal((2, 3, 41, 57), dtype=np.float32)
    assert (segmenter.logits(x) == segmenter.engine.run(x)).all()


def test_bgr_and_any_layout_give_the_same_labels(segmenter):
    want = segmenter(PICTURE).labels
    assert (segmenter(PICTURE[:, :, ::-1], order="bgr").labels == want).all()
    assert (segmenter(np.asfortranarray(PICTURE)).labels == want).all()
    assert (segmenter(PICTURE[::-1].copy()[::-1]).labels == want).all()


def test_files_are_pictures_too(segmenter, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE[:, :, ::-1])
    want = segmenter(PICTURE).labels
    assert (segmenter(tmp_path / "a.png").labels == want).all()
    assert (segmenter(str(tmp_path / "a.png"), order="bgr").labels == want).all()  # the order of arrays only


@pytest.mark.parametrize("name", PRESETS)
def test_probabilities_and_scores_where_asked_for(segmenter, name):
    inference = PRESETS[name]
    points = [(0, 0), (74, 129), (33, 64), (31, 63), (0, 129)]
    result = segmenter(PICTURE, inference=inference, probabilities=True, points=points)
    merged = segmenter.score(normalise(resize(PICTURE, RULE), RULE), PICTURE.shape[:2], inference)
    assert (result.scores == np.stack([merged[:, r, c] for r, c in points])).all()
    assert result.scores.shape == (5, CLASSES)
    want = merged if inference.softmax_before_resize else torch.from_numpy(merged).double().softmax(0).numpy()
    assert result.probabilities.dtype == np.float32
    assert np.abs(result.probabilities - want).max() <= 1e-6
    assert np.abs(result.probabilities.sum(0) - 1).max() <= 1e-5
    assert (result.labels == result.probabilities.argmax(0)).mean() > 0.999
    plainly = segmenter(PICTURE, inference=inference)
    assert plainly.probabilities is None
    assert plainly.scores is None


@pytest.mark.parametrize(
    ("points", "message"),
    [([(75, 0)], "75x130"), ([(-1, 3)], "inside"), ([1, 2], "pairs"), ([(0.5, 1.0)], "pairs"), ([(1, 2, 3)], "pairs")],
)
def test_points_outside_are_refused(segmenter, points, message):
    with pytest.raises(SettingsError, match=message):
        segmenter(PICTURE, points=points)


def test_no_points_are_no_scores(segmenter):
    assert segmenter(PICTURE, points=[]).scores.shape == (0, CLASSES)


def test_presets_by_name_and_settings_per_call(segmenter):
    by_name = segmenter(PICTURE, inference="ms-flip").labels
    assert (by_name == segmenter(PICTURE, inference=SLIDE).labels).all()
    assert (by_name != segmenter(PICTURE).labels).any()
    with pytest.raises(SettingsError, match="there are: default, ms-flip"):
        segmenter(PICTURE, inference="best")


@pytest.mark.parametrize("size", [(1, 1), (20000, 40), (3, 200)])
def test_extreme_sizes_are_segmented(segmenter, size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    labels = segmenter(image).labels
    assert labels.shape == size
    want = plain(normalise(resize(image, RULE), RULE), Inference(), size)
    assert (labels == want.argmax(0)).mean() > 0.999


def test_a_picture_too_narrow_says_so(segmenter):
    with pytest.raises(ImageError, match="too narrow"):
        segmenter(np.zeros((1, 20000, 3), np.uint8))


def test_results_own_their_memory(segmenter):
    first = segmenter(PICTURE, probabilities=True, points=[(1, 1)])
    kept = [np.copy(a) for a in (first.labels, first.probabilities, first.scores, first.palette)]
    first.palette[:] = 0
    second = segmenter(PICTURE[:, ::-1], probabilities=True, points=[(1, 1)])
    assert (second.palette == kept[3]).all()
    for array, before in zip((first.labels, first.probabilities, first.scores), kept, strict=False):
        assert (array == before).all()
        assert array.flags.owndata
        assert array.flags.writeable


def test_map_yields_one_result_per_picture_when_it_is_asked(segmenter):
    results = segmenter.map([PICTURE, PICTURE[:50]], inference="ms-flip")
    assert next(results).labels.shape == (75, 130)
    assert next(results).labels.shape == (50, 130)
    assert next(results, None) is None


def test_time_is_told_by_stage(segmenter):
    start = time.perf_counter()
    seconds = segmenter(PICTURE).seconds
    elapsed = time.perf_counter() - start
    assert list(seconds) == ["read", "resize", "gather", "engine", "merge"]
    assert all(value >= 0 for value in seconds.values())
    assert sum(seconds.values()) <= elapsed


def test_a_closed_segmenter_says_so(segmenter):
    segmenter.close()
    segmenter.close()
    for call in (lambda: segmenter(PICTURE), lambda: segmenter.logits(np.zeros((1, 3, 8, 8), np.float32))):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_model_and_labels_must_belong_together(tmp_path):
    engine = tiny_model.open_tiny(tmp_path, CLASSES)
    with Segmenter(engine, tiny_model.labels(5), RULE) as segmenter, pytest.raises(EngineError, match="5 classes"):
        segmenter(PICTURE)
    engine = tiny_model.open_tiny(tmp_path, CLASSES)
    wrong = Segmenter(engine, tiny_model.labels(CLASSES), RULE, output_stride=4)
    with wrong, pytest.raises(EngineError, match="stride 4"):
        wrong(PICTURE)


def test_a_network_that_overflows_is_an_error(tmp_path):
    engine = tiny_model.open_tiny(tmp_path, CLASSES, gain=1e38)
    segmenter = Segmenter(engine, tiny_model.labels(CLASSES), RULE)
    with segmenter, pytest.raises(EngineError, match="NaN or infinite"):
        segmenter(PICTURE)


def test_an_engine_of_fixed_batch_gets_full_batches(segmenter, tmp_path):
    engine = open_onnx(tiny_model.write_model(tmp_path / "three.onnx", CLASSES, batch=3), threads=1)
    fixed = Segmenter(engine, tiny_model.labels(CLASSES), RULE, presets=PRESETS, batch=3, full_batches=True)
    for name in PRESETS:
        assert (fixed(PICTURE, inference=name).labels == segmenter(PICTURE, inference=name).labels).mean() > 0.999
    fixed.close()


def test_the_engine_keeps_its_memory_between_batches_of_one_size(segmenter, monkeypatch):
    kept = []
    run = segmenter.engine.run
    monkeypatch.setattr(segmenter.engine, "run", lambda batch: kept.append(segmenter.engine.keep_memory) or run(batch))
    segmenter(PICTURE, inference=Inference("slide", (16, 24), (12, 20)))
    assert len(kept) > 2
    assert kept == [True] * (len(kept) - 1) + [False]
    kept.clear()
    segmenter(PICTURE, inference=Inference(scales=(0.5, 1.0), flip=True))
    assert kept == [True, False, True, False]
    monkeypatch.setattr(segmenter.engine, "run", lambda batch: np.full_like(run(batch), np.nan))
    with pytest.raises(EngineError, match="NaN"):
        segmenter(PICTURE, inference=Inference(flip=True))
    assert not segmenter.engine.keep_memory


def test_more_than_256_classes_are_16_bits(tmp_path):
    engine = tiny_model.open_tiny(tmp_path, 300)
    with Segmenter(engine, tiny_model.labels(300), RULE) as segmenter:
        result = segmenter(PICTURE, points=[(0, 0)])
        assert result.labels.dtype == np.uint16
        assert result.labels.max() > 255
        assert result.labels[0, 0] == result.scores[0].argmax()


def test_calls_from_two_threads_take_turns(segmenter):
    images = [np.roll(PICTURE, i, axis=1) for i in range(6)]
    want = [segmenter(image).labels for image in images]
    got: dict[int, np.ndarray] = {}

    def work(start):
        for i in range(start, 6, 2):
            got[i] = segmenter(images[i]).labels

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert all((got[i] == want[i]).all() for i in range(6))
