"""Encoded pictures in memory and in file objects: the image of the file, or one error that names what was passed."""

from __future__ import annotations

import array
import gzip
import io
import mmap
import os
import select
import socket
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_model
import torch
from children import PATIENCE, wait_until

from isnet_trt import EngineError, ImageError, Segmenter
from isnet_trt.pictures.files import LIMIT_VARIABLE, read_image

PIXELS = cv2.resize(np.random.default_rng(3).integers(0, 256, (6, 9, 3), np.uint8), (61, 40))
CONTENT = {name: cv2.imencode(f".{name}", PIXELS)[1].tobytes() for name in ("jpg", "png", "webp", "bmp", "tiff")}
JPEG = CONTENT["jpg"]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory):
    with Segmenter.open(tiny_model.write_bundle(tmp_path_factory.mktemp("bundle"), tiny_model.labels(6))) as opened:
        yield opened


def decoded(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].copy()


def expected(segmenter: Segmenter, content: bytes = JPEG) -> np.ndarray:
    return segmenter(decoded(content)).labels


@pytest.mark.parametrize("name", CONTENT)
def test_the_labels_of_encoded_bytes_are_those_of_the_decoded_array(name: str, segmenter: Segmenter) -> None:
    labels = expected(segmenter, CONTENT[name])
    assert len(np.unique(labels)) > 1
    result = segmenter(CONTENT[name])
    assert (result.labels == labels).all()
    assert (result.overlay(CONTENT[name]) == result.overlay(decoded(CONTENT[name]))).all()


def mapped(content: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(content))
    memory.write(content)  # its position is at the end now, which does not matter
    return memory


