"""The queue of windows: what is in it, in which order, and which pixels come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_inference import interpolate

from isnet_trt.errors import SettingsError
from isnet_trt.merging import windows
from isnet_trt.settings import Inference

SLIDE = Inference("slide", (40, 56), (27, 31), (0.83, 1.0, 1.5), flip=True)


@pytest.fixture
def picture():
    return np.random.default_rng(0).standard_normal((3, 77, 101), dtype=np.float32)


def pixels_of(picture, window):
    whole = torch.from_numpy(picture)[None]
    shown = interpolate(whole, scale_factor=window.of.scale, recompute_scale_factor=False)[0].numpy()
    part = shown[:, window.top : window.bottom, window.left : window.right]
    return part[:, :, ::-1] if window.of.mirrored else part


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("inference", [SLIDE, Inference(scales=(1.0, 0.5), flip=True)], ids=["slide", "whole"])
def test_every_window_comes_once_with_its_pixels(picture, inference, batch):
    plan = windows.plan((77, 101), inference)
    seen = []
    for group, pixels in windows.gather(picture, plan.windows, batch):
        assert 1 <= len(group) <= batch
        assert pixels.dtype == np.float32
        assert pixels.flags.c_contiguous
        for window, got in zip(group, pixels, strict=True):
            assert np.abs(got - pixels_of(picture, window)).max() <= 2e-6
        seen += group
    assert sorted(map(repr, seen)) == sorted(map(repr, plan.windows))


def test_queue_runs_from_top_to_bottom():
    plan = windows.plan((77, 101), SLIDE)
    edges = [window.top / window.of.size[0] for window in plan.windows]
    assert edges == sorted(edges)
    first = [window for window in plan.windows if window.top == 0]
    assert {window.of.index for window in first} == set(range(len(plan.passes)))


def test_batches_are_filled_across_passes():
    plan = windows.plan((800, 1000), SLIDE.replace(window=(200, 200), stride=(150, 150)))
    groups = list(windows.batches(plan.windows, 4))
    assert any(len({window.of.index for window in group}) > 1 for group in groups)
    assert sum(len(group) == 4 for group in groups) >= len(plan.windows) // 4 - 1


def test_odd_sizes_do_not_wait_for_company():
    plan = windows.plan((77, 101), SLIDE)
    groups = list(windows.batches(plan.windows, 4))
    order = {id(window): i for i, window in enumerate(plan.windows)}
    run = 0
    for group in groups:
        first = min(order[id(window)] for window in group)
        assert first <= run + 4 * windows.LOOK_AHEAD
        run += len(group)


def test_rows_in_use_are_all_that_is_kept():
    picture = np.zeros((3, 900, 200), np.float32)
    plan = windows.plan((900, 200), Inference("slide", (100, 100), (60, 60), (1.5, 2.0), flip=True))
    rows = windows._Rows(picture, plan.windows)
    most = 0
    for window in plan.windows:
        rows.take(window)
        most = max(most, sum(kept.shape[1] for kept in rows._rows.values()))
    assert most <= 4 * 100
    assert not rows._rows


def test_a_long_queue_is_read_as_it_is_needed():
    """A batch costs the same whatever waits behind it: tens of thousands of windows take seconds, not hours."""
    queue = windows.plan((40, 40), SLIDE.replace(window=(4, 4), stride=(1, 1), scales=(1.0,))).windows
    read = []
    groups = windows.batches(Reading(queue, read), 2)
    next(groups)
    assert len(read) == 2 * windows.LOOK_AHEAD
    assert sum(map(len, groups)) == len(queue) - 2


class Reading(tuple):
    """A queue that notes which windows are read, and that cannot be cut."""

    def __new__(cls, queue, read):
        reading = super().__new__(cls, queue)
        reading.read = read
        return reading

    def __iter__(self):
        for window in super().__iter__():
            self.read.append(window)
            yield window


def test_more_windows_than_can_be_computed_are_refused():
    with pytest.raises(SettingsError, match="is 1048577 windows; at most 1048576 are allowed: use a larger stride"):
        windows.plan(
            (1, windows.MOST_WINDOWS + 1), SLIDE.replace(window=(1, 1), stride=(1, 1), scales=(1.0,), flip=False)
        )
