"""Read bundles and check their files. Nothing here loads, unpickles or runs what a bundle holds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from isnet_trt.bundle.manifest import MANIFEST, ONNX, REPORT, FileInfo, Manifest, manifest_from_json
from isnet_trt.errors import BundleError, first_few
from isnet_trt.files import open_regular

LARGEST_MANIFEST = 8 << 20
"""Bytes; far above any manifest: a huge file under its name is not read into memory."""
_CHUNK = 1 << 20
_LONGEST_QUOTE = 120
_REBUILD = "Copy the bundle again, or build it again with python -m isnet_trt.build"
# .npy and .npz may hold pickled objects, and .bin is a common name of PyTorch checkpoints.
_PICKLES = {".pkl", ".pickle", ".joblib", ".pth", ".pt", ".ckpt", ".npy", ".npz", ".bin"}


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read and checked.

    What is used of a bundle is the bytes that `read` returns: a library that opened the path again could get others.
    """

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The path of one of the bundle's files; BundleError if it holds no such file."""
        self._info(name)
        return self.folder / name

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The content of one of the bundle's files, read once and checked against the manifest.

        Raises:
            BundleError: there is no such file, it has more than ``limit`` bytes, cannot be read, is no plain file, was
                changed, or is a pickle.
        """
        info = self._info(name)
        path = self.folder / name
        if limit is not None and info.bytes > limit:
            raise BundleError(f"{path} is too large: {info.bytes} bytes, the limit is {limit}")
        try:
            with _open_file(self.folder, name, info) as stream:
                content = stream.read(info.bytes)
        except MemoryError:
            raise BundleError(f"{path} cannot be read: {info.bytes} bytes do not fit in memory") from None
        if len(content) != info.bytes or hashlib.sha256(content).hexdigest() != info.sha256:
            raise _changed(path)
        _check_no_pickle(path, content[:4], content[-1:])
        return content

    def check(self, names: Iterable[str] | None = None) -> None:
        """Check the content of files (default: all), in pieces; raises the errors of `read`."""
        for name in self.manifest.files if names is None else names:
            info, path = self._info(name), self.folder / name
            with _open_file(self.folder, name, info) as stream:
                digest = _digest(stream)
                if digest != info.sha256:
                    raise _changed(path)
                _check_no_pickle(path, *_ends(stream))

    def unlisted(self) -> list[str]:
        """Files in the folder that are no part of the bundle; they are never read."""
        return sorted(unlisted_files(self.folder, self.manifest.files, lenient=True))

    def _info(self, name: str) -> FileInfo:
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder} holds no {name}; its files: {first_few([*self.manifest.files])}")
        return self.manifest.files[name]


def content_digest(digests: Mapping[str, str]) -> str:
    """One SHA-256 for all files but those of the report, which states it.

    ``digests`` are SHA-256 by file name. The digest is that of the lines "SHA-256  name" in the order of the names:
    what ``sha256sum`` prints.
    """
    lines = [f"{digests[name]}  {name}\n" for name in sorted(digests) if not re.match(rf"{REPORT}[./]", name)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex; the file is read in pieces of 1 MiB."""
    with path.open("rb") as stream:
        return _digest(stream)


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _changed(path: Path) -> BundleError:
    return BundleError(f"{path} was changed after the bundle was built (SHA-256 differs). {_REBUILD}")


def read_bundle(folder: str | os.PathLike[str], verify: bool = True) -> Bundle:
    """Open a bundle: manifest, schema, and every file's presence, size and (with ``verify``) SHA-256.

    Other files in the folder are ignored. No engine library is imported; `isnet_trt.engines.select.check_engine` tells
    whether the engine can run here.

    Raises:
        BundleError: what is wrong, with which file, and what to do.
    """
    root = Path(folder)
    bundle = Bundle(root, manifest_from_json(read_json(root), str(root / MANIFEST)))
    _check_names(root, bundle.manifest)
    # Sizes of all files first: a bundle copied in part is refused at once, without reading gigabytes.
    for name, info in bundle.manifest.files.items():
        try:
            _check_file(root, name, info)
        except OSError as error:
            raise _unreadable(root / name, error) from None
    if verify:
        bundle.check()
    return bundle


