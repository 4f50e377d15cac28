"""OpenCV or ONNX Runtime that cannot be imported: everything else works, and one line says what to install."""

from __future__ import annotations

from pathlib import Path

import pytest
from children import CHECKOUT, environment, explained, run_python

from isnet_trt import cli

LIBGL = "libGL.so.1: cannot open shared object file: No such file or directory"


def broken(folder: Path, message: str) -> dict[str, str]:
    """The environment of a child process in which ``import cv2`` raises an ImportError."""
    (folder / "cv2").mkdir()
    (folder / "cv2" / "__init__.py").write_text(f"raise ImportError({message!r})\n", "utf-8")
    variables = environment()
    return variables | {"PYTHONPATH": f"{folder}:{variables['PYTHONPATH']}"}


@pytest.mark.parametrize(
    ("message", "package"),
    [
        (LIBGL, "libgl1"),
        (LIBGL.replace("libGL.so.1", "libgthread-2.0.so.0"), "libglib2.0-0"),
        (LIBGL.replace("libGL.so.1", "libXext.so.6"), "libxext6"),
        ("numpy.core.multiarray failed to import", ""),
    ],
)
def test_one_line_names_the_system_package_and_the_headless_build(message: str, package: str, tmp_path: Path) -> None:
    arguments = ("-m", "isnet_trt.training.scenes", "--count", 1, "--out", tmp_path / "out")
    ran = run_python(*arguments, env=broken(tmp_path, message))
    assert (ran.returncode, ran.stderr.count("\n")) == (cli.ERROR, 1), explained(ran)
    assert ran.stderr.startswith(f"error: OpenCV cannot be loaded ({message}); ")
    assert "pip install opencv-python-headless" in ran.stderr
    assert ("apt-get install" in ran.stderr) == bool(package)
    assert not package or f"apt-get install {package})" in ran.stderr


def test_help_and_import_work_without_it(tmp_path: Path) -> None:
    variables = broken(tmp_path, LIBGL)
    for module in ("isnet_trt.predict", "isnet_trt.training.train"):
        assert run_python("-m", module, "--help", env=variables, check=True).stderr == ""
    code = (
        "import sys\nfrom isnet_trt import IsnetError, Segmenter\nfrom isnet_trt.pictures.files import read_image\n"
        "try:\n    read_image(sys.argv[1])\nexcept IsnetError as error:\n    print(type(error).__name__, error)\n"
    )
    picture = CHECKOUT / "export" / "pictures" / "rocket.jpg"
    printed = run_python("-c", code, picture, env=variables, check=True).stdout
    assert printed.startswith("PackageMissing OpenCV cannot be loaded")


def test_opencv_that_is_not_installed() -> None:
    code = (
        "import sys\nsys.modules['cv2'] = None\nfrom isnet_trt.opencv import cv2\n"
        "try:\n    cv2.resize\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    printed = run_python("-c", code, check=True).stdout
    assert printed.startswith("PackageMissing OpenCV is not installed; pip install opencv-python, or")


def test_without_onnxruntime_the_extras_are_named() -> None:
    code = (
        "import sys\nsys.modules['onnxruntime'] = None\nfrom isnet_trt.engines.table import library\n"
        "try:\n    library('onnxruntime').load()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    printed = run_python("-c", code, check=True).stdout
    assert printed.startswith("EngineUnavailable engine 'onnxruntime' needs the Python package onnxruntime")
    assert "'.[cpu]'" in printed
    assert "gpu-ort" in printed
