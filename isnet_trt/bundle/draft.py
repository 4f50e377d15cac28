"""Writing bundles: as a whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import glob
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isnet_trt.bundle.files import check_name, check_no_pickle, read_json, sha256, strangers
from isnet_trt.bundle.manifest import MANIFEST, FileInfo, Manifest
from isnet_trt.errors import BundleError

_PART = ".part"
_STALE_SECONDS = 60
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class Draft:
    """A bundle being written, in a temporary folder beside its place: fill ``folder``, then call `finish`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished = False

    def finish(self, manifest: Manifest) -> Manifest:
        """Record every file's size and digest, write the manifest, and bring all of it to the disk.

        Returns the manifest as written, with ``files`` filled in.

        Raises:
            BundleError: a file is a link or a pickle, or the manifest holds what JSON cannot.
        """
        names = sorted(strangers(self.folder, ()))
        sealed = dataclasses.replace(manifest, files={name: self._record(name) for name in names})
        try:
            text = json.dumps(sealed.to_json(), indent=1, ensure_ascii=False, allow_nan=False, default=_number)
        except (TypeError, ValueError) as error:
            raise BundleError(f"the manifest cannot be written as JSON: {error}") from None
        (self.folder / MANIFEST).write_text(text + "\n", "utf-8")
        for path in (*self.folder.rglob("*"), self.folder):
            _sync(path)
        self.finished = True
        return sealed

    def _record(self, name: str) -> FileInfo:
        path = self.folder / name
        check_name(self.folder, name)
        if path.is_symlink():
            raise BundleError(f"{path} is a symbolic link; a bundle holds plain files only")
        check_no_pickle(path)
        return FileInfo(path.stat().st_size, sha256(path))


def _number(value: Any) -> Any:
    """NumPy's scalars, which parity reports are full of, as Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} is no JSON value")


@contextlib.contextmanager
def new_bundle(out: str | os.PathLike[str], force: bool = False) -> Iterator[Draft]:
    """Write a bundle as a whole or not at all.

    Yields a draft whose ``folder`` the caller fills and then seals with ``finish``; on leaving, the folder takes the
    place of ``out``. Any exception, a full disk or an interrupt leaves ``out`` as it was and no temporary folder.
    With ``force`` an existing bundle is replaced; ``out`` is at every instant either the old bundle or the new one
    (where the file system can exchange two folders, as Linux's local ones can; elsewhere both are whole, but ``out``
    is absent for the instant between two renames). What a killed process left behind is removed by the next writer.

    Raises:
        BundleError: ``out`` exists (and is not a bundle, or ``force`` is not set), or cannot be written.
    """
    target = Path(os.path.abspath(out))  # noqa: PTH100  resolve() would follow a link and write elsewhere
    check_target(target, force)
    with _refusals(target), _parents(target):
        with _temporary(target) as folder:
            draft = Draft(folder)
            yield draft
            if not draft.finished:
                raise BundleError(f"{target}: the bundle was not finished; nothing was written")
            _put_in_place(folder, target, force)
        with contextlib.suppress(OSError):  # the rename is done: not syncing its folder is no failure to write
            _sync(target.parent)


def check_target(target: Path, force: bool) -> None:
    """Refuse early what `new_bundle` would refuse, before minutes of work.

    Raises:
        BundleError: ``target`` exists and must not be replaced, or cannot be looked at.
    """
    try:
        _check_target(target, force)
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error.strerror or error}") from None


def _check_target(target: Path, force: bool) -> None:
    if target.is_symlink():
        raise BundleError(f"{target} is a symbolic link; name the folder itself")
    if not target.exists() or _is_empty(target):
        return
    if not (target / MANIFEST).is_file():
        raise BundleError(f"{target} exists and is not a bundle; it is left alone. Choose another --out")
    if not force:
        raise BundleError(f"{target} already holds a bundle; use --force to replace it, or choose another --out")
    if kept := _not_ours(target):
        raise BundleError(f"{target} holds more than a bundle ({', '.join(kept)}); it is left alone. Move them away")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _not_ours(target: Path) -> list[str]:
    """What would be lost with a bundle's folder although it is no part of the bundle."""
    data = read_json(target)
    files = data.get("files") if isinstance(data, dict) else None
    if not isinstance(files, dict):
        raise BundleError(f"{target / MANIFEST} is no bundle manifest; {target} is left alone. Choose another --out")
    return sorted(strangers(target, files))


@contextlib.contextmanager
def _refusals(target: Path) -> Iterator[None]:
    """What the file system refuses while a bundle is written, as BundleError; other OSErrors are the caller's own."""
    try:
        yield
    except OSError as error:
        path = Path(str(error.filename))
        above = path in target.parents
        ours = above or path == target or any(p.name.startswith(_prefix(target)) for p in (path, *path.parents))
        if ours or error.errno in _FULL:
            what = f"{error.strerror or error}{f' ({path})' if above else ''}"
            raise BundleError(f"{target} cannot be written: {what}; nothing was left there") from error
        raise


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """The folders above ``target``, made where missing and taken back when nothing was written."""
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: the bundle is there, or somebody else's file
                folder.rmdir()


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A fresh folder beside ``target``, on the same file system, that is gone in the end."""
    _sweep(target)
    folder = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}{_PART}")
    lock = None
    try:
        folder.mkdir()
        lock = _lock(folder)
        yield folder
    finally:
        _remove(folder)
        if lock is not None:
            os.close(lock)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:  # a second Ctrl-C while cleaning up
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _lock(folder: Path) -> int | None:
    """A lock that says "somebody is writing here" and dies with its process; None where somebody holds it."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(target: Path) -> None:
    """Remove what killed writers of ``target`` left: old temporary folders that nobody has locked."""
    for folder in target.parent.glob(f"{glob.escape(_prefix(target))}*{_PART}"):
        with contextlib.suppress(OSError):
            old = time.time() - folder.stat().st_mtime > _STALE_SECONDS
            if old and (lock := _lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _prefix(target: Path) -> str:
    return f".{target.name}."


def _put_in_place(folder: Path, target: Path, force: bool) -> None:
    check_target(target, force)  # somebody may have written there meanwhile
    if not target.exists() or _is_empty(target):
        folder.rename(target)
    elif not _exchange(folder, target):
        _step_aside(folder, target)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _step_aside(folder: Path, target: Path) -> None:
    """Replace in two renames; the old bundle comes back if the second one fails."""
    aside = folder.with_suffix(".old")
    try:
        target.rename(aside)
        folder.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    _remove(aside)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