def read_json(root: Path) -> Any:
    """The content of a bundle's manifest, unchecked; BundleError if ``root`` holds no readable one."""
    path = root / MANIFEST
    try:
        if not root.is_dir():
            raise BundleError(f"{root} is not a folder: a bundle is the folder that python -m isnet_trt.build writes")
        with open_regular(path, follow_links=False) as stream:
            text = stream.read(LARGEST_MANIFEST + 1)
        if len(text) > LARGEST_MANIFEST:
            raise BundleError(f"{path} is larger than any bundle manifest ({LARGEST_MANIFEST >> 20} MiB)")
        return json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse)
    except FileNotFoundError:
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    # The parser of JSON recurses: deep nesting is a RecursionError.
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: it is no JSON ({error}). {_REBUILD}") from None


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path} cannot be read: {error.strerror or error}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    # JSON leaves open which of two equal names counts: another reader could see another manifest.
    if len(data) != len(pairs):
        seen: set[str] = set()
        # set.add returns None: the first name that is there already ends the search.
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {_quoted(name)} comes twice")
    return data


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _quoted(name: str) -> str:
    return repr(name if len(name) <= _LONGEST_QUOTE else name[:_LONGEST_QUOTE] + "…")


def _check_names(root: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        check_name(root, name)
    for name in (ONNX, manifest.engine.file):
        if name not in manifest.files:
            raise BundleError(f"{root / MANIFEST} is damaged: it does not list {name[:_LONGEST_QUOTE]}. {_REBUILD}")


def check_name(root: Path, name: str) -> None:
    """Raise BundleError for a file name that leads out of the bundle in ``root`` or promises a pickle."""
    path = PurePosixPath(name)
    # A name must be in the one form that finish() writes: "a//b", "./a" or "a/../b" would slip past a comparison.
    plain = name == str(path) and not path.is_absolute() and ".." not in path.parts and name not in (".", MANIFEST)
    if not plain or "\\" in name or ":" in name or not name.isprintable():
        raise BundleError(
            f"{root / MANIFEST} lists {_quoted(name)}, which is no file of a bundle; do not trust this bundle"
        )
    if path.suffix.lower() in _PICKLES:
        raise BundleError(f"{root / MANIFEST} lists {_quoted(name)}: a bundle never contains a pickle")


def unlisted_files(root: Path, names: Collection[str], lenient: bool = False) -> Iterator[str]:
    """Files below ``root`` that are not in ``names``; links count as files.

    Hidden files (``.nfs…``) are left out, and a folder that cannot be read is an OSError. ``lenient`` gives hidden
    files too and passes over such folders.
    """
    for folder, folders, files in os.walk(root, onerror=None if lenient else _raise):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*files, *links):
            relative = (Path(folder) / name).relative_to(root).as_posix()
            if (lenient or not name.startswith(".")) and relative not in names and relative != MANIFEST:
                yield relative


def _raise(error: OSError) -> None:
    raise error


def _check_file(root: Path, name: str, info: FileInfo) -> None:
    path = root / name
    parents = PurePosixPath(name).parents
    if any((root / part).is_symlink() for part in (name, *map(str, parents)) if part != "."):
        raise _linked(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: the bundle is incomplete. {_REBUILD}") from None
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a plain file. {_REBUILD}")
    if status.st_size != info.bytes:
        raise BundleError(f"{path} has {status.st_size} bytes instead of {info.bytes}: copied in part? {_REBUILD}")


def _linked(path: Path) -> BundleError:
    return BundleError(f"{path} is or lies behind a symbolic link; a bundle holds plain files only. {_REBUILD}")


@contextlib.contextmanager
def _open_file(root: Path, name: str, info: FileInfo) -> Iterator[BinaryIO]:
    """Open a listed file, checked as `_check_file` does; a system error while it is read is a BundleError as well."""
    try:
        _check_file(root, name, info)
        with open_regular(root / name, follow_links=False) as stream:
            yield stream
    except OSError as error:
        raise _unreadable(root / name, error) from None


def check_no_pickle(path: Path) -> None:
    """Raise BundleError for a pickle or a zip archive (as torch checkpoints are), whatever the file's name."""
    with path.open("rb") as stream:
        _check_no_pickle(path, *_ends(stream))


def _ends(stream: BinaryIO) -> tuple[bytes, bytes]:
    """The first four bytes and the last one."""
    stream.seek(0)
    first = stream.read(4)
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
    return first, stream.read(1)


def _check_no_pickle(path: Path, first: bytes, last: bytes) -> None:
    # From protocol 2 on a pickle begins with PROTO and its version, and ends with STOP, a full stop.
    pickled = first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and last == b"."
    # Raw tensors may start with these bytes by chance; nothing but the ONNX reader opens them.
    if path.suffix != ".data" and (pickled or first == b"PK\x03\x04"):
        raise BundleError(f"{path} is a pickle or an archive under another name; do not trust this bundle")
