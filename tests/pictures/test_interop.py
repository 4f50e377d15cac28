"""Pictures and label maps in the caller's memory: described, checked, and through a segmenter with a real engine."""

from __future__ import annotations

import ctypes
import gc
import weakref

import numpy as np
import pytest
import tiny_model
import torch
from dlpack_producer import CudaArray, Tensor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from isnet_trt import RawImage, RawLabels, Segmenter
from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.pictures.dlpack import READ_ONLY
from isnet_trt.pictures.interop import check_apart, image_from, labels_from
from isnet_trt.pictures.raw import stream_handle
from isnet_trt.settings import Preprocess

PICTURE = np.random.default_rng(7).integers(0, 256, (43, 75, 3), np.uint8)
HEIGHT, WIDTH = SIZE = PICTURE.shape[:2]
ALPHA = np.dstack([PICTURE, np.full(SIZE, 9, np.uint8)])
NULL = "null pointer; was the buffer allocated"


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    engine = tiny_model.open_tiny(tmp_path_factory.mktemp("model"), 11)
    with Segmenter(engine, tiny_model.labels(11), Preprocess((200, 96)), threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def want(segmenter):
    labels = segmenter(PICTURE).labels
    assert len(np.unique(labels)) > 3
    return labels


def padded(rows: np.ndarray, padding: int = 37) -> np.ndarray:
    """The same values in a buffer whose rows are ``padding`` bytes longer; a view of it."""
    height, row = len(rows), rows[0].nbytes
    buffer = np.full((height, row + padding), 173, np.uint8)
    view = np.lib.stride_tricks.as_strided(
        buffer[0].view(rows.dtype) if rows.dtype != np.uint8 else buffer[0],
        rows.shape,
        (row + padding, *rows.strides[1:]),
    )
    view[...] = rows
    return view


def pointer(array: np.ndarray, **options: object) -> RawImage:
    """What C code would hand over."""
    return RawImage(array.ctypes.data, *array.shape[:2], array.strides[0], owner=array, **options)


PICTURES = {
    "array": lambda: (PICTURE, "rgb"),
    "bgr": lambda: (PICTURE[:, :, ::-1].copy(), "bgr"),
    "rgba": lambda: (ALPHA, "rgba"),
    "bgra": lambda: (ALPHA[:, :, [2, 1, 0, 3]], "bgra"),
    "padded bgr": lambda: (padded(PICTURE[:, :, ::-1].copy()), "bgr"),
    "upside down": lambda: (PICTURE[::-1].copy()[::-1], "rgb"),
    "pointer": lambda: (pointer(PICTURE), "rgb"),
    "pointer to padded bgra": lambda: (pointer(padded(ALPHA[:, :, [2, 1, 0, 3]].copy()), order="bgra"), "rgb"),
    "bytes": lambda: (memoryview(PICTURE.tobytes()).cast("B", PICTURE.shape), "rgb"),
    "ctypes": lambda: ((ctypes.c_ubyte * 3 * WIDTH * HEIGHT).from_buffer_copy(PICTURE), "rgb"),
    "Pillow": lambda: (Image.fromarray(PICTURE), "rgb"),
    "Pillow with alpha": lambda: (Image.fromarray(ALPHA), "rgba"),
    "tensor": lambda: (torch.from_numpy(PICTURE.copy()), "rgb"),
    "tensor in planes": lambda: (torch.from_numpy(PICTURE.transpose(2, 0, 1).copy()).permute(1, 2, 0), "rgb"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_picture_in_any_form_has_the_same_labels(name, segmenter, want):
    image, order = PICTURES[name]()
    assert (segmenter(image, order=order).labels == want).all()


@given(st.data())
def test_any_view_of_an_array_is_described_rightly(data):
    base = np.arange(9 * 8 * 4, dtype=np.uint8).reshape(9, 8, 4)
    rows, columns = (st.slices(n).filter(lambda s, n=n: len(range(n)[s]) > 0) for n in base.shape[:2])
    view = base[data.draw(rows), data.draw(columns)]
    view = view[:, :, data.draw(st.sampled_from([slice(3), slice(1, 4), slice(2, None, -1), slice(3, 0, -1)]))]
    if data.draw(st.booleans()) and view.shape[0] == view.shape[1]:
        view = view.transpose(1, 0, 2)
    raw = image_from(view)
    assert (raw.array() == view).all()
    assert raw.row_pitch >= raw.row_bytes
    if view.flags.c_contiguous:
        assert raw.address == view.ctypes.data


def test_rows_of_pixels_are_not_copied():
    for view in (PICTURE, PICTURE[3:, 5:70], PICTURE[::2], padded(PICTURE)):
        raw = image_from(view)
        assert raw.address == view.ctypes.data
        assert (raw.size, raw.pitch) == (view.shape[:2], view.strides[0])
        assert (raw.rgb() == view).all()
    assert image_from(PICTURE[:, ::-1]).address != PICTURE.ctypes.data


def test_owners_live_as_long_as_what_was_described_and_no_longer():
    gc.disable()
    try:
        array = PICTURE.copy()
        watch = weakref.ref(array)
        view = image_from(array[:, 1:]).array()
        raw = pointer(array)
        del array
        assert (view == PICTURE[:, 1:]).all()
        del view
        assert (raw.array() == PICTURE).all()
        del raw
        assert watch() is None
    finally:
        gc.enable()


BAD_POINTERS = {
    "null": ({"address": 0}, NULL),
    "None": ({"address": None}, "address must be an integer, not NoneType None"),
    "float height": ({"height": 4.0}, "height must be an integer, not float 4.0"),
    "negative address": ({"address": -4}, "must be positive"),
    "address of 65 bits": ({"address": 2**64}, "at addresses of 2\\*\\*64 and more"),
    "end of 65 bits": ({"address": 2**64 - 32, "height": 5}, "at addresses of 2\\*\\*64 and more"),
    "no rows": ({"height": 0}, "height 0, width 8; address, height and width must be positive"),
    "negative width": ({"width": -1}, "must be positive"),
    "short pitch": ({"pitch": 23}, "pitch 23 is shorter than a row of 8 pixels, 24 bytes"),
    "zero pitch": ({"pitch": 0}, "pitch 0 is shorter"),
    "negative pitch": ({"pitch": -24}, "pitch -24 is negative.*upside down"),
    "device number": ({"device": 1}, "device 1 is unknown"),
    "device": ({"device": "gpu"}, "device 'gpu' is unknown; use 'cpu', 'cuda' or 'cuda:N'"),
}


@pytest.mark.parametrize("name", BAD_POINTERS)
def test_pointers_that_cannot_be_are_refused(name):
    changes, message = BAD_POINTERS[name]
    with pytest.raises(ImageError, match=f"RawImage.*{message}"):
        RawImage(**({"address": 4096, "height": 4, "width": 8} | changes))
    if "pitch" not in changes:
        with pytest.raises(SettingsError, match=f"RawLabels.*{message}"):
            RawLabels(**({"address": 4096, "height": 4, "width": 8} | changes))


def test_more_of_raw_pictures_and_labels():
    raw = RawImage(4096, 4, 8, order="bgra", device="cuda:2")
    assert (raw.pitch, raw.row_bytes, raw.end, raw.device_index, raw.on_host) == (32, 32, 4096 + 128, 2, False)
    assert RawImage(np.int64(4096), np.int32(4), 8, 30).end == 4096 + 3 * 30 + 24
    assert RawLabels(4096, 4, 8, dtype="uint16").pitch == 16
    assert RawLabels(2**64 - 32, 4, 8, device="cuda").end == 2**64
    with pytest.raises(SettingsError, match="order 'grb' is unknown; use 'rgb', 'bgr', 'rgba', 'bgra'"):
        RawImage(4096, 4, 8, order="grb")
    with pytest.raises(SettingsError, match="dtype 'int32' is unknown; use uint8 or uint16"):
        RawLabels(4096, 4, 8, dtype="int32")
    for odd in ({"address": 4097}, {"pitch": 17}):
        with pytest.raises(SettingsError, match="multiples of 2"):
            RawLabels(**({"address": 4096, "height": 4, "width": 8, "dtype": "uint16"} | odd))
    with pytest.raises(ImageError, match="memory of cuda:2"):
        raw.array()


BAD_PICTURES = {
    "flat": (bytearray(12), "rgb", r"12 bytes\): not a picture.*flat buffer.*cast\('B', \(height, width, 3\)\)"),
    "list": ([[[1, 2, 3]]], "rgb", "cannot be list; use numpy.asarray"),
    "None": (None, "rgb", "NoneType"),
    "alpha": (ALPHA, "rgb", "order='rgba'"),
    "no alpha": (PICTURE, "bgra", "no alpha channel; use order='rgb'"),
    "float tensor": (torch.zeros(4, 5, 3), "rgb", "floating-point"),
    "planes": (torch.zeros((3, 4, 5), dtype=torch.uint8), "rgb", "moveaxis"),
    "empty tensor": (torch.zeros((0, 5, 3), dtype=torch.uint8), "rgb", "empty"),
    "grey Pillow": (Image.fromarray(PICTURE[:, :, 0].copy()), "rgb", "grey"),
    "bfloat16": (torch.zeros((4, 5, 3), dtype=torch.bfloat16), "rgb", "the image has DLPack data type 4 of 16 bits"),
    "device planes": (CudaArray(PICTURE.transpose(1, 0, 2)), "rgb", "rows of pixels in the GPU's memory"),
    "device upside down": (CudaArray(PICTURE[::-1]), "rgb", "from the top down"),
    "device null": (CudaArray(PICTURE, data=(0, False)), "rgb", NULL),
    "device half": (CudaArray(PICTURE.astype(np.float16)), "rgb", "floating-point"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_what_is_no_picture_is_refused_with_the_way_out(name, segmenter):
    image, order, message = BAD_PICTURES[name]
    with pytest.raises(ImageError, match=message):
        segmenter(image, order=order)


def test_device_pictures_are_described_with_stream_and_pitch():
    cut = PICTURE[2:, 3:70]
    for source, stream in ((CudaArray(cut, stream=9), 9), (CudaArray(cut, version=2), None), (Tensor(cut), 5)):
        raw = image_from(source, "bgr", stream=5)
        assert (raw.address, raw.size, raw.pitch) == (cut.ctypes.data, cut.shape[:2], 3 * WIDTH)
        assert (raw.device, raw.order, raw.stream) == ("cuda:0", "bgr", stream)
    tensor = Tensor(cut)
    image_from(tensor, stream=5)
    assert tensor.streams == [5]  # the producer lets this stream wait
    assert len(tensor.deleted) == 1


OUTPUTS = {
    "array": lambda like: like.copy(),
    "padded": padded,
    "column of a larger array": lambda like: np.pad(like, 3)[3:-3, 3:-3],
    "pointer": lambda like: raw_labels(padded(like)),
    "bytearray": lambda like: bytearray(like.tobytes()),
    "memoryview": lambda like: memoryview(bytearray(like.tobytes())).cast("B", like.shape),
    "ctypes": lambda like: (ctypes.c_ubyte * WIDTH * HEIGHT)(),
    "tensor": lambda like: torch.from_numpy(like.copy()),
    "part of a tensor": lambda like: torch.zeros((HEIGHT, WIDTH + 5), dtype=torch.uint8)[:, 2:-3],
}


def raw_labels(array: np.ndarray) -> RawLabels:
    return RawLabels(array.ctypes.data, *array.shape, array.strides[0], array.dtype.name, owner=array)


def content(out: object) -> np.ndarray:
    """What lies in an output, read without `isnet_trt`."""
    if isinstance(out, RawLabels):
        out = out.owner
    return np.frombuffer(out, np.uint8).reshape(SIZE) if isinstance(out, bytearray) else np.asarray(out)


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_label_map_is_written_where_the_caller_wants_it(name, segmenter, want):
    out = OUTPUTS[name](np.full(SIZE, 99, np.uint8))
    result = segmenter(PICTURE, out=out)
    assert (content(out) == want).all()
    assert np.shares_memory(result.labels, content(out))
    assert result.labels.flags.writeable
    if isinstance(out, np.ndarray):
        assert result.labels is out


def test_nothing_outside_the_label_map_is_touched(segmenter, want):
    around = np.full((HEIGHT + 4, WIDTH + 6), 201, np.uint8)
    segmenter(PICTURE, out=around[2:-2, 3:-3])
    assert (around[2:-2, 3:-3] == want).all()
    around[2:-2, 3:-3] = 201
    assert (around == 201).all()


def test_a_label_map_outlives_its_array(segmenter, want):
    labels = segmenter(PICTURE, out=bytearray(want.size)).labels
    gc.collect()
    assert (labels == want).all()


def test_16_bit_label_maps(tmp_path):
    engine = tiny_model.open_tiny(tmp_path, 300)
    with Segmenter(engine, tiny_model.labels(300), Preprocess((200, 96))) as many:
        want = many(PICTURE).labels
        assert want.max() > 255
        for out in (padded(np.zeros(SIZE, np.uint16), 6), bytearray(2 * want.size)):
            result = many(PICTURE, out=out)
            assert result.labels.dtype == np.uint16
            assert (result.labels == want).all()
        assert (np.frombuffer(out, np.uint16).reshape(SIZE) == want).all()
        with pytest.raises(SettingsError, match=r"is uint8 \(43, 75\), but this label map is uint16"):
            many(PICTURE, out=np.zeros(SIZE, np.uint8))


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def read_only_tensor() -> Tensor:
    tensor = Tensor(np.zeros(SIZE, np.uint8))
    tensor.flags = READ_ONLY
    return tensor


BAD_OUTPUTS = {
    "size": (
        lambda: np.zeros((WIDTH, HEIGHT), np.uint8),
        r"out is uint8 \(75, 43\).*numpy.empty\(\(43, 75\), 'uint8'\)",
    ),
    "pointer size": (lambda: RawLabels(4096, 4, 8), r"out is uint8 \(4, 8\)"),
    "type": (lambda: np.zeros(SIZE, np.int64), "out is int64"),
    "pointer type": (lambda: RawLabels(4096, *SIZE, dtype="uint16"), "out is uint16"),
    "three axes": (lambda: np.zeros((*SIZE, 1), np.uint8), r"\(43, 75, 1\)"),
    "flat, short": (lambda: bytearray(WIDTH * HEIGHT - 1), r"uint8 \(3224,\)"),
    "bytes": (lambda: memoryview(bytes(WIDTH * HEIGHT)).cast("B", SIZE), "read-only.*pass a writable"),
    "frozen": (lambda: frozen(np.zeros(SIZE, np.uint8)), "read-only"),
    "read-only tensor": (read_only_tensor, "read-only"),
    "read-only device array": (lambda: CudaArray(frozen(np.zeros(SIZE, np.uint8))), "read-only"),
    "columns": (lambda: np.zeros((WIDTH, HEIGHT), np.uint8).T, "side by side"),
    "every other": (lambda: np.zeros((HEIGHT, 2 * WIDTH), np.uint8)[:, ::2], "side by side"),
    "upside down": (lambda: np.zeros(SIZE, np.uint8)[::-1], "from the top down"),
    "repeated row": (lambda: np.lib.stride_tricks.as_strided(np.zeros(WIDTH, np.uint8), SIZE, (0, 1)), "side by side"),
    "list": (lambda: [[0]], "cannot be list.*RawLabels"),
    "device array": (lambda: CudaArray(np.zeros(SIZE, np.uint8)), "out is in the memory of cuda:0.*copy it"),
    "device tensor": (lambda: Tensor(np.zeros(SIZE, np.uint8), (2, 1)), "out is in the memory of cuda:1"),
    "null": (lambda: CudaArray(np.zeros(SIZE, np.uint8), data=(0, False)), NULL),
}


@pytest.mark.parametrize("name", BAD_OUTPUTS)
def test_outputs_that_cannot_take_the_labels_are_refused_before_anything_runs(name, segmenter, monkeypatch):
    make, message = BAD_OUTPUTS[name]
    monkeypatch.setattr(segmenter.engine, "run", lambda batch: pytest.fail("the engine ran"))
    with pytest.raises(SettingsError, match=message):
        segmenter(PICTURE, out=make())


def test_one_row_may_have_any_stride(segmenter):
    line = PICTURE[:1, :20]
    out = np.zeros((5, 60), np.uint8)[::-4][:1, :20]
    assert (segmenter(line, out=out).labels == segmenter(line).labels).all()


def test_writing_over_the_picture_is_refused(segmenter):
    memory = np.zeros(HEIGHT * WIDTH * 4, np.uint8)
    image = memory[: PICTURE.size].reshape(PICTURE.shape)
    image[...] = PICTURE
    after = memory[PICTURE.size :].reshape(SIZE)
    assert (segmenter(image, out=after).labels == segmenter(PICTURE).labels).all()
    with pytest.raises(SettingsError, match=r"overlaps the image.*memory of its own"):
        segmenter(image, out=memory[PICTURE.size - 1 : -1].reshape(SIZE))
    with pytest.raises(SettingsError, match="overlaps"):
        segmenter(pointer(image), out=RawLabels(image.ctypes.data, *SIZE))
    here, there = RawImage(4096, 4, 8), RawLabels(4096, 4, 8, device="cuda")
    check_apart(here, there)  # equal numbers of different memories
    with pytest.raises(SettingsError, match="overlaps"):
        check_apart(RawImage(4096, 4, 8, device="cuda:0"), there)


@pytest.mark.parametrize("image", [CudaArray(PICTURE), Tensor(PICTURE), RawImage(4096, 4, 8, device="cuda")])
def test_device_pictures_need_an_engine_on_the_device(image, segmenter):
    with pytest.raises(SettingsError, match=r"the image is in the memory of cuda.*ONNX Runtime.*copy it"):
        segmenter(image)


class Stream:
    """As CUDA libraries for Python present theirs."""

    def __cuda_stream__(self):
        return 0, 0x7F00


def test_streams_are_handles_and_for_the_gpu_only(segmenter):
    assert stream_handle(Stream()) == 0x7F00
    assert stream_handle(0) == 0
    assert RawImage(4096, 4, 8, device="cuda", stream=Stream()).stream == 0x7F00
    for bad in (-1, "0", 1.5, object()):
        with pytest.raises(SettingsError, match="stream must be a CUDA stream's handle"):
            stream_handle(bad)
        with pytest.raises(SettingsError, match="stream must be a CUDA stream's handle"):
            RawLabels(4096, 4, 8, device="cuda", stream=bad)
    for stream in (0, 17, Stream()):
        with pytest.raises(SettingsError, match=r"GPU memory; ONNX Runtime .* leave stream out"):
            segmenter(PICTURE, stream=stream)


def test_labels_described_for_the_device():
    out = np.zeros((9, 16), np.uint16)[:, 2:10]
    tensor = Tensor(out)
    raw = labels_from(tensor, RawImage(4096, 9, 8), np.uint16, stream=3)
    assert (raw.address, raw.size, raw.pitch, raw.dtype) == (out.ctypes.data, (9, 8), 32, "uint16")
    assert (raw.device, tensor.streams) == ("cuda:0", [3])
    assert labels_from(CudaArray(out, stream=4), RawImage(4096, 9, 8), np.uint16).stream == 4
