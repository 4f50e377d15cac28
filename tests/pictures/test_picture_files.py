"""Reading picture files: what OpenCV makes of them, and what is refused before it sees them."""

from __future__ import annotations

import io
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.files import printable
from isnet_trt.pictures import headers
from isnet_trt.pictures.files import LIMIT_VARIABLE, read_image
from isnet_trt.pictures.finding import find_images, pictures_in


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


def test_files_are_read_as_opencv_reads_them(tmp_path, picture):
    cv2.imwrite(str(tmp_path / "colour.png"), picture[..., ::-1])
    assert (read_image(tmp_path / "colour.png") == picture).all()
    grey = picture[..., 0]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    assert (read_image(str(tmp_path / "grey.png")) == grey[..., None]).all()
    cv2.imwrite(str(tmp_path / "deep.png"), picture[..., ::-1].astype(np.uint16) * 257)
    assert (read_image(tmp_path / "deep.png") == picture).all()
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([picture[..., ::-1], grey]))
    assert (read_image(tmp_path / "alpha.png") == picture).all()


ORIENTED = {"JPEG": {"quality": 100, "subsampling": 0}, "TIFF": {}, "PNG": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("form", ORIENTED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, picture, form: str, orientation: int) -> None:
    """OpenCV's `imread` fails on TIFFs that are turned by 90 degrees, Pillow has its own implementation."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if form == "TIFF" else {"exif": tags}
    Image.fromarray(cv2.GaussianBlur(picture, (9, 9), 3)).save(tmp_path / "turned", form, **options, **ORIENTED[form])
    with Image.open(tmp_path / "turned") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert expected.shape == ((53, 37, 3) if orientation > 4 else (37, 53, 3))
    assert np.abs(read_image(tmp_path / "turned").astype(int) - expected).max() <= 1


ALPHA = np.arange(37 * 53, dtype=np.uint8).reshape(37, 53)
TRANSPARENT: dict[str, Callable[[np.ndarray], Image.Image]] = {
    "RGBA": lambda picture: Image.fromarray(np.dstack([picture, ALPHA])),
    "LA": lambda picture: Image.fromarray(np.dstack([picture[..., 0], ALPHA])),
    "P": lambda picture: Image.fromarray(np.dstack([picture // 64 * 64, ALPHA // 64 * 64])).quantize(250),
}
FORMS = {
    "PNG": {},
    "TIFF": {},
    "TIFF LZW": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True, "exact": True},
    "BMP": {},
    "JPEG2000": {},
}


@pytest.mark.parametrize(
    ("form", "mode"),
    [*((form, "RGBA") for form in FORMS), ("PNG", "LA"), ("TIFF", "LA"), ("PNG", "P")],
)
def test_alpha_is_dropped_and_colours_stay_as_stored(tmp_path: Path, picture, form: str, mode: str) -> None:
    """One rule for all formats; OpenCV multiplies the colours of a TIFF by alpha."""
    image = TRANSPARENT[mode](picture)
    image.save(tmp_path / "file", form.split()[0], **FORMS[form])
    assert (read_image(tmp_path / "file") == np.asarray(image.convert("RGBA"))[..., :3]).all()


def test_alpha_of_deep_tiffs_is_dropped(tmp_path: Path, picture) -> None:
    """With 16 bits OpenCV drops alpha itself, whatever kind of alpha the tag names."""
    deep = np.dstack([picture[..., ::-1], ALPHA]).astype(np.uint16) * 257
    content = bytearray(cv2.imencode(".tif", deep)[1].tobytes())
    tags = headers._Tiff(bytes(content))
    for kind in (0, 1, 2):
        if headers._EXTRA_SAMPLES in tags.values:
            struct.pack_into(tags.order + "H", content, tags.values[headers._EXTRA_SAMPLES][1], kind)
        (tmp_path / "deep.tif").write_bytes(content)
        assert (read_image(tmp_path / "deep.tif") == picture).all()


# --- cut short


def encoded(form: str, image: Image.Image, **options: object) -> bytes:
    """A picture file in memory."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def photo(*size: int) -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(cv2.GaussianBlur(noise, (5, 5), 2))


def with_thumbnail(jpeg: bytes) -> bytes:
    """A JPEG with another one, whole, in its EXIF segment."""
    thumbnail = encoded("JPEG", photo(20, 30))
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail + jpeg[2:]


WHOLE: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encoded("JPEG", photo(120, 170)),
    "thumbnail": lambda: with_thumbnail(encoded("JPEG", photo(120, 170))),
    "progressive": lambda: encoded("JPEG", photo(120, 170), progressive=True),
    "restarts": lambda: encoded("JPEG", photo(120, 170), restart_marker_blocks=2),
    "grey JPEG": lambda: encoded("JPEG", photo(120, 170).convert("L")),
    "CMYK": lambda: encoded("JPEG", photo(120, 170).convert("CMYK")),
    "PNG": lambda: encoded("PNG", photo(40, 50)),
    "palette": lambda: encoded("PNG", photo(40, 50).quantize(16)),
    "TIFF": lambda: encoded("TIFF", photo(40, 50)),
    "WEBP": lambda: encoded("WEBP", photo(40, 50)),
    "BMP": lambda: encoded("BMP", photo(40, 50)),
    "PPM": lambda: encoded("PPM", photo(40, 50)),
    "GIF": lambda: encoded("GIF", photo(40, 50)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_pictures_cut_short_are_refused_and_bytes_behind_the_end_are_not(tmp_path: Path, name: str) -> None:
    """A decoder fills what is missing of a JPEG with grey; some cameras append bytes of their own."""
    content, path = WHOLE[name](), tmp_path / "photo"
    path.write_bytes(content)
    image = read_image(path)
    path.write_bytes(content + b"more\xff\xd8 of a camera's bytes")
    assert (read_image(path) == image).all()
    for length in {*np.linspace(1, len(content) - 3, 12).astype(int), len(content) - 2, len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ImageError, match=r"photo: .*cut off"):
            read_image(path)
    if content.startswith(b"\xff\xd8"):
        path.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))  # a download that broke
        with pytest.raises(ImageError, match="photo: the picture is cut off"):
            read_image(path)


