"""DLPack: capsules of real libraries, and doubles that present GPU memory to the letter."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from dlpack_producer import OldTensor, Tensor

from isnet_trt.pictures.dlpack import CPU, CUDA_HOST, CUDA_MANAGED, READ_ONLY, of_dlpack
from isnet_trt.pictures.memory import Refused

PICTURE = np.random.default_rng(3).integers(0, 256, (7, 5, 3), np.uint8)
ROCM = 10


class Numpy:
    """numpy's own DLPack, without numpy's other protocols."""

    def __init__(self, of):
        self._array = of

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


REAL = {
    "torch": lambda: torch.from_numpy(PICTURE.copy()),
    "torch, transposed": lambda: torch.from_numpy(PICTURE.transpose(2, 0, 1).copy()).permute(1, 2, 0),
    "torch, part": lambda: torch.from_numpy(np.pad(PICTURE, ((2, 1), (3, 4), (0, 0))))[2:-1, 3:-4],
    "torch, float16": lambda: torch.from_numpy(PICTURE.copy()).half(),
    "numpy": lambda: Numpy(PICTURE.copy()),
    "numpy, upside down": lambda: Numpy(PICTURE[::-1].copy()[::-1]),
    "numpy, bool": lambda: Numpy(PICTURE > 9),
}


@pytest.mark.parametrize("name", REAL)
def test_dlpack_of_real_libraries(name):
    source = REAL[name]()
    memory = of_dlpack(source)
    assert memory.device == "cpu"
    want = PICTURE > 9 if "bool" in name else PICTURE
    assert (memory.array() == want).all()
    assert memory.dtype == ("bool" if "bool" in name else "float16" if "16" in name else "uint8")
    assert of_dlpack(source).address == memory.address  # where it is, not a copy


def test_dlpack_memory_lives_as_long_as_it_is_described_and_no_longer():
    gc.disable()
    try:
        source = PICTURE.copy()
        watch = weakref.ref(source)
        view = of_dlpack(Numpy(source)).array()
        want = source.copy()
        del source
        assert watch() is not None
        assert (view == want).all()
        del view
        assert watch() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [Tensor, OldTensor])
@pytest.mark.parametrize("versioned", [True, False])
def test_dlpack_capsules_are_consumed_and_deleted_once(kind, versioned):
    tensor = kind(PICTURE, (2, 3), versioned=versioned)
    memory = of_dlpack(tensor, 11)
    form = b"dltensor_versioned" if versioned and kind is Tensor else b"dltensor"
    assert tensor.names == [b"used_" + form]
    assert tensor.streams == [11]
    assert (memory.address, memory.shape, memory.strides) == (PICTURE.ctypes.data, (7, 5, 3), (15, 3, 1))
    assert (memory.device, memory.dtype, memory.read_only, memory.stream) == ("cuda:3", np.uint8, False, 11)
    assert tensor.deleted == []
    del memory
    assert len(tensor.deleted) == 1


def test_dlpack_fields():
    tensor = Tensor(PICTURE[1:, 2:, :])
    tensor.offset = 96
    assert of_dlpack(tensor).address == PICTURE[1:, 2:].ctypes.data
    assert of_dlpack(tensor).strides == (15, 3, 1)
    assert tensor.streams == [1, 1]  # the legacy default stream where none is named
    tensor = Tensor(np.zeros((4, 6), np.uint16))
    tensor.null_strides, tensor.flags = True, READ_ONLY
    assert of_dlpack(tensor).strides == (12, 2)
    assert of_dlpack(tensor).read_only
    assert of_dlpack(Tensor(PICTURE, (CUDA_MANAGED, 0))).device == "cuda:0"
    for host in (CPU, CUDA_HOST):
        tensor = Tensor(PICTURE, (host, 0))
        assert (of_dlpack(tensor, 11).array() == PICTURE).all()
        assert of_dlpack(tensor).stream is None
        assert tensor.streams == [None, None]
    assert of_dlpack(PICTURE.tobytes()) is None


def test_dlpack_that_cannot_be_used_is_refused_and_given_back():
    for changes, message in (
        ({"major": 2}, "DLPack 2"),
        ({"code": 4}, "data type 4 of 8 bits"),
        ({"lanes": 4}, "8 bits x 4"),
    ):
        tensor = Tensor(PICTURE)
        vars(tensor).update(changes)
        with pytest.raises(Refused, match=message):
            of_dlpack(tensor)
        gc.collect()  # the exception's frames hold the capsule's content
        assert len(tensor.deleted) == 1
    with pytest.raises(Refused, match="device type 10"):
        of_dlpack(Tensor(PICTURE, (ROCM, 0)))


def test_dlpack_capsules_are_read_once_and_producers_may_refuse():
    tensor = Tensor(PICTURE)
    producer = producer_of(tensor.__dlpack__(max_version=(1, 0)))
    kept = of_dlpack(producer)
    with pytest.raises(Refused, match="used before"):
        of_dlpack(producer)
    assert kept.shape == (7, 5, 3)
    with pytest.raises(Refused, match="grad"):
        of_dlpack(torch.zeros((4, 5, 3), requires_grad=True))


def producer_of(capsule):
    """A producer that always hands out this capsule."""

    class Producer:
        def __dlpack__(self, **options):
            return capsule

        def __dlpack_device__(self):
            return 2, 0

    return Producer()
