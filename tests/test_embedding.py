"""isnet_trt beside C code: a C library that owns the memory; the Python code of docs/embedding.md is executed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import small_bundle
from children import explained, run_python

from isnet_trt import Segmenter

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
WARNINGS = "-O2 -Wall -Wextra -Werror"
HEIGHT, WIDTH = 77, 109

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler (cc) here")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "small").folder


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


def test_the_pages_snippets_run_and_need_no_torch(bundle, tmp_path):
    """As one script, whose spawned children read it too."""
    page = (ROOT / "docs" / "embedding.md").read_text("utf-8")
    snippets = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    heavy = "import sys\nassert not {'torch', 'onnx', 'triton'} & set(sys.modules), 'heavy'\n"
    script = tmp_path / "page.py"
    script.write_text("\n".join([f"bundle = {str(bundle)!r}", *snippets, heavy]), "utf-8")
    ran = run_python(script)
    assert ran.returncode == 0, explained(ran)
    assert len(snippets) >= 6
    assert ran.stdout.count("1.0") == 8  # one class in each of the eight plain pictures
