"""The predict command line, on a real bundle around a small model."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_model
from children import run_python

from isnet_trt import Inference, Segmenter, cli
from isnet_trt.commands import predict
from isnet_trt.commands.inference_options import choose_inference
from isnet_trt.datasets.own_files import find_pairs
from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.pictures.files import read_image, write_png
from isnet_trt.pictures.finding import pictures_in
from isnet_trt.recipes.custom import FilePatterns

SLIDE = Inference("slide", (48, 64), (32, 43), (0.75, 1.0), flip=True, softmax_before_resize=True)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/a.bmp"):
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (40, 70, 3), np.uint8))
    (folder / "notes.txt").write_text("no picture")
    return folder


def run(*arguments) -> int:
    return cli.run(predict.main, [str(argument) for argument in arguments])


def labels_of(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_labels_and_overlay_of_each_picture_of_a_folder(bundle, photos, tmp_path, capsys):
    assert run(bundle, photos, "--out", tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a_labels.png", "a_overlay.png", "b_labels.png", "b_overlay.png"]
    with Segmenter.open(bundle) as segmenter:
        for photo in (photos / "a.png", photos / "b.jpg"):
            want = segmenter(photo)
            got = labels_of(tmp_path / "out" / f"{photo.stem}_labels.png")
            assert got.dtype == np.uint8
            assert (got == want.labels).all()
            overlay = cv2.imread(str(tmp_path / "out" / f"{photo.stem}_overlay.png"))[:, :, ::-1]
            assert (overlay == want.overlay(read_image(photo))).all()
    output = capsys.readouterr()
    assert "2 of 2 pictures" in output.err
    assert "picture/s" not in output.err  # no bar where there is no terminal
    assert not output.out


def test_globs_and_files_of_one_stem_do_not_meet(bundle, photos, tmp_path):
    shutil.copy(photos / "a.png", photos / "more" / "A.png")
    assert run(bundle, photos / "a.png", photos / "**" / "*.bmp", photos / "more/A.png", "--out", tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*_labels.png"))
    assert names == ["a_labels.png", "more_A_2_labels.png", "more_a_labels.png"]
    first, copy = (labels_of(tmp_path / "out" / f"{stem}_labels.png") for stem in ("a", "more_A_2"))
    assert (first == copy).all()


def test_one_unreadable_picture_does_not_stop_the_rest(bundle, photos, tmp_path, capsys):
    (photos / "aa.png").write_bytes(b"damaged")
    narrow = np.zeros((1, 2000, 3), np.uint8)
    cv2.imwrite(str(photos / "ab.png"), narrow)
    assert run(bundle, photos, photos / "gone.jpg", "--out", tmp_path / "out") == cli.FAILED
    assert len(list((tmp_path / "out").glob("*_labels.png"))) == 2
    output = capsys.readouterr().err
    assert "2 of 5 pictures" in output
    failed = [line for line in output.splitlines() if line.startswith("failed:")]
    assert len(failed) == 3
    assert all(name in line for name, line in zip(("aa.png", "ab.png", "gone.jpg"), failed, strict=True))
    assert "Traceback" not in output


def test_results_never_replace_pictures(bundle, photos, capsys):
    before = (photos / "a.png").read_bytes()
    shutil.copy(photos / "a.png", photos / "a_labels.png")
    assert run(bundle, photos, "--out", photos) == cli.ERROR
    assert "choose another --out" in capsys.readouterr().err
    assert (photos / "a_labels.png").read_bytes() == before


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "x_labels.png").mkdir()
    with pytest.raises(ImageError, match=r"x_labels\.png cannot be written"):
        write_png(tmp_path / "x_labels.png", np.zeros((3, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["x_labels.png"]


def test_more_than_256_classes_are_written_in_16_bits(tmp_path, photos):
    bundle = tiny_model.write_bundle(tmp_path / "large", tiny_model.labels(300))
    assert run(bundle, photos / "a.png", "--out", tmp_path / "out") == 0
    got = labels_of(tmp_path / "out" / "a_labels.png")
    assert got.dtype == np.uint16
    with Segmenter.open(bundle) as segmenter:
        assert (got == segmenter(photos / "a.png").labels).all()


PRESETS = {"default": Inference(), "ms-flip": SLIDE}
CHOICES = {
    "nothing": ("", Inference()),
    "preset": ("--preset ms-flip", SLIDE),
    "one field": ("--preset ms-flip --no-flip", SLIDE.replace(flip=False)),
    "logits": ("--preset ms-flip --no-softmax-before-resize", SLIDE.replace(softmax_before_resize=False)),
    "scales": ("--scales 0.5 1.5 --flip", Inference(scales=(0.5, 1.5), flip=True)),
    "window": ("--preset ms-flip --window 30 40 --stride 20 20", SLIDE.replace(window=(30, 40), stride=(20, 20))),
    "whole": ("--preset ms-flip --mode whole", SLIDE.replace(mode="whole")),
    "slide as published": ("--mode slide", Inference("slide", (48, 64), (32, 43))),
    "slide of one's own": ("--mode slide --window 96 96 --stride 64 64", Inference("slide", (96, 96), (64, 64))),
}


def parsed(text: str):
    return predict.argument_parser().parse_args(["bundle", "image", "--out", "out", *text.split()])


@pytest.mark.parametrize("name", CHOICES)
def test_options_replace_fields_of_the_preset(name):
    options, want = CHOICES[name]
    assert choose_inference(PRESETS, parsed(options)) == want


@pytest.mark.parametrize(
    ("options", "presets", "message"),
    [
        ("--mode slide", {"default": Inference()}, "--window H W and --stride H W"),
        ("--mode slide --window 9 9", {"default": Inference()}, "needs --stride H W"),
        ("--window 9 9", PRESETS, "belong to --mode slide"),
        ("--mode slide --window 9 9 --stride 10 9", PRESETS, "uncovered"),
        ("--scales 0", PRESETS, "scales"),
        ("--preset best", PRESETS, "there are: default, ms-flip"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, presets, message):
    with pytest.raises(SettingsError, match=message):
        choose_inference(presets, parsed(options))


def test_what_cannot_be_done_at_all(bundle, photos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for arguments, message in [
        ((bundle, tmp_path / "*.gif", "--out", tmp_path / "out"), "no pictures there"),
        ((tmp_path / "no_bundle", photos, "--out", tmp_path / "out"), "no_bundle"),
        ((bundle, photos, "--out", tmp_path / "file"), "cannot be created"),
    ]:
        assert run(*arguments) == cli.ERROR
        output = capsys.readouterr().err
        assert output.startswith("error: ")
        assert message in output
    assert not list(tmp_path.glob("out/*"))


def test_names_that_are_no_unicode(bundle, tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / "no picture.png").mkdir(parents=True)  # a folder, whatever its name
    try:
        cv2.imwrite(str(folder / "a.png"), np.zeros((40, 70, 3), np.uint8))
        (folder / "a.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes no such names")
    assert run(bundle, folder, "--out", tmp_path / "out") == 0
    assert sorted(os.fsencode(path.name) for path in (tmp_path / "out").iterdir()) == [
        b"caf\xe9_labels.png",
        b"caf\xe9_overlay.png",
    ]
    assert cli.run(lambda argv: print(*(tmp_path / "out").iterdir()) or 0) == 0  # what a command says of such a file
    assert r"caf\udce9_labels.png" in capsys.readouterr().out


# --- one bad picture never stops the others


def test_status_2_and_no_folder_where_no_picture_could_be_segmented(bundle, tmp_path, capsys):
    (tmp_path / "photo.png").write_bytes(b"damaged")
    out = tmp_path / "new" / "results"
    assert run(bundle, tmp_path / "photo.png", tmp_path / "gone.png", "--out", out) == cli.ERROR
    output = capsys.readouterr().err
    assert "0 of 2 pictures" in output
    assert str(out) not in output
    assert not out.parent.exists()
    assert run(tmp_path / "no_bundle", tmp_path / "photo.png", "--out", out) == cli.ERROR
    assert not out.parent.exists()
    out.mkdir(parents=True)
    assert run(bundle, tmp_path / "photo.png", "--out", out) == cli.ERROR
    assert out.exists()  # it was there before


def test_every_kind_of_bad_file_beside_a_good_one(bundle, photos, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(photos / "b.jpg", folder / "z.jpg")
    (folder / "cut.jpg").write_bytes((photos / "b.jpg").read_bytes()[:-500])
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dead.png").symlink_to("nowhere.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "fifo.png")
    longest = os.pathconf(folder, "PC_NAME_MAX")
    fits, labels_fit, long = (
        name + ".png" for name in ("x" * (longest - 12), "y" * (longest - 11), "z" * (longest - 4))
    )
    for name in (fits, labels_fit, long):
        shutil.copy(photos / "a.png", folder / name)
    missing, escape = "n" * (longest + 1), "\x1b]0;title\a\n.png"
    (folder / escape).write_bytes(b"no picture")
    assert run(bundle, folder, folder / missing, "--out", tmp_path / "out") == cli.FAILED
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(f"{stem}_{kind}.png" for stem in (fits[:-4], "z") for kind in ("labels", "overlay"))
    output = capsys.readouterr().err
    assert "2 of 11 pictures" in output
    failed = [line for line in output.splitlines() if line.startswith("failed:")]
    for name, reason in {
        "cut.jpg": "cut off",
        "loop.png": "symbolic links",
        "dead.png": "a link to nowhere.png, which does not exist",
        "zero.png": "a device",
        "fifo.png": "a FIFO",
        labels_fit: "_overlay.png cannot be written: File name too long",
        long: "_labels.png cannot be written: File name too long",
        missing: "File name too long",
        r"\x1b]0;title\x07\x0a.png": "not a picture",
    }.items():
        (line,) = (line for line in failed if str(folder / name) in line)
        assert reason in line


def test_the_output_does_not_hold_the_control_characters_of_a_name(bundle, photos, tmp_path, capsys):
    out = tmp_path / "a\x1b[31m\x07"
    assert run(bundle, photos, "--out", out) == 0
    output = capsys.readouterr()
    assert "a\\x1b[31m\\x07" in output.err
    assert not set("\x1b\x07") & set(output.out + output.err)


def test_what_is_in_the_place_of_a_result_stays(bundle, photos, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / "a_labels.png")
    (photos / "victim").write_bytes(b"old")
    (out / "b_labels.png").symlink_to(photos / "victim")
    assert run(bundle, photos, "--out", out) == cli.FAILED
    assert "a_labels.png cannot be written: it is a FIFO" in capsys.readouterr().err
    assert (out / "a_labels.png").is_fifo()
    assert labels_of(out / "b_labels.png").shape == (40, 70)
    assert (photos / "victim").read_bytes() == b"old"


@pytest.mark.parametrize("out", ["/dev/null", "/dev/null/x", "x" * 300, "/proc/results"])
def test_no_folder_for_results(bundle, photos, tmp_path, out, capsys):
    assert run(bundle, photos, "--out", out if out.startswith("/") else tmp_path / out) == cli.ERROR
    assert capsys.readouterr().err.startswith("error: --out ")


_AS_NOBODY = """
import json, os, sys
from isnet_trt import cli
from isnet_trt.commands import predict
from isnet_trt.commands.inference_options import choose_inference
from isnet_trt.datasets.own_files import find_pairs
os.chdir(sys.argv[1])
# Everything is imported before the change of user: root's Python may be private.
cli.run(predict.main, ["bundle", "photos/b.jpg", "--out", "first"])
"".encode("ascii")
os.geteuid() or os.setresuid(65534, 65534, 65534)
for arguments in json.loads(sys.argv[2]):
    print("status", cli.run(predict.main, ["bundle", *arguments]), file=sys.stderr)
