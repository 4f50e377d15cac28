"""Read bundles and check their files. Nothing here loads, unpickles or runs what a bundle holds."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from isnet_trt.bundle.manifest import MANIFEST, ONNX, FileInfo, Manifest, manifest_from_json
from isnet_trt.errors import BundleError

_CHUNK = 1 << 20
# Far above any manifest: a huge file under its name is not read into memory.
_LARGEST_MANIFEST = 16 << 20
_REBUILD = "Copy the bundle again, or build it again with python -m isnet_trt.build"
# .npy and .npz may hold pickled objects, and .bin is a common name of PyTorch checkpoints.
_PICKLES = {".pkl", ".pickle", ".joblib", ".pth", ".pt", ".ckpt", ".npy", ".npz", ".bin"}


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The path of one of the bundle's files; BundleError if it holds no such file."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder} holds no {name}; its files: {', '.join(self.manifest.files)}")
        return self.folder / name


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex; the file is read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_bundle(folder: str | os.PathLike[str], verify: bool = True) -> Bundle:
    """Open a bundle: manifest, schema, and every file's presence, size and (with ``verify``) SHA-256.

    No engine library is imported; `isnet_trt.engines.select.check_engine` tells whether the engine can run here.

    Raises:
        BundleError: what is wrong, with which file, and what to do.
    """
    root = Path(folder)
    manifest = manifest_from_json(read_json(root), str(root / MANIFEST))
    _check_names(root, manifest)
    try:
        if extra := sorted(unlisted_files(root, manifest.files)):
            raise BundleError(f"{root} holds files that its {MANIFEST} does not list: {', '.join(extra)}. Remove them")
        for name, info in manifest.files.items():
            _check_file(root, name, info)
        # Sizes of all files first: a bundle copied in part is refused at once, without reading gigabytes.
        for name, info in manifest.files.items() if verify else ():
            if sha256(root / name) != info.sha256:
                path = root / name
                raise BundleError(f"{path} was changed after the bundle was built (SHA-256 differs). {_REBUILD}")
            check_no_pickle(root / name)
    except OSError as error:
        raise BundleError(f"{error.filename or root} cannot be read: {error.strerror or error}") from None
    return Bundle(root, manifest)


def read_json(root: Path) -> Any:
    """The content of a bundle's manifest, unchecked; BundleError if ``root`` holds no readable one."""
    if not root.is_dir():
        raise BundleError(f"{root} is not a folder: a bundle is the folder that python -m isnet_trt.build writes")
    path = root / MANIFEST
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise BundleError(f"{path} is larger than any bundle manifest ({_LARGEST_MANIFEST >> 20} MiB)")
        return json.loads(path.read_text("utf-8"), object_pairs_hook=_object, parse_constant=_refuse)
    except FileNotFoundError:
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from None
    # The parser of JSON recurses: deep nesting is a RecursionError.
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: it is no JSON ({error}). {_REBUILD}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    # JSON leaves open which of two equal names counts: another reader could see another manifest.
    if len(set(names)) != len(names):
        raise ValueError(f"the name {max(names, key=names.count)!r} comes twice")
    return dict(pairs)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _check_names(root: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        check_name(root, name)
    for name in (ONNX, manifest.engine.file):
        if name not in manifest.files:
            raise BundleError(f"{root / MANIFEST} is damaged: it does not list {name}. {_REBUILD}")


def check_name(root: Path, name: str) -> None:
    """Raise BundleError for a file name that leads out of the bundle in ``root`` or promises a pickle."""
    path = PurePosixPath(name)
    # A name must be in the one form that finish() writes: "a//b", "./a" or "a/../b" would slip past a comparison.
    plain = name == str(path) and not path.is_absolute() and ".." not in path.parts and name not in (".", MANIFEST)
    if not plain or "\\" in name or ":" in name or not name.isprintable():
        raise BundleError(f"{root / MANIFEST} lists {name!r}, which is no file of a bundle; do not trust this bundle")
    if path.suffix.lower() in _PICKLES:
        raise BundleError(f"{root / MANIFEST} lists {name!r}: a bundle never contains a pickle")


def unlisted_files(root: Path, names: Collection[str]) -> Iterator[str]:
    """Files below ``root`` that are not in ``names``; links count as files, hidden files (``.nfs…``) are ignored."""
    for folder, folders, files in os.walk(root, onerror=_raise):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*files, *links):
            relative = (Path(folder) / name).relative_to(root).as_posix()
            if not name.startswith(".") and relative not in names and relative != MANIFEST:
                yield relative


def _raise(error: OSError) -> None:
    raise error


def _check_file(root: Path, name: str, info: FileInfo) -> None:
    path = root / name
    parents = PurePosixPath(name).parents
    if any((root / part).is_symlink() for part in (name, *map(str, parents)) if part != "."):
        raise BundleError(f"{path} is or lies behind a symbolic link; a bundle holds plain files only. {_REBUILD}")
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: the bundle is incomplete. {_REBUILD}") from None
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a plain file. {_REBUILD}")
    if status.st_size != info.bytes:
        raise BundleError(f"{path} has {status.st_size} bytes instead of {info.bytes}: copied in part? {_REBUILD}")


def check_no_pickle(path: Path) -> None:
    """Raise BundleError for a pickle or a zip archive (as torch checkpoints are), whatever the file's name."""
    with path.open("rb") as stream:
        head = stream.read(4)
        stream.seek(max(0, path.stat().st_size - 1))
        last = stream.read(1)
    # From protocol 2 on a pickle begins with PROTO and its version, and ends with STOP, a full stop.
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and last == b"."
    # Raw tensors may start with these bytes by chance; nothing but the ONNX reader opens them.
    if path.suffix != ".data" and (pickled or head == b"PK\x03\x04"):
        raise BundleError(f"{path} is a pickle or an archive under another name; do not trust this bundle")
