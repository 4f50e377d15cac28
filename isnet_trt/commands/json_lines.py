"""``--json``: what became of each picture, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from isnet_trt.errors import SettingsError
from isnet_trt.files import check_target, is_missing, open_regular, printable, refuse_inputs
from isnet_trt.pictures.finding import SUFFIXES
from isnet_trt.runtime.segmentation import Segmentation

STDOUT = "-"
_LONGEST = 1 << 24


class JsonLines:
    """Writes a line for each picture as soon as it is done; nothing without a stream."""

    def __init__(self, stream: TextIO | None, bundle: str) -> None:
        """``bundle`` is the SHA-256 of the bundle's manifest."""
        self._stream, self._bundle = stream, bundle

    def segmented(
        self, picture: object, segmentation: Segmentation, seconds: dict[str, float], files: dict[str, Path]
    ) -> None:
        """Report a picture with its written ``files`` by form and ``seconds`` by stage."""
        height, width = segmentation.labels.shape
        classes = [
            {"id": number, "name": segmentation.names[number], "share": share}
            for number, share in segmentation.shares().items()
        ]
        outputs = {form: printable(os.fspath(path)) for form, path in files.items()}
        rounded = {stage: round(value, 6) for stage, value in seconds.items()}
        self._write(picture, "ok", height=height, width=width, classes=classes, seconds=rounded, outputs=outputs)

    def failed(self, picture: object, error_type: type[BaseException], message: str) -> None:
        """Report a picture that failed, or with None a folder that cannot be read."""
        self._write(picture, "failed", error={"type": error_type.__name__, "message": printable(message)})

    def _write(self, picture: object, status: str, **fields: Any) -> None:
        if self._stream is None:
            return
        line = {
            "file": None if picture is None else printable(str(picture)),
            "status": status,
            **fields,
            "bundle": self._bundle,
        }
        self._stream.write(json.dumps(line, allow_nan=False) + "\n")
        self._stream.flush()


def check_lines_file(target: str | None, results: Iterable[Path]) -> None:
    """Raise SettingsError unless ``target`` is None, ``-``, free, or a file of JSON lines, which may be replaced.

    ``--json`` takes the argument that follows it: a picture must not be taken for its file. ``results`` are the other
    files that will be written.
    """
    if target is None or target == STDOUT:
        return
    path = Path(target)
    try:
        check_target(path)
        is_ours = path.suffix.lower() not in SUFFIXES and _holds_lines(path)
    except OSError as error:
        raise SettingsError(f"--json {target} cannot be written: {error.strerror}") from None
    refuse_inputs(results, [path], "--json")
    if not is_ours:
        raise SettingsError(f"--json {target} is no file of JSON lines; name another, or - for the standard output")


def _holds_lines(path: Path) -> bool:
    """Whether a file is missing, empty, or begins with a line of `JsonLines`."""
    if is_missing(path) or not path.exists():
        return True
    with open_regular(path) as stream:
        line = stream.readline(_LONGEST)
    try:
        return not line or "status" in json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return False


@contextlib.contextmanager
def open_lines(target: str | None) -> Iterator[TextIO | None]:
    """The stream of ``--json``; SettingsError if the file cannot be created."""
    if target is None or target == STDOUT:
        yield sys.stdout if target else None
        return
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(target).open("w", encoding="ascii"))
        except OSError as error:
            raise SettingsError(f"--json {target} cannot be written: {error.strerror}") from None
        yield stream