@pytest.mark.parametrize("suffix", [".webp", ".jp2"])
def test_compressed_pictures_that_go_on_with_zeros_are_refused(tmp_path: Path, suffix: str) -> None:
    """A download that broke leaves zeros where the file had its full size from the start."""
    path = tmp_path / f"photo{suffix}"
    content = cv2.imencode(suffix, np.asarray(photo(400, 500)))[1].tobytes()
    for length in (len(content) // 2, len(content) * 4 // 5):
        path.write_bytes(content[:length] + bytes(len(content) - length))
        with pytest.raises(ImageError, match=rf"photo\{suffix}: the picture is damaged, its last part is zeros"):
            read_image(path)
    for sound in (
        content + bytes(len(content)),
        cv2.imencode(suffix, np.full((600, 600, 3), 255, np.uint8))[1].tobytes(),
    ):
        path.write_bytes(sound)
        assert read_image(path).shape[2] == 3


@pytest.mark.parametrize("animated", [False, True])
def test_checksums_of_pngs_are_checked(tmp_path: Path, animated: bool) -> None:
    """OpenCV reads an animated PNG without them. A wrong checksum beside the pixels is no fault: libpng warns."""
    frames = {"save_all": True, "append_images": [photo(40, 50)]} if animated else {}
    stored = PngImagePlugin.PngInfo()
    stored.add_text("comment", "of no importance")
    content, path = encoded("PNG", photo(40, 50), pnginfo=stored, **frames), tmp_path / "photo.png"
    changed = bytearray(content)
    changed[content.index(b"comment")] ^= 1
    path.write_bytes(changed)
    assert (read_image(path) == np.asarray(photo(40, 50))).all()
    for distance in (4, 40, 400):
        changed = bytearray(content)
        changed[content.index(b"IDAT") + distance] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ImageError, match=r"photo\.png: the picture is damaged, the checksum of its chunk IDAT"):
            read_image(path)


# --- size


def sized(form: str, width: int, height: int) -> bytes:
    """The header of a picture of this size, with nothing or next to nothing behind it."""
    if form == "JPEG":
        frame = struct.pack(">BHHB", 8, height, width, 3) + b"\1\x22\0\2\x11\1\3\x11\1"
        return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"
    small = {"PNG": (16, ">II"), "BMP": (18, "<ii"), "GIF": (6, "<HH"), "JPEG2000": (-1, ">II"), "PPM": (0, "")}
    if form == "PPM":
        return f"P6 # a comment\n{width}\t{height}\n255\n".encode()
    content = bytearray(encoded(form, photo(8, 8)))
    if form == "TIFF":
        tags = headers._Tiff(bytes(content))
        for tag, value in ((256, width), (257, height)):
            position = tags.values[tag][1]
            struct.pack_into("<HII", content, position - 6, 4, 1, value)
    elif form == "WEBP":
        extended = b"VP8X\x0a\0\0\0\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        content[12:12] = extended
    else:
        offset, layout = small[form]
        offset = content.index(b"\xff\x4f\xff\x51") + 8 if form == "JPEG2000" else offset
        struct.pack_into(layout, content, offset, width, height)
    return bytes(content)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM"])
def test_the_size_is_looked_at_before_a_picture_is_decoded(tmp_path: Path, form: str) -> None:
    """Decoding 30000×30000 pixels would take 2.7 GB; the message names size and limit."""
    path = tmp_path / "bomb"
    path.write_bytes(sized(form, 30000, 29999))
    with pytest.raises(ImageError, match=rf"bomb: 30000×29999 pixels .*limit is {2**28}.*{LIMIT_VARIABLE}"):
        read_image(path)


