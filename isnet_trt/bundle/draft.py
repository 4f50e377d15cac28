"""Write bundles, as a whole or not at all: a temporary folder beside the target takes its place in one step."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from isnet_trt.bundle.files import LARGEST_MANIFEST, check_name, check_no_pickle, read_json, sha256, unlisted_files
from isnet_trt.bundle.manifest import MANIFEST, FileInfo, Manifest, manifest_from_json
from isnet_trt.errors import BundleError
from isnet_trt.files import sync

_NEW, _PART = ".new", ".part"
_STALE_SECONDS = 60
_LONGEST_PREFIX = 200
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
# renameat2(2) of Linux
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
        names = sorted(unlisted_files(self.folder, ()))
        manifest = dataclasses.replace(manifest, files={name: self._record(name) for name in names})
        try:
            # NaN and infinity are no JSON, and the reader refuses them.
            text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False, allow_nan=False, default=_number)
        except (TypeError, ValueError) as error:
            raise BundleError(f"the manifest cannot be written as JSON: {error}") from None
        if len(text) > LARGEST_MANIFEST // 4:  # of up to four bytes each
            raise BundleError(f"the manifest has {len(text)} characters, more than any bundle's should have")
        manifest_from_json(json.loads(text), MANIFEST)  # what could not be opened is not written
        (self.folder / MANIFEST).write_text(text + "\n", "utf-8")
        sync_all(self.folder)
        self.finished = True
        return manifest

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
    target = absolute(out)
    with new_folder(target, lambda: check_target(target, force)) as folder:
        draft = Draft(folder)
        yield draft
        if not draft.finished:
            raise BundleError(f"{target}: the bundle was not finished; nothing was written")


def absolute(path: str | os.PathLike[str]) -> Path:
    """``path`` as an absolute one. It may be a link: resolve() would follow it, and another folder be written."""
    return Path(os.path.abspath(path))  # noqa: PTH100


@contextlib.contextmanager
def new_folder(target: Path, check: Callable[[], None]) -> Iterator[Path]:
    """Fill a temporary folder that takes the place of ``target`` in the end, as `new_bundle` describes it.

    ``check`` raises BundleError where ``target`` may not be written or replaced; it is called twice, since another
    process may write there meanwhile.
    """
    check()
    with _bundle_errors(target), _parents(target):
        with _temporary(target) as folder:
            yield folder
            check()
            if not target.exists() or _is_empty(target):
                folder.rename(target)  # atomic: the temporary folder is on the same file system
            elif not _exchange(folder, target):  # else the temporary folder, removed on leaving, is now the old one
                _replace(folder, target)
        with contextlib.suppress(OSError):  # the rename is done: not syncing its folder is no failure to write
            sync(target.parent)


def check_target(target: Path, force: bool) -> None:
    """Raise BundleError, before minutes of work, where `new_bundle` would not write or replace ``target``."""
    try:
        if target.is_symlink():
            raise BundleError(f"{target} is a symbolic link; name the folder itself")
        if target.exists() and not _is_empty(target):
            _check_replaceable(target, force)
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error.strerror or error}") from None


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _check_replaceable(target: Path, force: bool) -> None:
    """Refuse to replace anything but a bundle, and a bundle's folder in which other files would be lost."""
    if not (target / MANIFEST).is_file():
        raise BundleError(f"{target} exists and is not a bundle; it is left alone. Choose another --out")
    if not force:
        raise BundleError(f"{target} already holds a bundle; use --force to replace it, or choose another --out")
    data = read_json(target)
    files = data.get("files") if isinstance(data, dict) else None
    if not isinstance(files, dict):
        raise BundleError(f"{target / MANIFEST} is no bundle manifest; {target} is left alone. Choose another --out")
    if extra := sorted(unlisted_files(target, files)):
        raise BundleError(f"{target} holds more than a bundle ({', '.join(extra)}); it is left alone. Move them away")


@contextlib.contextmanager
def _bundle_errors(target: Path) -> Iterator[None]:
    """Re-raise as BundleError what the file system refuses; OSErrors of the caller's other files stay as they are."""
    try:
        yield
    except OSError as error:
        path = Path(str(error.filename))
        above = path in target.parents
        temporary = any(part.name.startswith(_prefix(target)) for part in (path, *path.parents))
        if above or temporary or path == target or error.errno in _DISK_ERRORS:
            message = f"{error.strerror or error}{f' ({path})' if above else ''}"
            raise BundleError(f"{target} cannot be written: {message}; nothing was left there") from error
        raise


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Create the missing folders above ``target``, and remove them again when nothing was written."""
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # not empty: it holds the bundle, or another process's file
                folder.rmdir()


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Create a folder beside ``target``, on the same file system, and remove it in the end."""
    _sweep(target)
    new = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}{_NEW}")
    folder = new.with_suffix(_PART)
    lock = None
    try:
        new.mkdir()
        lock = _lock(new)
        # Only now the name under which others sweep: a folder of that name without a lock has no living writer.
        new.rename(folder)
        yield folder
    finally:
        _remove(folder if folder.exists() else new)
        if lock is not None:
            os.close(lock)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:  # a second Ctrl-C while cleaning up
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _lock(folder: Path) -> int | None:
    """Lock a folder that is being written, until this process ends; None where another process has locked it."""
    try:
        import fcntl  # not on Windows

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        # A lock and not a file with a process number: the kernel drops it however the process ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(target: Path) -> None:
    """Remove what killed writers of ``target`` left: temporary folders that no process has locked."""
    pattern = glob.escape(_prefix(target))
    for folder in target.parent.glob(f"{pattern}*{_PART}"):
        with contextlib.suppress(OSError):
            if (lock := _lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
    for folder in target.parent.glob(f"{pattern}*{_NEW}"):
        with contextlib.suppress(OSError):
            # A writer renames it within microseconds; killed before that, it leaves an empty folder.
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                folder.rmdir()


def _prefix(target: Path) -> str:
    """How the names of temporary folders for ``target`` begin: short, since its own may be as long as a name can be."""
    name = os.fsencode(target.name)
    return f".{target.name if len(name) <= _LONGEST_PREFIX else hashlib.sha256(name).hexdigest()}."


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    # rename(2) replaces empty folders only. RENAME_EXCHANGE swaps two names in one operation of the file system, so
    # that a reader that opens the path finds the old bundle or the new one; Python has no function for it.
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _replace(folder: Path, target: Path) -> None:
    """Replace in two renames; the old bundle comes back if the second one fails."""
    aside = folder.with_suffix(".old")  # not swept: after a kill between the renames it is the old bundle
    try:
        target.rename(aside)
        folder.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    _remove(aside)


def sync_all(folder: Path) -> None:
    """Bring a folder's content to the disk: after a power cut a folder that has its final name has all its files."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