"""


@pytest.fixture
def open_folder():
    """A folder that every user may write to (pytest's own may not be)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_no_permission(bundle, photos, open_folder):
    """On a folder, a picture, the results' folder: the message has the file and the system's reason."""
    shutil.copytree(photos, open_folder / "photos")
    shutil.copytree(bundle, open_folder / "bundle")
    (open_folder / "closed").mkdir(0o555)
    (open_folder / "photos" / "a.png").chmod(0)
    (open_folder / "photos" / "more").chmod(0)
    cases = {
        "photos photos/more photos/more/a.bmp --out out": (
            "failed: photos/more cannot be read: Permission denied",
            "failed: photos/a.png cannot be read: Permission denied",
            "failed: photos/more/a.bmp cannot be read: Permission denied",
            "status 1",
        ),
        "photos/a.png photos/more --out none": (
            "failed: photos/more cannot be read: Permission denied",
            "failed: photos/a.png cannot be read: Permission denied",
            "status 2",
        ),
        "photos/more --out none": ("error: photos/more cannot be read: Permission denied", "status 2"),
        "photos/b.jpg --out closed": (
            "error: --out closed: the folder cannot be written to (no permission)",
            "status 2",
        ),
        "photos/b.jpg --out closed/new": (
            "error: --out closed/new: the folder cannot be created (Permission denied)",
            "status 2",
        ),
    }
    arguments = json.dumps([case.split() for case in cases])
    messages = run_python("-c", _AS_NOBODY, open_folder, arguments).stderr.splitlines()
    lines = [line for line in messages if line.startswith(("failed", "error", "status"))]
    assert lines == [line for expected in cases.values() for line in expected]
    assert sorted(path.name for path in (open_folder / "out").iterdir()) == ["b_labels.png", "b_overlay.png"]
    assert not (open_folder / "none").exists()


@pytest.fixture
def tree(photos, tmp_path):
    """Photos in three levels, with links in a circle, to the same folder twice, and to one outside."""
    outside = tmp_path / "outside"
    (photos / "more" / "deep").mkdir()
    (photos / ".hidden").mkdir()
    outside.mkdir()
    for target in (photos / "more/deep/a.png", photos / ".hidden/h.png", outside / "o.png", photos / "more/a.jpg"):
        shutil.copy(photos / "a.png", target)
    (photos / "more" / "deep" / "circle").symlink_to(photos)
    (photos / "again").symlink_to(photos / "more")
    (photos / "zz").symlink_to(outside)
    return photos


def label_files(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*_labels.png"))


def test_recursive_keeps_the_folders(bundle, tree, tmp_path, capsys):
    assert run(bundle, tree, "--recursive", "--out", tmp_path / "out") == 0
    # `again` comes first and leads to `more`, which is not entered again; `more` is also the folder's own name.
    expected = ["a", "again/a", "again/more_a", "again/deep/a", "b", "zz/o"]
    assert label_files(tmp_path / "out") == sorted(f"{stem}_labels.png" for stem in expected)
    with Segmenter.open(bundle) as segmenter:
        for stem, photo in (("again/a", "more/a.bmp"), ("again/more_a", "more/a.jpg"), ("zz/o", "zz/o.png")):
            labels = labels_of(tmp_path / "out" / f"{stem}_labels.png")
            assert (labels == segmenter(tree / photo).labels).all()
    message = capsys.readouterr().err
    assert "names that were taken: " in message
    assert "more_a_…" in message


def test_records_name_pictures_that_fail(bundle, photos, tmp_path, capsys):
    (photos / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    assert run(bundle, photos, "--out", tmp_path / "out", "--log-json", tmp_path / "log", "-v") == cli.FAILED
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    records = [json.loads(line)["message"] for line in (tmp_path / "log").read_text("utf-8").splitlines()]
    assert len(failed) == 1
    assert [text for text in records if text.startswith("failed: ")] == failed


def test_files_of_the_system_are_no_pictures(bundle, photos, tmp_path):
    (photos / "._a.png").write_bytes(b"\0\5\x16\7 resource fork")
    assert run(bundle, photos, "--out", tmp_path / "out") == 0
    assert run(bundle, photos / "._a.png", "--out", tmp_path / "out") == cli.ERROR  # named by itself it is tried


def test_a_glob_follows_no_circle(bundle, tree, tmp_path):
    assert run(bundle, tree / "**" / "*.bmp", "--out", tmp_path / "out") == 0
    assert label_files(tmp_path / "out") == ["a_labels.png"]


def test_a_second_run_does_not_take_results_for_pictures(bundle, photos, capsys):
    assert run(bundle, photos, "--out", photos) == 0
    first = {path: path.read_bytes() for path in photos.glob("*_*.png")}
    assert len(first) == 4
    assert [path.name for path in pictures_in(photos)] == ["a.png", "b.jpg"]  # for calibration and the gate
    own, _ = find_pairs(FilePatterns("*.*", "{name}_labels.png", None, 0.5), photos, "val")
    assert set(own) < {"a", "b"}  # of a data set of one's own
    for images in ([photos], [photos, "-r"], [photos / "*.png", photos / "b.jpg"], sorted(photos.glob("*.*g"))):
        assert run(bundle, *images, "--out", photos) == 0
        assert "results of earlier runs left out: a_labels.png" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in photos.glob("*_*.png")} == first


def test_results_of_earlier_versions_and_results_alone(bundle, photos, tmp_path, capsys):
    """Without a mark, labels and overlay of one stem side by side are results; one of them may be a picture."""
    for name in ("b_labels.png", "b_overlay.png", "c_overlay.png"):
        shutil.copy(photos / "a.png", photos / name)
    assert run(bundle, photos, "--out", tmp_path / "out") == 0
    assert label_files(tmp_path / "out") == ["a_labels.png", "b_labels.png", "c_overlay_labels.png"]
    assert run(bundle, tmp_path / "out", "--out", tmp_path / "again") == cli.ERROR
    assert "no pictures there, only 6 results of earlier runs" in capsys.readouterr().err
    assert run(bundle, tmp_path / "out" / "a_overlay.png", "--out", tmp_path / "again") == 0
    assert label_files(tmp_path / "again") == ["a_overlay_labels.png"]


def test_urls(bundle, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(QuietHandler, directory=str(photos))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        host = f"127.0.0.1:{server.server_port}"
        try:
            urls = [f"http://{host}/{name}" for name in ("a.png", "more/a.bmp", "gone.jpg", "notes.txt")]
            assert run(bundle, *urls, "--out", tmp_path / "out") == cli.FAILED
        finally:
            server.shutdown()
            thread.join()
    named = f"{host.replace(':', '_')}_a_labels.png"
    assert label_files(tmp_path / "out") == sorted(["a_labels.png", named])
    with Segmenter.open(bundle) as segmenter:
        for name, photo in (("a_labels.png", "a.png"), (named, "more/a.bmp")):
            assert (labels_of(tmp_path / "out" / name) == segmenter(photos / photo).labels).all()
    failures = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed")]
    assert len(failures) == 2
    assert f"http://{host}/gone.jpg cannot be downloaded: the server answered 404" in failures[0]
    assert f"http://{host}/notes.txt: not a picture" in failures[1]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
