"""Tensors that are still in a file, and objects of a pickle that are not made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

LARGEST_INT = 1 << 60


class PickleError(ValueError):
    """The pickle cannot be read as data; the message says why, as the end of a sentence about the file."""


class ForeignObject(PickleError):
    """The pickle names a function or class that would have to be run."""


@dataclass(frozen=True)
class Storage:
    """``count`` elements of a file's storage ``key``, from element ``start`` on."""

    key: str
    dtype: torch.dtype
    count: int
    start: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose values are still in the file: ``offset`` and ``stride`` in elements of ``dtype``."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or not all(type(n) is int and 0 <= n < LARGEST_INT for n in numbers):
            raise PickleError("has a tensor of an impossible shape")
        room = self.storage.count * self.storage.dtype.itemsize // self.dtype.itemsize
        if self.offset + self.extent > room:
            raise PickleError("has a tensor that reaches beyond its stored values")

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Elements of the storage from the first to the last of the tensor."""
        steps = zip(self.shape, self.stride, strict=True)
        return 1 + sum((size - 1) * step for size, step in steps) if self.numel else 0

    @property
    def bytes(self) -> int:
        """Memory that reading and copying the tensor takes."""
        return max(self.numel, self.extent) * self.dtype.itemsize


@dataclass(frozen=True)
class Opaque:
    """An object that is not made from the file; ``kind`` is what it was."""

    kind: str