IN_MEMORY: dict[str, Callable[[bytes], Any]] = {
    "bytearray": bytearray,
    "memoryview": memoryview,
    "part of a view": lambda content: memoryview(b"xx" + content + b"yyy")[2:-3],
    "every other byte": lambda content: memoryview(np.repeat(np.frombuffer(content, np.uint8), 2).tobytes())[::2],
    "imencode": lambda content: np.frombuffer(content, np.uint8),
    "numpy bytes": np.bytes_,
    "array": lambda content: array.array("B", content),
    "mmap": mapped,
    "tensor": lambda content: torch.frombuffer(bytearray(content), dtype=torch.uint8),
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_any_flat_bytes(name: str, segmenter: Segmenter) -> None:
    """``order`` is that of arrays: encoded bytes have an order of their own."""
    assert (segmenter(IN_MEMORY[name](JPEG), order="bgra").labels == expected(segmenter)).all()


class Trickle(io.RawIOBase):
    """An unbuffered stream, which gives a few bytes at a time."""

    def __init__(self, content: bytes, error: BaseException | None = None) -> None:
        self._source, self._error = io.BytesIO(content), error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._source.read(min(len(buffer), 100))
        if not chunk and self._error:
            raise self._error
        buffer[: len(chunk)] = chunk
        return len(chunk)


def received(content: bytes) -> Any:
    first, second = socket.socketpair()
    first.sendall(content)
    first.close()
    with second:
        return second.makefile("rb")


def spooled(content: bytes) -> Any:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


def unzipped(content: bytes) -> Any:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("photo.jpg", content)
    return zipfile.ZipFile(file).open("photo.jpg")


class Camera:
    """A source of frames, whose ``read`` takes no size and never ends."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self) -> bytes:
        return self._content


STREAMS: dict[str, Callable[[bytes], Any]] = {
    "BytesIO": io.BytesIO,
    "raw": Trickle,
    "buffered": lambda content: io.BufferedReader(Trickle(content)),
    "gzip": lambda content: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(content))),
    "zip": unzipped,
    "spooled": spooled,
    "without a size": Camera,
}


@pytest.mark.parametrize("name", STREAMS)
def test_file_objects(name: str, segmenter: Segmenter) -> None:
    assert (segmenter(STREAMS[name](JPEG)).labels == expected(segmenter)).all()


def test_files_are_read_from_where_they_are_to_their_end(tmp_path: Path, segmenter: Segmenter) -> None:
    (tmp_path / "photo").write_bytes(b"header" + JPEG)
    with (tmp_path / "photo").open("rb") as file:
        file.seek(6)
        assert (segmenter(file).labels == expected(segmenter)).all()
        assert file.tell() == 6 + len(JPEG)
        with pytest.raises(ImageError, match=r"file object '.*photo' gives no bytes.*seek\(0\)"):
            segmenter(file)


def test_a_socket_and_lists_of_all_kinds(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(JPEG)
    images = [JPEG, received(JPEG), tmp_path / "photo", str(tmp_path / "photo"), read_image(tmp_path / "photo")]
    labels = [segmentation.labels for segmentation in segmenter.map(images)]
    assert len(labels) == 5
    assert all((one == expected(segmenter)).all() for one in labels)


def closed() -> io.BytesIO:
    stream = io.BytesIO(JPEG)
    stream.close()
    return stream


def not_ready() -> Any:
    """A pipe without data that does not block; the writing end stays open."""
    reading, _ = os.pipe()
    os.set_blocking(reading, False)
    return os.fdopen(reading, "rb", buffering=0)


class Odd:
    def read(self, size: int) -> object:
        return 12


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "empty bytes": (lambda: b"", r"the image \(bytes\) is empty"),
    "empty bytearray": (bytearray, r"the image \(bytearray\) is empty"),
    "text as bytes": (lambda: b"no picture", r"the image \(bytes, 10 bytes\): not a picture.*height and width"),
    "path as bytes": (lambda: b"/tmp/photo.jpg", r"\(bytes, 14 bytes\): not a picture"),
    "pixels": (lambda: np.zeros(48, np.uint8), r"ndarray, 48 bytes.*height and width"),
    "flat floats": (lambda: np.zeros(48, np.float32), r"flat buffer of 48 values \(float32, cpu\)"),
    "cut JPEG": (lambda: JPEG[:-20], rf"the image \(bytes, {len(JPEG) - 20} bytes\): the picture is cut off"),
    "cut PNG": (lambda: memoryview(CONTENT["png"])[:-9], r"the image \(memoryview, \d+ bytes\): the picture is cut"),
    "empty stream": (io.BytesIO, r"file object \(BytesIO\) gives no bytes"),
    "closed": (closed, r"file object \(BytesIO\) cannot be read: I/O operation on closed file"),
    "text": (lambda: io.StringIO("text"), r"file object \(StringIO\) is in text mode; open it in binary mode"),
    "text file": (lambda: io.TextIOWrapper(io.BytesIO(JPEG), "utf-8"), "is in text mode"),
    "text of one's own": (lambda: Camera("text"), r"file object \(Camera\): read\(\) returned str, not bytes"),
    "for writing": (lambda: io.BufferedWriter(io.BytesIO()), "cannot be read: it is not open for reading"),
    "no message": (lambda: Trickle(b"", TimeoutError()), "cannot be read: TimeoutError"),
    "broken off": (lambda: Trickle(JPEG[:500], ConnectionResetError(104, "reset by peer")), r"Trickle.*reset by peer"),
    "ends early": (lambda: Trickle(JPEG[:-500]), r"file object \(Trickle\): the picture is cut off"),
    "damaged gzip": (
        lambda: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(JPEG)[:-40])),
        r"file object.* cannot be read: .*end",
    ),
    "not ready": (not_ready, r"read\(\) returned NoneType, not bytes"),
    "no bytes": (Odd, r"file object \(Odd\): read\(\) returned int"),
    "URL": (lambda: "https://example.org/photo.jpg", r"no such picture file; of URLs, predict reads http and https"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_error_that_names_it(name: str, segmenter: Segmenter) -> None:
    make, message = BAD[name]
    with pytest.raises(ImageError, match=message):
        segmenter(make())
    assert (segmenter(JPEG).labels == expected(segmenter)).all()  # it stays usable


def test_a_stream_that_stalls_holds_up_nobody_else(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    opened = Segmenter.open(tiny_model.write_bundle(tmp_path / "bundle", tiny_model.labels(6)))
    with ThreadPoolExecutor(1) as pool, os.fdopen(reading, "rb") as stalled, os.fdopen(writing, "wb") as source:
        source.write(JPEG[:100])
        source.flush()
        waiting = pool.submit(opened, stalled)
        wait_until(lambda: not select.select([reading], [], [], 0)[0])  # what was sent has been read
        labels = expected(opened)
        opened.close()
        source.write(JPEG[100:])
        source.close()
        with pytest.raises(EngineError, match="was closed"):
            waiting.result(PATIENCE)
    assert len(np.unique(labels)) > 1


def test_endless_input_is_refused(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "4000")
    with Path("/dev/zero").open("rb") as endless, pytest.raises(ImageError, match="too large: more than 16000 bytes"):
        segmenter(endless)
    with pytest.raises(ImageError, match=r"\(bytes, 16001 bytes\) is too large: the limit is 16000"):
        segmenter(JPEG.ljust(16001, b"\0"))
    monkeypatch.setenv(LIMIT_VARIABLE, "2000")
    with pytest.raises(ImageError, match=r"\(bytes, \d+ bytes\): 61×40 pixels are too many"):
        segmenter(JPEG)
