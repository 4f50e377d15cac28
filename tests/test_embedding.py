"""isnet_trt beside C code: programs are compiled, linked with Python and run; docs/embedding.md is executed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_bundle
import tiny_model
from children import environment, run_python

from isnet_trt import Segmenter, embed
from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.settings import Preprocess

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
WARNINGS = "-O2 -Wall -Wextra -Werror"
PICTURE = np.random.default_rng(7).integers(0, 256, (17, 23, 3), np.uint8).repeat(5, 0).repeat(5, 1)[:77, :109].copy()
HEIGHT, WIDTH = PICTURE.shape[:2]

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler (cc) here")
needs_headers = pytest.mark.skipif(
    not (Path(sysconfig.get_path("include")) / "Python.h").is_file() or not shutil.which("make"),
    reason="Python's headers or make are not installed here",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "small").folder


@pytest.fixture(scope="module")
def want(bundle):
    with Segmenter.open(bundle, threads=1) as segmenter:
        labels = {preset: segmenter(PICTURE, inference=preset).labels for preset in ("default", "ms-flip")}
    assert all(len(np.unique(values)) > 1 for values in labels.values())
    return labels


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The C program of examples/embed, made as its Makefile makes it."""
    folder = shutil.copytree(EXAMPLES / "embed", tmp_path_factory.mktemp("embed") / "embed")
    command = ["make", "-C", str(folder), f"PYTHON={sys.executable}", f"CFLAGS={WARNINGS}"]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    (folder / "picture.ppm").write_bytes(b"P6 %d %d 255\n" % (WIDTH, HEIGHT) + PICTURE.tobytes())
    return folder / "service"


def run(service: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(service), sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment())


@needs_compiler
@needs_headers
@pytest.mark.parametrize(("preset", "threads"), [("default", 3), ("ms-flip", 1)])
def test_a_c_program_gets_the_same_labels(preset, threads, service, bundle, want, tmp_path):
    out = tmp_path / "labels.pgm"
    ran = run(service, bundle, preset, threads, service.with_name("picture.ppm"), out)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{HEIGHT} x {WIDTH} pixels, {threads} threads, same label map\n"
    header = b"P5 %d %d 255\n" % (WIDTH, HEIGHT)
    assert out.read_bytes() == header + want[preset].tobytes()


@needs_compiler
@needs_headers
def test_the_pages_compiler_line_makes_the_program(tmp_path):
    config = Path(sys.base_prefix) / "bin" / "python3-config"
    if not config.is_file():
        pytest.skip("this Python has no python3-config")
    page = (ROOT / "docs" / "embedding.md").read_text("utf-8")
    line = re.search(r"^cc .*python3-config.*$", page, re.MULTILINE)[0]
    line = line.replace("python3-config", str(config)).replace("-o service", f"-o {tmp_path / 'service'}")
    subprocess.run(line, shell=True, cwd=EXAMPLES / "embed", check=True)
    told = subprocess.run([tmp_path / "service"], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr.startswith("usage: ")) == (2, True)


@needs_compiler
@needs_headers
def test_a_c_program_is_told_what_is_wrong(service, bundle, tmp_path):
    picture, out = service.with_name("picture.ppm"), tmp_path / "labels.pgm"
    ran = run(service, tmp_path / "none", "default", 1, picture, out)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"BundleError: {tmp_path / 'none'} is not a folder")
    ran = run(service, bundle, "best", 2, picture, out)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("SettingsError: preset 'best' is unknown")
    assert not out.exists()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The C library of examples/frames, compiled with the command in its head."""
    source = EXAMPLES / "frames" / "frames.c"
    command = re.search(r"^ \* (cc .*frames\.c) -o libframes\.so", source.read_text("utf-8"), re.MULTILINE)
    path = tmp_path_factory.mktemp("frames") / "libframes.so"
    subprocess.run([*command[1].split(), *WARNINGS.split(), "-o", path], cwd=source.parent, check=True)
    return path


@needs_compiler
def test_frames_of_a_c_library_are_segmented_in_place(library, bundle):
    frames = load_frames()
    loaded = frames.load(str(library))
    seen = []
    with Segmenter.open(bundle, threads=1) as segmenter:
        for frame in frames.segmented(loaded, segmenter, HEIGHT, WIDTH, 3):
            pixels, labels = frame.image.array(), frame.label_map.array()
            assert pixels.strides[0] > 3 * WIDTH
            want = segmenter(np.ascontiguousarray(pixels[:, :, ::-1])).labels
            assert (labels == want).all()
            assert not whole_rows(labels)[:, WIDTH:].any()  # the padding stays as it was
            counts = [loaded.frame_count(frame, i) for i in range(3)]
            assert counts == np.bincount(want.ravel(), minlength=3).tolist()
            seen.append(want)
    assert len(seen) == 3
    assert (seen[0] != seen[1]).any()


def whole_rows(labels: np.ndarray) -> np.ndarray:
    """The rows of a view with their padding, but for the last row's."""
    return np.lib.stride_tricks.as_strided(labels, (len(labels) - 1, labels.strides[0]), (labels.strides[0], 1))


