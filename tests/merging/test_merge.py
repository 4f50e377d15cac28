"""Windows and merge together against the plain rules in torch."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from plain_inference import one_thread
from plain_inference import scores as plain_scores

from isnet_trt.merging import merge, windows
from isnet_trt.settings import Inference

CLASSES = 7
PAIRS = ((1, 4), (6, 2))
SCORE = (np.float32, 5e-5)
"""Type and bound of the largest score error, relative to the scores' standard deviation."""

SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
SIZES = [((61, 83), (61, 83)), ((40, 97), (75, 50)), ((1, 1), (3, 5)), ((130, 33), (33, 130)), ((64, 96), (128, 192))]
SLIDES = {"landscape": ((24, 40), (16, 27)), "portrait": ((56, 24), (37, 17)), "huge": ((400, 300), (200, 150))}
INFERENCES = {
    "whole": Inference(),
    "whole ms": Inference(scales=SIX),
    "whole flip": Inference(flip=True),
    "whole factors": Inference(scales=(1.1, 0.83, 1.37), flip=True),
    **{f"slide {name}": Inference("slide", *slide) for name, slide in SLIDES.items()},
    **{
        f"slide {name} ms flip": Inference("slide", *slide, (0.83, 1.0, 1.75), flip=True)
        for name, slide in SLIDES.items()
    },
}


def network(stride: int, classes: int = CLASSES):
    """A fixed convolution that depends on position within its grid only through its input, (..., h, w) to strided."""
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, 3, 5, 5, generator=generator, dtype=torch.float64)

    def run(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, weight.to(x.dtype), stride=stride, padding=2)

    return run


def merged(picture, output, inference, stride, threads=2, batch=3, classes=CLASSES):
    """What the runtime makes of ``picture`` (3, H, W) float32, tile by tile; fails where a tile comes twice."""
    out = np.full((classes, *output), np.nan, np.float32)

    def sink(rows, columns, tile):
        assert np.isnan(out[:, rows, columns]).all()
        out[:, rows, columns] = tile

    plan = windows.plan(picture.shape[1:], inference)
    merger = merge.Merger(plan, merge.Head(classes, stride, PAIRS), output, sink, threads)
    done = False
    for group, pixels in windows.gather(picture, plan.windows, batch):
        assert not done
        with one_thread():
            answers = network(stride, classes)(torch.from_numpy(pixels).double()).float().numpy()
        for window, logits in zip(group, answers, strict=True):
            merger.add(window, logits)
        done = merger.work()
    assert done
    return out


@pytest.mark.parametrize("stride", [8, 4])
@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "probabilities"])
@pytest.mark.parametrize("name", INFERENCES)
def test_scores_are_those_of_the_plain_rules(name, softmax, stride):
    inference = INFERENCES[name].replace(softmax_before_resize=softmax)
    rng = np.random.default_rng(5)
    for size, output in SIZES if stride == 8 else SIZES[1:3]:
        if min(size) * min(inference.scales) < 1:
            continue
        picture = rng.standard_normal((3, *size), dtype=np.float32)
        got = merged(picture, output, inference, stride)
        want = plain_scores(network(stride), torch.from_numpy(picture)[None].double(), output, inference, PAIRS).numpy()
        assert got.dtype == SCORE[0]
        assert np.abs(got - want).max() <= SCORE[1] * max(want.std(), 0.1)
        best = np.sort(want, axis=0)
        clear = best[-1] - best[-2] > 1e-4 * max(want.std(), 0.1)
        assert (merge.largest(got) == want.argmax(0))[clear].all()


def merge_all(plan, head, output, answer, threads=2):
    """Labels from ``answer(window)``, window by window."""
    labels = np.zeros(output, merge.label_type(head.classes))

    def sink(rows, columns, tile):
        labels[rows, columns] = merge.largest(tile)

    merger = merge.Merger(plan, head, output, sink, threads)
    for window in plan.windows:
        merger.add(window, answer(window))
        done = merger.work()
    assert done
    return labels


