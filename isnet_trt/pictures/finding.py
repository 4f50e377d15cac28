"""Find the images that files, folders, globs and URLs on a command line mean."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from isnet_trt.errors import ImageError
from isnet_trt.pictures.download import check_url, fetch, is_url, url_host, url_stem
from isnet_trt.pictures.files import Image, decode_image, is_folder, read_image
from isnet_trt.pictures.results import is_result

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""The files that are taken from a folder; a file given by name is tried whatever its suffix."""


@dataclass(frozen=True)
class ImageSource:
    """A picture file, or the http(s) URL of one.

    Attributes:
        location: the file's path, or the URL as text.
        subfolder: the file's folder below the one that was searched; empty for files given by name.
    """

    location: Path | str
    subfolder: PurePath = field(default=PurePath(), compare=False)

    def read(self) -> Image:
        """The image, uint8 (H, W, 3) RGB; ImageError if it cannot be read."""
        if isinstance(self.location, Path):
            return read_image(self.location)
        return decode_image(fetch(self.location), self.location)

    @property
    def name(self) -> str:
        """The file's name without its folder, or the URL."""
        return self.location.name if isinstance(self.location, Path) else self.location

    @property
    def stem(self) -> str:
        """The name without folder and suffix."""
        return self.location.stem if isinstance(self.location, Path) else url_stem(self.location)

    @property
    def folder_name(self) -> str:
        """The name of the folder that the file is in, or the URL's host."""
        if isinstance(self.location, Path):
            # Path.resolve raises for a link to itself, realpath does not.
            return Path(os.path.realpath(self.location)).parent.name
        return url_host(self.location)


@dataclass
class Search:
    """What `find_images` left out.

    Attributes:
        unreadable: a line for each folder that cannot be read.
        results: files that `isnet_trt.pictures.results.is_result` takes for results of an earlier run.
    """

    unreadable: list[str] = field(default_factory=list)
    results: list[Path] = field(default_factory=list)


def find_images(
    arguments: Iterable[str], *, recursive: bool = False, search: Search | None = None
) -> list[ImageSource]:
    """The pictures that ``arguments`` (files, folders, globs, URLs) mean, each once, in order, missing files too.

    With ``recursive``, folders below a folder are searched too: links to folders are followed, each folder is entered
    once. Files and folders whose names begin with a dot are left out, and results of an earlier run, unless only
    results are given by name.

    Raises:
        ImageError: a folder or glob holds no picture, a URL is not valid or names a user, or a folder cannot be read
            and ``search`` is None.
    """
    images: dict[ImageSource, None] = {}  # a set that keeps the order
    left_out = search or Search()
    for argument in arguments:
        unreadable, results = len(left_out.unreadable), len(left_out.results)
        matches = list(_matches(argument, recursive, left_out))
        if search is None and left_out.unreadable:
            raise UnreadableFolder(left_out.unreadable[0])
        if not matches and len(left_out.unreadable) == unreadable:
            raise _nothing(argument, len(left_out.results) - results)
        images.update(dict.fromkeys(matches))
    return _without_results(list(images), left_out)


def _nothing(argument: str, results: int) -> ImageError:
    only = f", only {results} results of earlier runs" if results else ""
    return ImageError(f"{argument}: no pictures there{only} ({', '.join(sorted(SUFFIXES))} are looked for in folders)")


def _without_results(images: list[ImageSource], search: Search) -> list[ImageSource]:
    """Leave out results given by name among pictures: a shell that expands ``*.png`` gives them so."""
    results = [image.location for image in images if isinstance(image.location, Path) and is_result(image.location)]
    if not results or len(results) == len(images):
        return images
    search.results += results
    return [image for image in images if image.location not in results]


class UnreadableFolder(ImageError):
    """The names in a folder of pictures cannot be read."""


def _matches(argument: str, recursive: bool, search: Search) -> Iterator[ImageSource]:
    if is_url(argument):
        check_url(argument)
        yield ImageSource(argument)
    elif is_folder(Path(argument)):
        yield from _in_folder(Path(argument), recursive, search)
    elif glob.has_magic(argument) and not os.path.lexists(argument):
        files = [path for path in _expand([Path()], Path(argument).parts, search) if not is_folder(path)]
        yield from map(ImageSource, _pictures(sorted(files), search))
    else:
        yield ImageSource(Path(argument))


def _expand(folders: Iterable[Path], parts: tuple[str, ...], search: Search) -> Iterator[Path]:
    """What the parts of a glob match in ``folders``.

    `glob.glob` follows links in circles at ``**``, in exponential time where there are several; here each folder is
    entered once.
    """
    count = parts.index("**") if "**" in parts else len(parts)
    pattern = os.path.join(*parts[:count]) if count else ""  # noqa: PTH118  # Path.glob takes no absolute pattern
    for folder in folders:
        names = glob.glob(os.path.join(glob.escape(str(folder)), pattern)) if pattern else [folder]  # noqa: PTH118, PTH207
        matches = map(Path, names)
        if count == len(parts):
            yield from matches
        else:
            below = (path for top in filter(is_folder, matches) for path, _ in _walk(top, search))
            yield from _expand(below, parts[count + 1 :] or ("*",), search)


def _walk(top: Path, search: Search, recursive: bool = True) -> Iterator[tuple[Path, list[Path]]]:
    """``top`` and the folders below it with their sorted entries, each folder once, in the order of their names.

    Links are followed; folders whose names begin with a dot are left out, those that cannot be read noted in
    ``search``.
    """
    pending, entered = [top], set()
    while pending:
        folder = pending.pop()
        try:
            status, entries = folder.stat(), sorted(folder.iterdir())
        except OSError as error:
            search.unreadable.append(f"{folder} cannot be read: {error.strerror}")
            continue
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        yield folder, entries
        if recursive:
            pending += [path for path in reversed(entries) if not path.name.startswith(".") and is_folder(path)]


def _in_folder(top: Path, recursive: bool, search: Search) -> Iterator[ImageSource]:
    """The pictures of a folder, then with ``recursive`` those of its subfolders."""
    for folder, entries in _walk(top, search, recursive):
        for path in _pictures(filter(_is_picture_name, entries), search):
            yield ImageSource(path, folder.relative_to(top))


def _is_picture_name(path: Path) -> bool:
    """Whether a folder's entry is taken; names with a dot in front belong to the system (``._a.jpg`` of macOS)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not is_folder(path)


def _pictures(files: Iterable[Path], search: Search) -> list[Path]:
    """The files that are no results; these are noted in ``search``."""
    pictures: list[Path] = []
    for path in files:
        (search.results if is_result(path) else pictures).append(path)
    return pictures


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder by their suffixes, sorted; neither those in its subfolders nor results.

    A link that leads nowhere is one of them: reading it says so.

    Raises:
        UnreadableFolder: its names cannot be read.
    """
    search = Search()
    images = [Path(image.location) for image in _in_folder(folder, False, search)]
    if search.unreadable:
        raise UnreadableFolder(search.unreadable[0])
    return images