def load_frames():
    spec = importlib.util.spec_from_file_location("isnet_example_frames", EXAMPLES / "frames" / "frames.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_compiler
def test_the_frames_example_runs_as_it_says(library, bundle):
    ran = run_python(EXAMPLES / "frames" / "frames.py", library, bundle, HEIGHT, WIDTH, check=True)
    lines = ran.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["frame 0", "frame 1", "frame 2"]
    assert all(sum(map(int, re.findall(r" (\d+)", line.split(":")[1]))) == HEIGHT * WIDTH for line in lines)


def test_the_entry_for_c(tmp_path):
    with Segmenter(tiny_model.open_tiny(tmp_path, 300), tiny_model.labels(300), Preprocess((200, 96))) as segmenter:
        assert embed.label_bytes(segmenter) == 2
        want = segmenter(PICTURE).labels
        labels = np.zeros((HEIGHT, WIDTH + 9), np.uint16)
        picture = (PICTURE.ctypes.data, HEIGHT, WIDTH, 0, "rgb")
        embed.segment(segmenter, *picture, labels.ctypes.data, labels.strides[0])
        assert (labels[:, :WIDTH] == want).all()
        assert not labels[:, WIDTH:].any()
        frame = cv2.cvtColor(np.ascontiguousarray(PICTURE[: HEIGHT & ~1, : WIDTH & ~1]), cv2.COLOR_RGB2YUV_I420)
        surface = (frame.ctypes.data, HEIGHT & ~1, WIDTH & ~1, 0, "i420")
        embed.segment(segmenter, *surface, labels.ctypes.data, labels.strides[0])
        want = segmenter(cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_I420)).labels
        assert (labels[: want.shape[0], : want.shape[1]] == want).all()
        with pytest.raises(ImageError, match="not one and a half times a height"):
            embed.segment(segmenter, surface[0], 3, *surface[2:], labels.ctypes.data, labels.strides[0])
        with pytest.raises(ImageError, match="null pointer"):
            embed.segment(segmenter, 0, *picture[1:], labels.ctypes.data, 0)
        with pytest.raises(SettingsError, match="null pointer"):
            embed.segment(segmenter, *picture, 0, 0)
        with pytest.raises(SettingsError, match="memory of cuda:0"):
            embed.segment(segmenter, *picture, labels.ctypes.data, 0, "cuda:0")
        with pytest.raises(SettingsError, match="leave stream out"):
            embed.segment(segmenter, *picture, labels.ctypes.data, 0, "cpu", 0)


def test_the_pages_snippets_run_and_need_no_torch(bundle, tmp_path):
    """As one script, whose spawned children read it too."""
    page = (ROOT / "docs" / "embedding.md").read_text("utf-8")
    snippets = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    heavy = "import sys\nassert not {'torch', 'onnx', 'triton'} & set(sys.modules), 'heavy'\n"
    script = tmp_path / "page.py"
    script.write_text("\n".join([f"bundle = {str(bundle)!r}", *snippets, heavy]), "utf-8")
    ran = run_python(script)
    assert ran.returncode == 0, ran.stderr
    assert len(snippets) >= 6
    assert "make -C examples/embed PYTHON=.venv/bin/python" in page
    assert ran.stdout.count("1.0") == 8  # one class in each of the eight plain pictures


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed here")
def test_a_relative_python_counts_from_where_make_is_called(tmp_path):
    (tmp_path / "my env").mkdir()
    (tmp_path / "my env" / "python").symlink_to(sys.executable)

    def made(python, folder=tmp_path):
        command = ["make", "--dry-run", "-C", EXAMPLES / "embed", f"PYTHON={python}"]
        return subprocess.run(command, cwd=folder, env=environment(PWD=str(folder)), capture_output=True, text=True)

    assert f"-lpython{sys.version_info[0]}.{sys.version_info[1]}" in made("my env/python").stdout
    assert made(sys.executable).stdout == made("my env/python").stdout
    missing = made("other/python")
    assert missing.returncode
    assert f"PYTHON=other/python is no program: not in {tmp_path}" in missing.stderr
