"""The files of checkpoints: torch's ZIP archive, its format before version 1.6, and safetensors.

A file is opened once and must be a regular one. Its content is plain data (`isnet_trt.training.pickles`); values of
tensors are read when they are asked for, into memory of their own. Sizes are looked at before anything is allocated,
and every entry of an archive is compared with its CRC-32.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from isnet_trt.errors import CheckpointError, install_hint
from isnet_trt.files import open_regular
from isnet_trt.training import pickles
from isnet_trt.training.stored import ForeignObject, PickleError, StoredTensor

LARGEST_FILE = 16 << 30
"""Bytes of a file. The largest published model has 0.4 GB."""
SMALL = 1 << 30
"""Bytes of memory that the tensors of any file may take."""
_LARGEST_DIRECTORY = 8 << 20
_ZIP = b"PK\x03\x04"
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
"""First bytes of the two formats of `torch.save`: a ZIP archive, or a pickle of protocol 2 (the default) to 5."""
_MAGIC = 0x1950A86A20F9469CFC6C
_CHUNK = 1 << 20
_DEEPEST = 32

Entry = StoredTensor | Tensor
"""A tensor of a file: still in it, or read."""


@dataclass
class CheckpointFile:
    """An open file: its content as plain data with `Entry` for each tensor; ``sha256`` is its digest in hex."""

    path: Path
    stream: BinaryIO
    content: Any
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """First byte and number of bytes of each storage."""
    swapped: bool = False
    """Whether numbers are stored with the most significant byte first."""
    sha256: str = ""
    _memory: int = 0

    def tensor(self, entry: Entry) -> Tensor:
        """The values of a tensor, in memory of its own.

        Raises:
            CheckpointError: they are not in the file, or take more memory than is left or allowed: twice the size of
                the file, at least `SMALL`.
        """
        if isinstance(entry, Tensor):
            return entry
        self._memory += entry.bytes
        if self._memory > max(SMALL, 2 * os.fstat(self.stream.fileno()).st_size):
            raise CheckpointError(
                f"{self.path}: its tensors repeat a few stored values up to more than {self._memory >> 20} MiB; save "
                "tensors of their own: tensor.clone()"
            )
        storage, itemsize = entry.storage, entry.dtype.itemsize
        start, size = self.places.get(storage.key, (0, 0))
        first, count = storage.start * storage.dtype.itemsize + entry.offset * itemsize, entry.extent * itemsize
        if first + count > size:
            raise CheckpointError(f"{self.path} is incomplete: the values of a tensor are not all there")
        try:
            content = torch.empty(count, dtype=torch.uint8)
        except RuntimeError:  # torch's error for memory that is used up
            raise CheckpointError(f"{self.path}: too little memory for a tensor of {count >> 20} MiB") from None
        self.stream.seek(start + first)
        if count and self.stream.readinto(content.numpy().data) != count:  # type: ignore[attr-defined]
            raise CheckpointError(f"{self.path} was cut while it was read; load it again")
        values = content.view(entry.dtype) if count else torch.empty(0, dtype=entry.dtype)
        if self.swapped:
            values.untyped_storage().byteswap(entry.dtype)
        return values.as_strided(entry.shape, entry.stride)

    def loaded(self, content: Any, depth: int = 0) -> Any:
        """``content`` with the values of all its tensors; CheckpointError if it is nested too deeply."""
        if depth > _DEEPEST:
            raise CheckpointError(f"{self.path} has containers within containers, more than {_DEEPEST} deep")
        match content:
            case StoredTensor() | Tensor():
                return self.tensor(content)
            case dict():
                return {key: self.loaded(value, depth + 1) for key, value in content.items()}
            case list() | tuple():
                return type(content)(self.loaded(item, depth + 1) for item in content)
        return content


@contextlib.contextmanager
def opened(path: Path, shown: Path | None = None) -> Iterator[CheckpointFile]:
    """Open a checkpoint, check the checksums that it has, and read its content.

    Error messages name ``shown``, if given, instead of ``path``.

    Raises:
        CheckpointError: the file cannot be read, is damaged, too large or no checkpoint, or holds objects that would
            have to be run. Also what reading fails with inside the ``with`` block.
    """
    shown = shown or path
    try:
        with open_regular(path) as stream:
            yield _checked(shown, stream)
    except OSError as error:
        raise CheckpointError(f"{shown} cannot be read: {error.strerror or error}") from None


def _checked(path: Path, stream: BinaryIO) -> CheckpointFile:
    size = os.fstat(stream.fileno()).st_size
    if size > LARGEST_FILE:
        raise CheckpointError(f"{path} is too large: {size >> 30} GiB, the limit is {LARGEST_FILE >> 30} GiB")
    start = stream.read(9)
    stream.seek(0)
    if not start:
        raise CheckpointError(f"{path} is empty; copy or download the checkpoint again")
    try:
        file = _read(path, stream, start, size)
    except (CheckpointError, OSError):
        raise
    except ForeignObject as error:
        raise CheckpointError(
            f"{path} holds a Python object ({error}) besides tensors and plain containers; nothing of it was run. "
            "Save the weights alone: torch.save({'model': model.state_dict()}, FILE)"
        ) from None
    except PickleError as error:
        raise CheckpointError(f"{path} {error} (nothing of it was run)") from None
    except Exception:  # a foreign file makes the readers raise anything
        raise CheckpointError(
            f"{path} is damaged, incomplete or no PyTorch checkpoint (nothing of it was run); copy or download it again"
        ) from None
    digest = hashlib.sha256()
    for chunk in _chunks(stream, 0, size):
        digest.update(chunk)
    file.sha256 = digest.hexdigest()
    return file


def _read(path: Path, stream: BinaryIO, start: bytes, size: int) -> CheckpointFile:
    if start.startswith(_ZIP):
        return _read_zip(path, stream, size)
    if start.startswith(_PICKLES):
        return _read_old(path, stream, size)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < size:
        return CheckpointFile(path, stream, _read_safetensors(path, stream))
    if start.startswith(b"version "):
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the checkpoint itself; run git lfs pull")
    raise CheckpointError(
        f"{path} is not a PyTorch checkpoint (it begins with {start[:8]!r}); give a .pth or .safetensors file"
    )


def _read_zip(path: Path, stream: BinaryIO, size: int) -> CheckpointFile:
    entries = _zip_entries(path, stream, size)
    pickle = next((name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1), None)
    if pickle is None:
        raise ValueError("no archive of torch.save")
    root = pickle.removesuffix("data.pkl")
    if f"{root}constants.pkl" in entries:
        raise CheckpointError(f"{path} is a TorchScript archive; give the checkpoint with the state dict instead")
    content = pickles.load(io.BytesIO(_bytes_at(stream, *entries[pickle])))
    order = _bytes_at(stream, *entries[f"{root}byteorder"]) if f"{root}byteorder" in entries else b"little"
    places = {name.removeprefix(f"{root}data/"): place for name, place in entries.items()}
    return CheckpointFile(path, stream, content, places, order == b"big")


def _zip_entries(path: Path, stream: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """First byte and number of bytes of each entry, whose CRC-32 was found right."""
    entries: dict[str, tuple[int, int]] = {}
    listed = zipfile.ZipFile(_Directory(stream)).infolist()
    stored = [info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1 for info in listed]
    if all(stored) and sum(info.file_size for info in listed) > size:
        raise ValueError("entries overlap")
    # torch.serialization.set_crc32_options(False) writes 0 for all.
    checksums = any(info.CRC for info in listed)
    for info, plain in zip(listed, stored, strict=True):
        if not plain or info.filename in entries:
            raise CheckpointError(
                f"{path}: its entry {info.filename!r:.80} is compressed, encrypted or there twice, which torch.save "
                "does not write; save the checkpoint again with torch.save"
            )
        stream.seek(info.header_offset)
        head = struct.unpack("<4s22x2H", stream.read(30))
        start = info.header_offset + 30 + head[1] + head[2]
        if head[0] != _ZIP or start + info.file_size > size:
            raise ValueError("an entry is not where it should be")
        entries[info.filename] = start, info.file_size
        if checksums and _crc32(stream, start, info.file_size) != info.CRC:
            raise CheckpointError(
                f"{path} is damaged: its entry {info.filename!r:.80} has another CRC-32 than when it was written; copy "
                "or download it again"
            )
    return entries


class _Directory:
    """A file for `zipfile`, which reads the directory of an archive at once, however large the archive says it is."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(_LARGEST_DIRECTORY + 1 if size < 0 else min(size, _LARGEST_DIRECTORY + 1))
        if len(content) > _LARGEST_DIRECTORY:
            raise PickleError("has more entries than any checkpoint")
        return content