def coarse(classes, stride=8):
    """Scores as an engine might give them, made quickly and without large temporary arrays."""
    rng = np.random.default_rng(3)

    def answer(window):
        rows, columns = (-(-side // stride) for side in window.size)
        return rng.standard_normal((classes, rows, columns), dtype=np.float32)

    return answer


def peak_of(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MEMORY = {
    "whole": ((512, 1024), Inference(scales=SIX, flip=True, softmax_before_resize=True)),
    # A strip shows the peak: what lies further down is not there yet.
    "slide": ((128, 1024), Inference("slide", (128, 128), (85, 85), SIX, flip=True, softmax_before_resize=True)),
}


@pytest.mark.parametrize("mode", MEMORY)
def test_memory_is_a_fraction_of_the_volume(mode):
    """The case below with sides and windows of a quarter: a sixteenth of its memory."""
    size, inference = MEMORY[mode]
    plan = windows.plan(size, inference)
    peak = peak_of(lambda: merge_all(plan, merge.Head(182, 8), size, coarse(182)))
    assert peak < 2**31 / 16


@pytest.mark.slow
def test_2048_by_4096_with_182_classes_stays_under_2_gib():
    size = (2048, 4096)
    inference = Inference(scales=SIX, flip=True)
    picture = np.zeros((3, *size), np.float32)
    answer = coarse(182)

    def work():
        plan = windows.plan(size, inference)
        merger = merge.Merger(plan, merge.Head(182, 8), size, lambda *_: None, 2)
        for group, pixels in windows.gather(picture, plan.windows):
            del pixels
            for window in group:
                merger.add(window, answer(window))
            merger.work()

    assert peak_of(work) < 2**31


def test_small_pictures_that_were_enlarged_take_no_more_memory():
    """64x64 shown as 1024x1024: a tile of the label map stands for much more of the pass."""
    plan = windows.plan((1024, 1024), Inference("slide", (512, 512), (512, 512)))
    head = merge.Head(150, 8)
    labels = []
    peak = peak_of(lambda: labels.append(merge_all(plan, head, (64, 64), coarse(150))))
    low = 4 * 150 * 64 * 64 * 4
    assert peak < low + 2 * 16 * 2**20
    assert labels[0].max() > 100


@pytest.mark.parametrize("classes", [1, 2, 19, 255, 256, 257, 300])
def test_largest_is_numpys_arg_max(classes):
    scores = np.random.default_rng(0).integers(-3, 3, (classes, 5, 7)).astype(np.float32)  # many ties
    got = merge.largest(scores)
    assert got.dtype == (np.uint8 if classes <= 256 else np.uint16)
    assert (got == scores.argmax(0)).all()


@pytest.mark.parametrize("classes", [1, 9, 19, 182, 1000])
@pytest.mark.parametrize("ratio", [1 / 8, 1.0, 1.75, 30.0])
def test_tiles_and_their_blocks_stay_small(classes, ratio):
    volume = (round(512 * ratio), round(512 * ratio))
    rows, columns = merge.tile_size(classes, (512, 512), [volume])
    assert min(rows, columns) >= 1
    assert classes * rows * columns <= max(merge.TILE_VALUES, classes * merge.TILE_ROWS * 64)
    block = classes * (rows * ratio + 2) * (columns * ratio + 2)
    assert block <= max(merge.BLOCK_VALUES, classes * (ratio + 2) ** 2)


def test_finished_rows_are_forgotten():
    plan = windows.plan((1000, 100), Inference("slide", (100, 100), (50, 100)))
    merger = merge.Merger(plan, merge.Head(3, 8), (1000, 100), lambda *_: None)
    answer = coarse(3)
    most = 0
    for window in plan.windows:
        merger.add(window, answer(window))
        merger.work()
        most = max(most, sum(len(volume.placed) for volume in merger._volumes))
    assert most <= 3
    assert not any(volume.placed for volume in merger._volumes)


def test_windows_may_come_in_any_order():
    inference = Inference("slide", (56, 64), (40, 50), (1.0, 1.5), flip=True, softmax_before_resize=True)
    plan = windows.plan((130, 170), inference)
    answers = {id(window): coarse(5)(window) for window in plan.windows}
    want = merge_all(plan, merge.Head(5, 8, ((0, 3),)), (130, 170), lambda w: answers[id(w)].copy())
    shuffled = dataclasses.replace(plan, windows=tuple(np.random.default_rng(0).permutation(plan.windows)))
    got = merge_all(shuffled, merge.Head(5, 8, ((0, 3),)), (130, 170), lambda w: answers[id(w)].copy(), threads=1)
    assert (got == want).mean() > 0.999  # sums in another order
