"""Plans: what runs, in which memory, for which windows. No device and no kernel is needed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isnet_trt.cuda.kernel_specs import bundle_kernels, needed_kernels
from isnet_trt.cuda.plan import BAND_BYTES, Model, bands, plan
from isnet_trt.cuda.plan_steps import ALIGNMENT, Clear, Copy, Infer, Launch, Plan
from isnet_trt.errors import ImageError
from isnet_trt.merging import geometry
from isnet_trt.merging.merge import Head
from isnet_trt.merging.resample import span
from isnet_trt.settings import Inference, NetworkFacts, Preprocess

MIB = 1 << 20
AS_IS = Preprocess((2048, 1024))
CITY = Inference("slide", (512, 1024), (341, 341))
CITY_MOST = CITY.replace(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True, softmax_before_resize=True)


def launches(planned: Plan, stage: str) -> list[Launch]:
    return [step for step in planned.steps if isinstance(step, Launch) and step.stage == stage]


def table(planned: Plan, launch: Launch, name: str, dtype: str, count: int) -> np.ndarray:
    buffer, offset = launch.pointers[name]
    assert buffer == "tables"
    return np.frombuffer(planned.tables, dtype, count, offset)


def test_all_windows_of_a_large_picture_in_full_batches_and_little_memory():
    planned = plan((1024, 2048), CITY_MOST, Model(Head(19, 8), AS_IS, 8, True))
    assert len(planned.slots) == 262
    runs = [step for step in planned.steps if isinstance(step, Infer)]
    assert len(runs) == -(-262 // 8)
    assert planned.shapes == {(8, 3, 512, 1024)}
    assert planned.buffers["logits"] == 33 * 8 * 19 * 64 * 128 * 4
    assert planned.buffers["volumes"] <= BAND_BYTES < 19 * 1024 * 2048 * 4
    assert planned.bytes < 290 * MIB
    assert planned.bytes == planned.arena_bytes + 1024 * 2048 * 4 + 256 * -(-len(planned.tables) // 256) + 256


def test_memory_of_one_whole_picture():
    planned = plan((480, 640), Inference(), Model(Head(150, 8), Preprocess((2048, 512)), 1))
    # source and picture, the window, its answer, the label map and a flag
    answer = 150 * 64 * 86 * 4
    assert planned.buffers == {
        "source": 480 * 640 * 3, "tables": len(planned.tables), "picture": 512 * 683 * 3, "input": 3 * 512 * 683 * 4,
        "logits": answer, "result": 480 * 640 + 4,
    }  # fmt: skip
    assert [step.stage for step in planned.steps] == ["resize", "gather", "engine", "finite", "finite", "finish"]


def test_classes_times_height_times_width_never_exists():
    planned = plan((3648, 5472), CITY, Model(Head(194, 8), Preprocess((5472, 3648)), 4))
    whole = 194 * 3648 * 5472 * 4
    assert planned.buffers["volumes"] <= BAND_BYTES
    assert planned.bytes < whole / 10
    rows = sum(launch.scalars["rows"] for launch in launches(planned, "finish"))
    assert rows == 3648


@pytest.mark.parametrize(("batch", "full", "expected"), [(1, False, 18), (4, False, 5), (4, True, 5)])
def test_batches_are_filled_across_passes(batch, full, expected):
    inference = Inference("slide", (16, 16), (8, 8), (1.0,), flip=True)
    planned = plan((32, 32), inference, Model(Head(3, 8), Preprocess((32, 32)), batch, full))
    runs = [step for step in planned.steps if isinstance(step, Infer)]
    assert len(runs) == expected
    assert {run.shape[0] for run in runs} == ({4} if full else {1} if batch == 1 else {4, 2})


def test_windows_that_are_not_used_are_marked():
    inference = Inference("slide", (16, 16), (8, 8))
    planned = plan((16, 24), inference, Model(Head(3, 8), Preprocess((24, 16)), 5, True))
    (gather,) = launches(planned, "gather")
    assert table(planned, gather, "windows", "int32", 20).reshape(5, 4)[:, 3].tolist() == [1, 1, 0, 0, 0]


def test_tables_of_gather_are_the_queue():
    inference = CITY.replace(window=(24, 40), stride=(16, 30), scales=(0.5, 1.75), flip=True)
    planned = plan((41, 67), inference, Model(Head(3, 8), Preprocess((67, 41)), 4))
    shown = []
    for launch in launches(planned, "gather"):
        batch = int(launch.scalars["batch"])
        windows = table(planned, launch, "windows", "int32", 4 * batch).reshape(batch, 4)
        steps = table(planned, launch, "steps", "float32", batch)
        size = launch.scalars["height"], launch.scalars["width"]
        shown += [(*map(int, row[:3]), float(step), *size) for row, step in zip(windows, steps, strict=True)]
    queue = [(w.top, w.left, w.of.mirrored, float(np.float32(1 / w.of.scale)), *w.size) for w in planned.queue.windows]
    assert sorted(shown) == sorted(queue)


def test_bands_need_no_more_than_they_may():
    sizes = [(512, 1024), (1792, 3584)]
    rows = list(bands(sizes, (1024, 2048), 19, 8 * MIB))
    assert [first for first, _ in rows] == [0, *(stop for _, stop in rows[:-1])]
    assert rows[-1][1] == 1024
    for band in rows:
        spans = [(span(height, 1024, band), width) for height, width in sizes]
        assert sum(19 * (b - a) * width * 4 for (a, b), width in spans) <= 8 * MIB
    assert len(list(bands(sizes, (1024, 2048), 19, 1))) == 1024  # a row at a time, whatever it takes


def test_left_and_right_change_places():
    assert Head(6, 8, ((1, 2), (4, 5))).swapped_classes().tolist() == [0, 2, 1, 3, 5, 4]


def test_channels_are_read_in_the_networks_order():
    """Pictures of either order, resized or not, for networks of either."""
    for order in ("rgb", "bgr"):
        for pixels in ("rgb", "bgra"):
            as_is, smaller = Preprocess(None, channel_order=order), Preprocess((20, 16), channel_order=order)
            turned = int(pixels.startswith("bgr") != (order == "bgr"))
            gather = launches(plan((24, 32), Inference(), Model(Head(3, 8), as_is), pixels), "gather")[0]
            assert gather.scalars["bgr"] == turned
            resized = plan((24, 32), Inference(), Model(Head(3, 8), smaller), pixels)
            assert launches(resized, "resize")[0].scalars["bgr"] == int(pixels.startswith("bgr"))
            assert launches(resized, "gather")[0].scalars["bgr"] == int(order == "bgr")


def test_a_picture_too_elongated_says_so():
    with pytest.raises(ImageError, match="too narrow"):
        plan((1, 20000), Inference(), Model(Head(3, 8), AS_IS))


@pytest.mark.parametrize("classes", [19, 150, 300])
def test_every_kernel_is_compiled_for_a_bundle(classes):
    compiled = {spec.name: spec for spec in bundle_kernels(89, ("fp32",), classes)}
    needed = {spec.name for spec in needed_kernels(classes)}
    assert needed <= set(compiled)
    assert "yuv_resize" in compiled.keys() - needed  # bundles from before it lack it, and open
    for inference in (Inference(), Inference(flip=True), Inference(scales=(0.5, 1.0)), CITY):
        planned = plan((700, 900), inference, Model(Head(classes, 8), AS_IS, 2))
        for step in planned.steps:
            if isinstance(step, Launch):
                assert step.kernel in needed
                assert step.spec == compiled[step.kernel]


def ends(step: object, planned: Plan) -> list[tuple[str, int, int]]:
    """(buffer, begin, end) of what a step reads and writes, as far as its numbers say."""
    if isinstance(step, Clear):
        return [(step.target[0], step.target[1], step.target[1] + step.size)]
    if isinstance(step, Copy):
        return [(p[0], p[1], p[1] + step.size) for p in (step.target, step.source)]
    if isinstance(step, Infer):
        batch, _, height, width = step.shape
        coarse = -(-height // 8) * -(-width // 8)
        size_in, size_out = 4 * batch * 3 * height * width, 4 * batch * CLASSES * coarse
        assert step.input[1] % ALIGNMENT == step.output[1] % ALIGNMENT == 0
        return [(*step.input, step.input[1] + size_in), (*step.output, step.output[1] + size_out)]
    assert isinstance(step, Launch)
    ranges = [(*place, place[1] + 1) for place in step.pointers.values()]
    n = step.scalars
    if step.kernel.startswith("accumulate"):
        ranges.append((*step.pointers["volume"], step.pointers["volume"][1] + 4 * CLASSES * n["rows"] * n["width"]))
    if step.kernel.startswith("finite"):
        ranges.append((*step.pointers["values"], step.pointers["values"][1] + 4 * n["count"]))
    return ranges


CLASSES = 5
SIDES = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(SIDES, SIDES), st.sampled_from([Inference(), CITY.replace(window=(24, 40), stride=(16, 30))]),
    st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.75]), min_size=1, max_size=3), st.booleans(), st.booleans(),
    st.integers(1, 5), st.booleans(), st.integers(1, 60_000),
    st.sampled_from([NetworkFacts(), NetworkFacts(size_multiple=24), NetworkFacts(upsampling="half_pixel")]),
)  # fmt: skip
def test_every_step_stays_inside_its_buffers(size, base, scales, flip, softmax, batch, full, most, network):
    inference = base.replace(scales=tuple(scales), flip=flip, softmax_before_resize=softmax)
    rule = Preprocess((max(size), min(size)))
    model = Model(Head(CLASSES, 8, (), network), rule, batch, full, most)
    try:
        planned = plan(size, inference, model, "bgra")
    except ImageError:
        assert min(size) * min(scales) < 1
        return
    sizes = planned.buffers
    assert list(sizes)[:2] == ["source", "tables"]
    assert (planned.offsets["tables"], sizes["tables"]) == (planned.tables_offset, len(planned.tables))
    for step in planned.steps:
        for buffer, begin, end in ends(step, planned):
            assert 0 <= begin < end <= sizes[buffer], step
    assert all(offset % ALIGNMENT == 0 for offset in planned.offsets.values())
    places = sorted((planned.offsets[name], planned.offsets[name] + length) for name, length in planned.buffers.items())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(places))
    assert places[-1][1] <= planned.arena_bytes
    assert len(set(planned.slots)) == len(planned.slots) == geometry.window_count(size, inference)
    rows = [row for launch in launches(planned, "finish") for row in rows_of(launch)]
    assert rows == list(range(size[0]))


def rows_of(launch: Launch) -> range:
    """Rows of the label map that a launch writes."""
    if launch.kernel.startswith("upsample"):
        return range(int(launch.scalars["height"]))
    first = int(launch.scalars["first_row"])
    return range(first, first + int(launch.scalars["rows"]))
