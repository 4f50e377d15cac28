"""The protocols by which memory is presented, read one by one."""

from __future__ import annotations

import array
import ctypes
import weakref

import numpy as np
import pytest
from dlpack_producer import CudaArray

from isnet_trt.pictures.memory import Refused, of_array, of_buffer, of_cuda_interface

PICTURE = np.random.default_rng(3).integers(0, 256, (7, 5, 3), np.uint8)


class Interface:
    """An object with nothing but ``__array_interface__``, as Pillow's pictures are."""

    def __init__(self, of):
        self._array = of
        self.__array_interface__ = of.__array_interface__


BUFFERS = {
    "bytes": lambda: memoryview(PICTURE.tobytes()).cast("B", PICTURE.shape),
    "bytearray": lambda: memoryview(bytearray(PICTURE.tobytes())).cast("B", PICTURE.shape),
    "ctypes": lambda: (ctypes.c_ubyte * 3 * 5 * 7).from_buffer_copy(PICTURE),
    "C char": lambda: (ctypes.c_char * 3 * 5 * 7).from_buffer_copy(PICTURE),
    "array interface": lambda: Interface(PICTURE.copy()),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_are_read_where_they_are(name):
    source = BUFFERS[name]()
    memory = of_buffer(source)
    assert (memory.array() == PICTURE).all()
    assert (memory.device, memory.dtype, memory.shape, memory.strides) == ("cpu", np.uint8, (7, 5, 3), (15, 3, 1))
    assert memory.read_only == (name == "bytes")
    if not memory.read_only:
        memory.array()[1, 2] = PICTURE[1, 2] + 1
        assert (of_buffer(source).array()[1, 2] == PICTURE[1, 2] + 1).all()


def test_a_flat_bytearray_and_array_module():
    assert of_buffer(bytearray(b"abc")).shape == (3,)
    assert of_buffer(array.array("H", [1, 2])).dtype == np.uint16
    assert of_buffer(3) is None
    assert of_buffer([1, 2]) is None


def test_rows_and_their_padding():
    wide = np.zeros((7, 9, 3), np.uint8)
    assert of_array(PICTURE).pitch == 15
    assert of_array(wide[:, :5]).pitch == 27
    assert of_array(wide[::-1]).pitch is None
    assert of_array(wide[:, ::2]).pitch is None
    assert of_array(wide[:, :, ::-1]).pitch is None
    assert of_array(wide[::-1][:1, ::9]).pitch == 3  # of axes of length 1 the strides mean nothing


def test_cuda_interface_versions_and_entries():
    picture = PICTURE.copy()
    plain = of_cuda_interface(CudaArray(picture))
    assert (plain.address, plain.shape, plain.strides) == (picture.ctypes.data, (7, 5, 3), (15, 3, 1))
    assert (plain.device, plain.read_only, plain.stream) == ("cuda:0", False, None)
    assert of_cuda_interface(CudaArray(picture[:, 1:4])).strides == (15, 3, 1)
    assert of_cuda_interface(CudaArray(picture, stream=7)).stream == 7
    assert of_cuda_interface(CudaArray(picture, stream=7, version=2)).stream is None
    assert of_cuda_interface(CudaArray(picture, data=(4096, True))).read_only
    assert of_cuda_interface(picture) is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"version": 1}, "version 1; versions from 2 on"),
        ({"stream": 0}, "stream 0"),
        ({"mask": CudaArray(PICTURE)}, "masked"),
        ({"strides": (15, 3)}, "3 sizes but 2 strides"),
        ({"typestr": "?!"}, "without a usable entry"),
        ({"data": 4096}, "without a usable entry"),
        ({"shape": None}, "without a usable entry"),
    ],
)
def test_cuda_interfaces_that_make_no_sense_are_refused(entries, message):
    with pytest.raises(Refused, match=message):
        of_cuda_interface(CudaArray(PICTURE, **entries))


def test_cuda_interface_keeps_its_source():
    source = CudaArray(PICTURE)
    watch = weakref.ref(source)
    memory = of_cuda_interface(source)
    del source
    assert watch() is not None
    del memory
    assert watch() is None
