"""Plans: what runs, in which memory, for which windows. No device and no kernel is needed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isnet_trt.cuda.kernel_specs import bundle_kernels
from isnet_trt.cuda.plan import BAND_BYTES, Model, bands, kernel_names, plan, span, swap
from isnet_trt.cuda.plan_steps import ALIGNMENT, Clear, Copy, Infer, Launch, Plan
from isnet_trt.errors import ImageError
from isnet_trt.merging import geometry
from isnet_trt.merging.merge import Head
from isnet_trt.settings import Inference, Preprocess

MIB = 1 << 20
AS_IS = Preprocess((2048, 1024))
CITY = Inference("slide", (512, 1024), (341, 341))
CITY_MOST = CITY.replace(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True, softmax_before_resize=True)


def launches(made: Plan, stage: str) -> list[Launch]:
    return [step for step in made.steps if isinstance(step, Launch) and step.stage == stage]


def table(made: Plan, launch: Launch, name: str, dtype: str, count: int) -> np.ndarray:
    buffer, offset = launch.pointers[name]
    assert buffer == "tables"
    return np.frombuffer(made.tables, dtype, count, offset)


def test_all_windows_of_a_large_picture_in_full_batches_and_little_memory():
    made = plan((1024, 2048), CITY_MOST, Model(Head(19, 8), AS_IS, 8, True))
    assert len(made.slots) == 262
    runs = [step for step in made.steps if isinstance(step, Infer)]
    assert len(runs) == -(-262 // 8)
    assert made.shapes == {(8, 3, 512, 1024)}
    assert made.buffers["logits"] == 33 * 8 * 19 * 64 * 128 * 4
    assert made.buffers["volumes"] <= BAND_BYTES < 19 * 1024 * 2048 * 4
    assert made.bytes < 290 * MIB
    assert made.bytes == made.arena_bytes + 1024 * 2048 * 4 + 256 * -(-len(made.tables) // 256) + 256


def test_memory_of_one_whole_picture():
    made = plan((480, 640), Inference(), Model(Head(150, 8), Preprocess((2048, 512)), 1))
    # source and picture, the window, its answer, the label map and a flag
    answer = 150 * 64 * 86 * 4
    assert made.buffers == {
        "source": 480 * 640 * 3, "tables": len(made.tables), "picture": 512 * 683 * 3, "input": 3 * 512 * 683 * 4,
        "logits": answer, "result": 480 * 640 + 4,
    }  # fmt: skip
    assert [step.stage for step in made.steps] == ["resize", "gather", "engine", "finite", "finite", "finish"]


def test_classes_times_height_times_width_never_exists():
    made = plan((3648, 5472), CITY, Model(Head(194, 8), Preprocess((5472, 3648)), 4))
    whole = 194 * 3648 * 5472 * 4
    assert made.buffers["volumes"] <= BAND_BYTES
    assert made.bytes < whole / 10
    rows = sum(launch.scalars["rows"] for launch in launches(made, "finish"))
    assert rows == 3648


@pytest.mark.parametrize(("batch", "full", "wanted"), [(1, False, 18), (4, False, 5), (4, True, 5)])
def test_batches_are_filled_across_passes(batch, full, wanted):
    inference = Inference("slide", (16, 16), (8, 8), (1.0,), flip=True)
    made = plan((32, 32), inference, Model(Head(3, 8), Preprocess((32, 32)), batch, full))
    runs = [step for step in made.steps if isinstance(step, Infer)]
    assert len(runs) == wanted
    assert {run.shape[0] for run in runs} == ({4} if full else {1} if batch == 1 else {4, 2})


def test_windows_that_are_not_used_are_marked():
    inference = Inference("slide", (16, 16), (8, 8))
    made = plan((16, 24), inference, Model(Head(3, 8), Preprocess((24, 16)), 5, True))
    (gather,) = launches(made, "gather")
    assert table(made, gather, "windows", "int32", 20).reshape(5, 4)[:, 3].tolist() == [1, 1, 0, 0, 0]


def test_tables_of_gather_are_the_queue():
    inference = CITY.replace(window=(24, 40), stride=(16, 30), scales=(0.5, 1.75), flip=True)
    made = plan((41, 67), inference, Model(Head(3, 8), Preprocess((67, 41)), 4))
    shown = []
    for launch in launches(made, "gather"):
        batch = int(launch.scalars["batch"])
        windows = table(made, launch, "windows", "int32", 4 * batch).reshape(batch, 4)
        steps = table(made, launch, "steps", "float32", batch)
        size = launch.scalars["height"], launch.scalars["width"]
        shown += [(*map(int, row[:3]), float(step), *size) for row, step in zip(windows, steps, strict=True)]
    wanted = [(w.top, w.left, w.of.mirrored, float(np.float32(1 / w.of.scale)), *w.size) for w in made.queue.windows]
    assert sorted(shown) == sorted(wanted)


def test_bands_need_no_more_than_they_may():
    sizes = [(512, 1024), (1792, 3584)]
    found = list(bands(sizes, (1024, 2048), 19, 8 * MIB))
    assert [first for first, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == 1024
    for band in found:
        held = [(span(height, 1024, band), width) for height, width in sizes]
        assert sum(19 * (b - a) * width * 4 for (a, b), width in held) <= 8 * MIB
    assert len(list(bands(sizes, (1024, 2048), 19, 1))) == 1024  # a row at a time, whatever it takes


def test_left_and_right_change_places():
    assert swap(Head(6, 8, ((1, 2), (4, 5)))).tolist() == [0, 2, 1, 3, 5, 4]


def test_a_picture_too_elongated_says_so():
    with pytest.raises(ImageError, match="too narrow"):
        plan((1, 20000), Inference(), Model(Head(3, 8), AS_IS))


@pytest.mark.parametrize("classes", [19, 150, 300])
def test_every_kernel_is_compiled_for_a_bundle(classes):
    there = {spec.name: spec for spec in bundle_kernels(89, ("fp32",), classes)}
    assert kernel_names(classes) <= set(there)
    for inference in (Inference(), Inference(flip=True), Inference(scales=(0.5, 1.0)), CITY):
        made = plan((700, 900), inference, Model(Head(classes, 8), AS_IS, 2))
        for step in made.steps:
            if isinstance(step, Launch):
                assert step.kernel in kernel_names(classes)
                assert step.spec == there[step.kernel]


def ends(step: object, made: Plan) -> list[tuple[str, int, int]]:
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
    found = [(*place, place[1] + 1) for place in step.pointers.values()]
    n = step.scalars
    if step.kernel.startswith("accumulate"):
        found.append((*step.pointers["volume"], step.pointers["volume"][1] + 4 * CLASSES * n["rows"] * n["width"]))
    if step.kernel.startswith("finite"):
        found.append((*step.pointers["values"], step.pointers["values"][1] + 4 * n["count"]))
    return found


CLASSES = 5
SIDES = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(SIDES, SIDES), st.sampled_from([Inference(), CITY.replace(window=(24, 40), stride=(16, 30))]),
    st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.75]), min_size=1, max_size=3), st.booleans(), st.booleans(),
    st.integers(1, 5), st.booleans(), st.integers(1, 60_000),
)  # fmt: skip
def test_every_step_stays_inside_its_buffers(size, base, scales, flip, softmax, batch, full, most):
    inference = base.replace(scales=tuple(scales), flip=flip, softmax_before_resize=softmax)
    rule = Preprocess((max(size), min(size)))
    model = Model(Head(CLASSES, 8), rule, batch, full, most)
    try:
        made = plan(size, inference, model, "bgra")
    except ImageError:
        assert min(size) * min(scales) < 1
        return
    sizes = made.buffers
    assert list(sizes)[:2] == ["source", "tables"]
    assert (made.offsets["tables"], sizes["tables"]) == (made.tables_offset, len(made.tables))
    for step in made.steps:
        for buffer, begin, end in ends(step, made):
            assert 0 <= begin < end <= sizes[buffer], step
    assert all(offset % ALIGNMENT == 0 for offset in made.offsets.values())
    places = sorted((made.offsets[name], made.offsets[name] + length) for name, length in made.buffers.items())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(places))
    assert places[-1][1] <= made.arena_bytes
    assert len(set(made.slots)) == len(made.slots) == geometry.window_count(size, inference)
    rows = [row for launch in launches(made, "finish") for row in rows_of(launch)]
    assert rows == list(range(size[0]))


def rows_of(launch: Launch) -> range:
    """Rows of the label map that a launch writes."""
    if launch.kernel.startswith("upsample"):
        return range(int(launch.scalars["height"]))
    first = int(launch.scalars["first_row"])
    return range(first, first + int(launch.scalars["rows"]))