def _crc32(stream: BinaryIO, start: int, size: int) -> int:
    value = 0
    for chunk in _chunks(stream, start, size):
        value = zlib.crc32(chunk, value)
    return value


def _chunks(stream: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    stream.seek(start)
    while size > 0 and (chunk := stream.read(min(size, _CHUNK))):
        size -= len(chunk)
        yield chunk


def _bytes_at(stream: BinaryIO, start: int, size: int) -> bytes:
    if size > pickles.LARGEST:
        raise PickleError(f"has a pickle of {size >> 20} MiB, the limit is {pickles.LARGEST >> 20}")
    stream.seek(start)
    return stream.read(size)


def _read_old(path: Path, stream: BinaryIO, size: int) -> CheckpointFile:
    """The format before torch 1.6: five pickles, then each storage with its number of elements in front."""
    head = io.BytesIO(stream.read(pickles.LARGEST))
    sizes: dict[str, int] = {}
    magic, version, system, content, keys = (pickles.load(head, sizes) for _ in range(5))
    if magic != _MAGIC or version != 1001 or not isinstance(keys, list):
        raise ValueError("no file of torch.save")
    swapped = isinstance(system, dict) and system.get("little_endian") is False
    places, position = {}, head.tell()
    for key in keys:
        stream.seek(position)
        count = int.from_bytes(stream.read(8), "big" if swapped else "little")
        places[key] = position + 8, count * sizes[key]
        position += 8 + count * sizes[key]
        if position > size:
            raise ValueError("the file is cut")
    return CheckpointFile(path, stream, content, places, swapped)


def _read_safetensors(path: Path, stream: BinaryIO) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        raise CheckpointError(f"{path}: reading it needs the package safetensors: {install_hint('build')}") from None
    try:
        return load(stream.read())
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: an element type that torch has not
        raise CheckpointError(f"{path} is a damaged safetensors file ({error}); copy or download it again") from None