def test_the_largest_of_several_sizes_counts(tmp_path: Path) -> None:
    """A decoder allocates memory for the whole tile of a TIFF, and for each item of an AVIF."""
    sizes = {headers._WIDTH: 90_000, headers._HEIGHT: 1, headers._TILE_WIDTH: 40_000, headers._TILE_HEIGHT: 30_000}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sizes.items())
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(sizes)) + entries + bytes(4)
    items = b"".join(b"ispe" + struct.pack(">III", 0, *size) for size in ((90_000, 1), (40_000, 30_000)))
    for content in (tiff, b"\0\0\0\x1cftypavif" + items):
        assert headers.dimensions(content) == (40_000, 30_000)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM", "WEBP"])
def test_a_side_has_a_limit_too(tmp_path: Path, form: str) -> None:
    """Two million pixels in a row fit in memory, but neither libpng nor OpenCV takes them."""
    (tmp_path / "wide").write_bytes(sized(form, 2_000_000, 1))
    with pytest.raises(ImageError, match="wide: 2000000×1 pixels are too many: a side may have 1000000"):
        read_image(tmp_path / "wide")


def test_the_limit_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable names the pixels that are still read, and what is no number is refused."""
    path = tmp_path / "photo"
    photo(40, 50).save(path, "PNG")
    monkeypatch.setenv(LIMIT_VARIABLE, "2000")
    assert read_image(path).shape == (40, 50, 3)
    monkeypatch.setenv(LIMIT_VARIABLE, "1999")
    with pytest.raises(ImageError, match="limit is 1999"):
        read_image(path)
    for text in ("0", "-1", "1e9", "many"):
        monkeypatch.setenv(LIMIT_VARIABLE, text)
        with pytest.raises(SettingsError, match=LIMIT_VARIABLE):
            read_image(path)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte."""
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ImageError, match=f"huge is too large: {1 << 40} bytes, the limit is {1 << 30}"):
        read_image(tmp_path / "huge")


def test_no_memory_is_taken_for_a_chunk_that_is_not_there(tmp_path: Path) -> None:
    """OpenCV takes the length that a PNG's chunk names: 4 GiB for a file of 100 bytes."""
    content = bytearray(encoded("PNG", photo(8, 9)))
    struct.pack_into(">I", content, content.index(b"IDAT") - 4, 0xFFFFFFFF)
    (tmp_path / "bomb").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match="bomb: the picture is cut off"):
        read_image(tmp_path / "bomb")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # in KiB


# --- what is no picture


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"photo\.png: .*OpenCV"):
        read_image(path)


def test_kinds_of_pictures_that_are_not_decoded_are_told_from_damaged_files(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "floats.tif"), np.zeros((4, 7, 3), np.float32))
    content = bytearray((tmp_path / "floats.tif").read_bytes())
    compression = content.index(struct.pack("<HHI", 259, 3, 1))
    struct.pack_into("<H", content, compression + 8, 50000)  # Zstandard
    (tmp_path / "other.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"other\.tif: .*it has 7×4 pixels: .*of a kind that OpenCV does not know"):
        read_image(tmp_path / "other.tif")


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(ImageError, match=f"{path.name}: there is no such picture file"):
            read_image(path)


def test_what_is_no_regular_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Neither waited for nor read without end; links to pictures are read."""
    os.mkfifo(tmp_path / "fifo.png")
    for name, target in (("zero.png", "/dev/zero"), ("loop.png", "loop.png"), ("dead.png", "nowhere.png")):
        (tmp_path / name).symlink_to(target)
    for name, reason in (
        ("fifo", "it is a FIFO"),
        ("zero", "it is a device"),
        ("loop", "symbolic links"),
        ("dead", "a link to nowhere.png, which does not exist"),
    ):
        with pytest.raises(ImageError, match=rf"{name}\.png cannot be read: .*{reason}"):
            read_image(tmp_path / f"{name}.png")
    assert len(pictures_in(tmp_path)) == len(find_images([str(tmp_path / "*")])) == 4
    photo(8, 9).save(tmp_path / "photo.png")
    (tmp_path / "link.png").symlink_to("photo.png")
    assert read_image(tmp_path / "link.png").shape == (8, 9, 3)


def test_names_that_are_no_unicode_are_read(tmp_path, picture):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")  # as a Latin-1 system wrote it
    try:
        Path(path).write_bytes(cv2.imencode(".png", picture[..., ::-1])[1])
    except OSError:
        pytest.skip("this file system takes no such names")
    assert (read_image(path) == picture).all()
    assert printable(path).endswith(r"caf\xe9.png")
    for content in (b"", b"no picture"):
        Path(path).write_bytes(content)
        with pytest.raises(ImageError, match="OpenCV"):
            read_image(path)
