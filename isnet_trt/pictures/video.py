"""Frames of videos, streams and cameras, read ahead by a thread; and a video file written as a whole or not at all."""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.files import replacing
from isnet_trt.opencv import cv2
from isnet_trt.pictures.download import without_password
from isnet_trt.pictures.files import Image, is_folder
from isnet_trt.settings import size_text

SUFFIXES = frozenset(
    (
        *(".3gp", ".avi", ".flv", ".h264", ".hevc", ".m2ts", ".m3u8", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
        *(".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv"),
    )
)
CODECS = {".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v"}
"""Suffix of a file to be written -> its codec, of those that OpenCV's own FFmpeg has."""
_STREAM = re.compile(r"(rtsps?|rtmps?|rtp|udp|srt|tcp)://", re.IGNORECASE)
_CAMERA = re.compile(r"/dev/video\d+|\d{1,3}")
_FALLBACK_RATE = 25.0
_LARGEST_RATE = 1000.0
_READ_AHEAD = 4
_JOIN_SECONDS = 5.0
_TOLERANCE = 0.02
"""Share of frames by which the count in a file's header may be wrong: some containers have an estimate only."""


def is_video(argument: str) -> bool:
    """Whether an input is a video file by its suffix, the URL of one or of a stream, or the number of a camera."""
    if _STREAM.match(argument) or re.fullmatch(_CAMERA, argument):
        return not os.path.lexists(argument) or argument.startswith("/dev/")
    path = argument.split("?")[0] if "://" in argument else argument
    return Path(path).suffix.lower() in SUFFIXES and not is_folder(Path(argument))


def is_live(source: str) -> bool:
    """Whether frames come at their own pace: of a stream or camera."""
    return bool(_STREAM.match(source) or re.fullmatch(_CAMERA, source))


class Frame(NamedTuple):
    """A frame, uint8 (H, W, 3) BGR, and its time in seconds after the first."""

    image: Image
    seconds: float


class VideoReader:
    """The frames of a source, read by a thread of its own, up to four ahead.

    Attributes:
        source: its name, without the password of a URL.
        rate: frames a second by the source; 25 where it does not say.
        count: frames by the file's header, 0 for a stream.
        read: frames read until now.
        dropped: of these, those left out.
    """

    def __init__(self, source: str, drop: bool = False) -> None:
        """Open ``source``; with ``drop`` the oldest waiting frame gives way where frames are not taken fast enough.

        Raises:
            ImageError: it cannot be opened.
        """
        self.source = without_password(source)
        self.read = self.dropped = 0
        self._seconds = self._first = 0.0
        self._drop = drop
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._failure: Exception | None = None
        self._capture = _open(source)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= _LARGEST_RATE else _FALLBACK_RATE
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = 0 if is_live(source) or not 0 < count < 2**40 else int(count)
        self._thread = threading.Thread(target=self._read_all, daemon=True)

    def __iter__(self) -> Iterator[Frame]:
        """Start to read; to be used once."""
        self._thread.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frames or self._ended)
                if not self._frames:
                    break
                frame = self._frames.popleft()
                self._changed.notify_all()
            yield frame
        if self._failure is not None:
            raise ImageError(f"{self.source}: frame {self.read} cannot be read ({self._failure})")

    @property
    def is_cut_off(self) -> bool:
        """Whether the source ended before its end: a stream at any time, a file with fewer frames than it says.

        Of some containers the count is the length times the rate, which irregular frames do not come to.
        """
        return is_live(self.source) or _fewer(max(self.read, slot(self._seconds, self.rate) + 1), self.count)

    def _read_all(self) -> None:
        start = None
        try:
            while not self._closed:
                is_there, image = self._capture.read()
                if not is_there:
                    break
                now = cv2.getTickCount() / cv2.getTickFrequency()
                start = now if start is None else start
                self._seconds = now - start if is_live(self.source) else self._file_time()
                self._put(Frame(image, self._seconds))
        except Exception as error:  # raised where the frames are taken
            self._failure = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _file_time(self) -> float:
        """The time of the frame that was read: its number over the rate, or the file's if that is another frame's.

        Times beyond the length of the file are not believed, for the time until then would be filled with frames.
        """
        regular, stored = self.read / self.rate, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        self._first = stored if not self.read else self._first
        seconds = stored - self._first
        is_other = abs(seconds - regular) * self.rate > 0.5 and seconds > 0 and slot(seconds, self.rate) <= self.count
        return seconds if is_other else regular

    def _put(self, frame: Frame) -> None:
        with self._changed:
            if self._drop and len(self._frames) == _READ_AHEAD:
                self._frames.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: len(self._frames) < _READ_AHEAD or self._closed)
            self._frames.append(frame)
            self.read += 1
            self._changed.notify_all()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_SECONDS)
        if not self._thread.is_alive():  # a stream that sends nothing may block it for half a minute
            self._capture.release()


