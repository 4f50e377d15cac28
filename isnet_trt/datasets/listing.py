"""Find the files of a data set; one that cannot be read is found too, so that it is not left out in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from isnet_trt.errors import DataError, first_few
from isnet_trt.files import obstacle

Folders = tuple[tuple[int, int], ...]
"""Device and inode of each folder on the way."""


def matching(folder: Path, pattern: Sequence[str], above: Folders = ()) -> Iterator[Path]:
    """The files and folders below ``folder`` that the parts of a glob pattern match, sorted within each folder.

    ``**`` stands for any number of folders. Unlike `Path.glob` this follows links to folders everywhere, and names a
    folder that cannot be read.

    Raises:
        DataError: a folder cannot be read, or a link leads to a folder above itself.
    """
    if pattern[0] == "**":
        yield from matching(folder, pattern[1:] or ("*",), above)
    above = _entered(folder, above)
    for path in _content(folder):
        if pattern[0] == "**":
            if path.is_dir():
                yield from matching(path, pattern, above)
        elif fnmatchcase(path.name, pattern[0]):
            if len(pattern) == 1:
                yield path
            elif path.is_dir():
                yield from matching(path, pattern[1:], above)


def _entered(folder: Path, above: Folders) -> Folders:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in above:
        raise DataError(f"{folder} is a link to a folder above it: remove it")
    return (*above, (status.st_dev, status.st_ino))


def _content(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; its files may belong to the set") from None


def refuse_unreadable(paths: Sequence[Path], kind: str) -> None:
    """Raise `DataError` if one of ``paths``, ``kind`` in the message, cannot be opened: it says which and why."""
    bad = [f"{path} ({reason})" for path in paths if (reason := obstacle(path))]
    if bad:
        raise DataError(f"{len(bad)} of {len(paths)} {kind} cannot be read: {first_few(bad)}; mend or remove them")
