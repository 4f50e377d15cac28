"""The compiled kernels themselves, their PTX of sm_80, in an emulator, through the runtime's packing and grids.

Beside the results, every access is checked: bounds, alignment, values that nobody or another block has written
(tests/ptx_memory.py). Buffers end where the data ends, and begin at odd addresses where `unaligned` allows it.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
from ptx_arithmetic import from_bfloat16, to_bfloat16
from ptx_machine import PtxKernels, compile_kernels
from ptx_memory import Fault, Memory

from isnet_trt.cuda.context_ops import Attention, Pool
from isnet_trt.cuda.plan import span
from isnet_trt.pictures.preprocess import value_tables
from isnet_trt.settings import Preprocess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform"),
]
TYPES = ("fp32", "fp16", "bf16")
SIZE = {"fp32": 4, "fp16": 2, "bf16": 2}
# A few roundings of values within ±3, the last one to the type; weights are rounded to it before they are multiplied.
TOLERANCE = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 1.6e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("kernels")
    compile_kernels(made, "--classes", "19")
    return made


@pytest.fixture
def ptx(folder):
    return PtxKernels(folder)


def encoded(values, kind):
    """The bytes of numbers as a type of `launch.TYPES`."""
    if kind == "bf16":
        return to_bfloat16(values.astype(np.float32)).tobytes()
    return values.astype({"fp32": np.float32, "fp16": np.float16}[kind]).tobytes()


def decoded(data, kind):
    if kind == "bf16":
        return from_bfloat16(data.view(np.uint16)).astype(np.float64)
    return data.view({"fp32": np.float32, "fp16": np.float16}[kind]).astype(np.float64)


def drawn(rng, shape, kind):
    """Random numbers that the type has."""
    return decoded(np.frombuffer(encoded(rng.standard_normal(shape), kind), np.uint8), kind).reshape(shape)


def step(n_in, n_out):
    return float(np.float32(n_in) / np.float32(n_out))


def picture(rng, height, width, pixel, bgr, padding):
    """Rows as they lie in memory, the last without its padding, and RGB (height, width, 3)."""
    rows = rng.integers(0, 256, (height, width * pixel + padding), np.uint8)
    channels = rows[:, : width * pixel].reshape(height, width, pixel)[:, :, :3]
    memory = rows.tobytes()[: len(rows.tobytes()) - padding]
    return memory, np.ascontiguousarray(channels[:, :, ::-1] if bgr else channels)


@pytest.mark.parametrize(
    ("source", "target", "pixel", "bgr"),
    [((11, 33), (17, 57), 3, 0), ((30, 31), (13, 131), 4, 1), ((1, 1), (3, 5), 3, 0)],
)
def test_resize(ptx, source, target, pixel, bgr):
    memory, rgb = picture(np.random.default_rng(1), *source, pixel, bgr, padding=7)
    out = ptx.memory.reserve("picture", 3 * target[0] * target[1])
    ptx.launch(
        "resize", 0, source=ptx.memory.hold("source", memory, shift=3), picture=out, pitch=source[1] * pixel + 7,
        pixel=pixel, bgr=bgr, source_height=source[0], source_width=source[1], height=target[0], width=target[1],
    )  # fmt: skip
    made = ptx.memory.read(out).reshape(*target, 3)
    np.testing.assert_array_equal(made, cv2.resize(rgb, target[::-1], interpolation=cv2.INTER_LINEAR))


@pytest.mark.parametrize("kind", TYPES)
def test_gather(ptx, kind):
    from isnet_trt.kernels import gather_windows

    size, (height, width), table = (21, 160), (16, 144), value_tables(Preprocess((2048, 512))).astype(np.float32)
    memory, rgb = picture(np.random.default_rng(2), *size, 4, 1, padding=5)
    windows = np.array([(0, 0, 0, 1), (3, 5, 1, 1), (0, 0, 0, 0), (2, 1, 1, 1)], np.int32)
    steps = np.array([1, 1 / 1.75, 1, 1 / 1.25], np.float32)
    out = ptx.memory.reserve("out", 4 * 3 * height * width * SIZE[kind])
    ptx.launch(
        f"gather_{kind}", 0, picture=ptx.memory.hold("picture", memory, shift=1), out=out, pitch=4 * size[1] + 5,
        table=ptx.memory.hold("table", table.tobytes()), windows=ptx.memory.hold("windows", windows.tobytes()),
        steps=ptx.memory.hold("steps", steps.tobytes()), pixel=4, bgr=1, picture_height=size[0],
        picture_width=size[1], batch=4, height=height, width=width,
    )  # fmt: skip
    wanted = gather_windows.gather_reference(rgb, table, windows, steps, height, width)
    made = decoded(ptx.memory.read(out), kind).reshape(wanted.shape)
    np.testing.assert_allclose(made, wanted, atol=TOLERANCE[kind])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("strange", [None, np.nan, np.inf, -np.inf])
def test_finite(ptx, kind, strange):
    values = np.random.default_rng(3).standard_normal(9001)
    values[-1] = 6e4 if strange is None else strange
    flag = ptx.memory.hold("flag", bytes(12))
    ptx.launch(
        f"finite_{kind}", 0, values=ptx.memory.hold("values", encoded(values, kind)), flag=flag, at=1, count=9001
    )
    assert ptx.memory.read(flag).view(np.int32).tolist() == [0, int(strange is not None), 0]


@pytest.mark.parametrize("kind", TYPES)
def test_upsample_argmax_with_ties(ptx, kind):
    """Every class twice: the first of the two wins everywhere, however products and sums are contracted."""
    from isnet_trt.kernels import finish

    rng, (h, w), (height, width) = np.random.default_rng(4), (5, 9), (33, 140)
    logits = np.tile(drawn(rng, (9, h, w), kind), (2, 1, 1))
    labels = ptx.memory.reserve("labels", height * (width + 3), shift=1)
    ptx.launch(
        f"upsample_argmax_{kind}_u8", 0, logits=ptx.memory.hold("logits", encoded(logits, kind), shift=SIZE[kind]),
        labels=labels, pitch=width + 3, classes=18, coarse_height=h, coarse_width=w, step_y=step(h, height),
        step_x=step(w, width), height=height, width=width,
    )  # fmt: skip
    made, written = (found.reshape(height, width + 3) for found in ptx.memory.look(labels))
    assert written[:, :width].all()
    assert not written[:, width:].any()
    assert_labels(made[:, :width], finish.reference([logits[:9]], (height, width), 1))


def assert_labels(made, scores):
    """Equal wherever one class leads by more than float32 sums can be off."""
    top = np.sort(scores, axis=0)
    sure = top[-1] - top[-2] > 1e-5
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(made[sure], scores.argmax(axis=0)[sure])
    assert made.max() < len(scores)


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_finish(ptx, kind):
    from isnet_trt.kernels import finish

    rng, output, (first, rows), classes = np.random.default_rng(5), (26, 150), (9, 8), 11
    shapes = [(7, 40), (26, 150), (13, 61)]
    volumes = [drawn(rng, (classes, *shape), kind) for shape in shapes]
    spans = [span(shape[0], output[0], (first, first + rows)) for shape in shapes]
    parts = [volume[:, a:b].ravel() for volume, (a, b) in zip(volumes, spans, strict=True)]
    sizes = np.array([(a, b - a, *shape) for (a, b), shape in zip(spans, shapes, strict=True)], np.int32)
    steps = np.array([(step(s[0], output[0]), step(s[1], output[1])) for s in shapes], np.float32)
    offsets = np.cumsum([0, *map(len, parts)])[:-1].astype(np.int64)
    labels = ptx.memory.reserve("labels", rows * output[1], shift=1)
    ptx.launch(
        f"finish_{kind}_u8", 0, volumes=ptx.memory.hold("volumes", encoded(np.concatenate(parts), kind)),
        offsets=ptx.memory.hold("offsets", offsets.tobytes()), sizes=ptx.memory.hold("sizes", sizes.tobytes()),
        steps=ptx.memory.hold("steps", steps.tobytes()), labels=labels - first * output[1], pitch=output[1],
        passes=3.0, count=3, classes=classes, first_row=first, rows=rows, width=output[1],
    )  # fmt: skip
    made = ptx.memory.read(labels).reshape(rows, output[1])
    assert_labels(made, finish.reference(volumes, output, 3)[:, first : first + rows])


@pytest.mark.parametrize("softmax", [0, 1])
@pytest.mark.parametrize("kind", TYPES)
def test_accumulate(ptx, kind, softmax):
    from isnet_trt.kernels import accumulate

    coarse, window, size, (first, rows), classes = (3, 5), (24, 40), (40, 75), (14, 5), 19
    places = [(0, 0), (0, 30), (16, 0), (16, 35)]
    windows = np.array([(i, *places[i % 4], i // 4) for i in range(8)], np.int32)
    logits, swap = drawn(np.random.default_rng(6), (8, classes, *coarse), kind), np.arange(classes, dtype=np.int32)
    swap[[1, 2]] = 2, 1
    volume = ptx.memory.reserve("volume", 4 * classes * rows * size[1])
    ptx.launch(
        f"accumulate_{kind}_32", 0, logits=ptx.memory.hold("logits", encoded(logits, kind)), volume=volume,
        windows=ptx.memory.hold("windows", windows.tobytes()), swap=ptx.memory.hold("swap", swap.tobytes()),
        classes=classes, coarse_height=coarse[0], coarse_width=coarse[1], window_height=window[0],
        window_width=window[1], step_y=step(coarse[0], window[0]), step_x=step(coarse[1], window[1]), plain=4, count=8,
        first_row=first, rows=rows, width=size[1], softmax=softmax,
    )  # fmt: skip
    wanted = accumulate.reference(logits, windows, swap, 4, size, window, bool(softmax))[:, first : first + rows]
    made = decoded(ptx.memory.read(volume), "fp32").reshape(wanted.shape)
    np.testing.assert_allclose(made, wanted, atol=TOLERANCE["fp32"])


@pytest.mark.parametrize(
    "kinds", [("fp32", "fp32"), ("fp32", "fp16"), ("fp16", "fp16"), ("bf16", "bf16")], ids="-".join
)
@pytest.mark.parametrize(
    ("batch", "classes", "positions", "channels", "multiprocessors"), [(2, 19, 135, 96, 4), (1, 40, 500, 72, 2000)]
)
def test_region_pool(ptx, kinds, batch, classes, positions, channels, multiprocessors):
    from isnet_trt.kernels import region_pool

    rng, operation = np.random.default_rng(7), Pool(batch, classes, positions, channels, *kinds)
    logits, features = (
        drawn(rng, (batch, classes, positions), kinds[0]),
        drawn(rng, (batch, positions, channels), kinds[1]),
    )
    logits[:, 3] = -50  # wins nowhere
    logits[:, 4:6, :9] = 9
    memory = ptx.memory
    centres, counts = (
        memory.reserve("centres", features[:, 0].size * classes * SIZE[kinds[1]]),
        memory.reserve("counts", 4 * batch * classes),
    )
    operation.launch(
        ptx, 0, multiprocessors, logits=memory.hold("logits", encoded(logits, kinds[0])),
        features=memory.hold("features", encoded(features, kinds[1])), centres=centres, log_counts=counts,
        workspace=memory.reserve("workspace", operation.workspace()),
    )  # fmt: skip
    assert (operation.parts(ptx, multiprocessors) > 1) == (multiprocessors > 4)
    wanted, wanted_counts = region_pool.reference(logits, features)
    made = decoded(memory.read(centres), kinds[1]).reshape(wanted.shape)
    np.testing.assert_allclose(made, wanted, atol=TOLERANCE[kinds[1]])
    np.testing.assert_allclose(
        decoded(memory.read(counts), "fp32").reshape(wanted_counts.shape), wanted_counts, rtol=1e-6
    )


@pytest.mark.parametrize("kind", TYPES)
def test_a_nan_among_the_logits_is_not_hidden(ptx, kind):
    rng, operation = np.random.default_rng(9), Pool(1, 19, 70, 64, kind, kind)
    logits, features = drawn(rng, (1, 19, 70), kind), drawn(rng, (1, 70, 64), kind)
    logits[0, 2, 5] = np.nan
    memory = ptx.memory
    centres = memory.reserve("centres", 19 * 64 * SIZE[kind])
    operation.launch(
        ptx, 0, 4, logits=memory.hold("logits", encoded(logits, kind)), centres=centres,
        features=memory.hold("features", encoded(features, kind)), log_counts=memory.reserve("counts", 4 * 19),
        workspace=memory.reserve("workspace", operation.workspace()),
    )  # fmt: skip
    made = decoded(memory.read(centres), kind).reshape(19, 64)
    assert np.isnan(made).all(axis=1).sum() == np.isnan(made).any(axis=1).sum() == 1


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "multiprocessors"), [(2, 70, 77, 1), (1, 37, 350, 40), (1, 20, 19, 3)]
)
def test_attention(ptx, kind, batch, queries, keys, multiprocessors):
    from isnet_trt.kernels import attention

    rng, operation = np.random.default_rng(8), Attention(batch, queries, keys, 256, kind)
    q, k, v = (drawn(rng, (batch, n, 256), kind) for n in (queries, keys, keys))
    bias = np.log(rng.integers(1, 50, (batch, keys))).astype(np.float32)
    bias[:, : keys // 2] = -np.inf  # the first tiles have no key at all
    bias[1:] = -np.inf
    memory = ptx.memory
    out = memory.reserve("out", q.size * SIZE[kind])
    given = {name: memory.hold(name, encoded(values, kind)) for name, values in (("q", q), ("k", k), ("v", v))}
    operation.launch(
        ptx, 0, multiprocessors, 1 / 16, **given, bias=memory.hold("bias", bias.tobytes()), out=out,
        workspace=memory.reserve("workspace", operation.workspace()),
    )  # fmt: skip
    assert (operation.parts(ptx, multiprocessors) > 1) == (multiprocessors == 40)
    wanted = attention.reference(q, k, v, bias, 1 / 16)
    np.testing.assert_allclose(decoded(memory.read(out), kind).reshape(wanted.shape), wanted, atol=TOLERANCE[kind])


def test_faults_are_seen(ptx):
    """A buffer that is a value short, one at an odd address, and results that two blocks write."""
    values = ptx.memory.hold("values", bytes(4 * 99))
    with pytest.raises(Fault, match="of values, which has 396"):
        ptx.launch("finite_fp32", 0, values=values, flag=ptx.memory.hold("flag", bytes(4)), at=0, count=100)
    memory = Memory()
    place = memory.reserve("place", 8, shift=2)
    with pytest.raises(Fault, match="no multiple of 4"):
        memory.load(np.array([place], np.uint64), 4)
    with pytest.raises(Fault, match="nobody wrote"):
        memory.load(np.array([place], np.uint64), 2)
    for memory.block in range(2):
        memory.store(np.array([place], np.uint64), np.full((1, 2), 7, np.uint8))
    memory.block = 0
    with pytest.raises(Fault, match="another block wrote"):
        memory.load(np.array([place], np.uint64), 2)
    with pytest.raises(Fault, match="two blocks write different"):
        memory.store(np.array([place], np.uint64), np.full((1, 2), 8, np.uint8))