def _open(source: str) -> Any:
    if not is_live(source) and "://" not in source and not Path(source).is_file():
        raise ImageError(f"{source}: there is no such video file")
    _check_name(source)
    try:
        capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    except cv2.error as error:
        raise ImageError(f"{without_password(source)}: OpenCV cannot open it ({error.err})") from None
    if not capture.isOpened():
        kind = "stream or camera that answers" if is_live(source) else "video whose format and codec OpenCV knows"
        advice = "it may be damaged or cut off: see whether ffprobe or a player opens it"
        raise ImageError(f"{without_password(source)}: no {kind}; {advice}")
    return capture


def _check_name(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ImageError(f"{name}: OpenCV opens no video whose name is no Unicode; rename it") from None


def _fewer(count: int, promised: int) -> bool:
    return count < math.floor(promised * (1 - _TOLERANCE)) - 1


def check_video_target(path: Path) -> None:
    """Raise SettingsError for a file that no video can be written to by its name."""
    if path.suffix.lower() not in CODECS:
        raise SettingsError(f"--out {path}: of a video, the result is a file that ends in {', '.join(sorted(CODECS))}")
    if not path.parent.is_dir():
        raise SettingsError(f"--out {path}: there is no folder {path.parent}")
    _check_name(str(path.absolute()))


@dataclass
class VideoWriter:
    """An open video file; frames are written at a constant ``rate``."""

    path: Path
    rate: float
    frames: int = 0
    _size: tuple[int, int] = (0, 0)
    _writer: Any = None
    _last: Image | None = None

    def write(self, image: Image, seconds: float) -> None:
        """Write ``image``, uint8 (H, W, 3) BGR, at its time; until then the one before it is repeated.

        Of an odd height or width the last row or column is left out: codecs take even ones.

        Raises:
            SettingsError: the codec is missing.
            ImageError: the image has another size than the first, or a side of one pixel.
        """
        if min(image.shape[:2]) < 2:
            raise ImageError(f"a frame is {size_text(image.shape[:2])}; a video that can be written has at least 2x2")
        image = image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2]
        if self._writer is None:
            self._size, self._writer = image.shape[:2], self._open(image)
        if image.shape[:2] != self._size:
            raise ImageError(f"a frame is {size_text(image.shape[:2])}, those before it {size_text(self._size)}")
        missing = slot(seconds, self.rate) - self.frames
        for _ in range(missing):
            self._writer.write(image if self._last is None else self._last)
        if missing >= 0:
            self._writer.write(image)
            self.frames += missing + 1
            self._last = image

    def _open(self, image: Image) -> Any:
        height, width = image.shape[:2]
        code = CODECS[self.path.suffix.lower()]
        writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*code), self.rate, (width, height))
        if not writer.isOpened():
            raise SettingsError(
                f"OpenCV has no codec {code} for {self.path.suffix} files of {width}x{height} pixels at "
                f"{self.rate:g} frames/s; name a file with another ending ({', '.join(sorted(CODECS))})"
            )
        return writer

    def finish(self, target: Path) -> None:
        """Complete the file, which becomes ``target``; ImageError if frames are missing in it, as on a full disk."""
        if self._writer is None:
            return
        self._writer.release()
        capture = cv2.VideoCapture(str(self.path))
        stored = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if _fewer(stored, self.frames):
            raise ImageError(f"{target}: only {stored} of {self.frames} frames could be written; is the disk full?")


def slot(seconds: float, rate: float) -> int:
    """The number, from 0, of the frame that is shown at a time."""
    return math.floor(seconds * rate + 1e-6)


@contextlib.contextmanager
def writing(path: Path, rate: float) -> Iterator[VideoWriter]:
    """A video file that replaces ``path`` if the block ends without an error.

    Raises:
        ImageError: it cannot be written, or nothing was.
    """
    try:
        with replacing(path, path.suffix) as temporary:
            writer = VideoWriter(temporary, rate)
            try:
                yield writer
            finally:
                writer.finish(path)
    except OSError as error:
        raise ImageError(f"{path} cannot be written: {error.strerror or error}") from None
