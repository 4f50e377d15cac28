"""OpenCV, imported when it is first used: without it everything can be imported, and one error says what is missing.

from isnet_trt.opencv import cv2
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from isnet_trt.errors import PackageMissing

HEADLESS = "opencv-python-headless"
"""The same library without windows: it needs no system packages."""
_SYSTEM_PACKAGES = {
    "libGL.so": "libgl1",
    "libgthread-2.0": "libglib2.0-0",
    "libglib-2.0": "libglib2.0-0",
    "libSM": "libsm6",
    "libICE": "libice6",
    "libXext": "libxext6",
    "libXrender": "libxrender1",
    "libX11": "libx11-6",
    "libxcb": "libxcb1",
}
"""Beginning of a shared library's name -> the package of Debian and Ubuntu that has it."""


@functools.cache
def _load() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise PackageMissing(_reason(error)) from error


def _reason(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "cv2":
        return f"OpenCV is not installed; pip install opencv-python, or {HEADLESS} where there is no display"
    message = " ".join(str(error).split())
    package = next((package for name, package in _SYSTEM_PACKAGES.items() if name in message), "")
    system = f"install the system package that has it (Debian, Ubuntu: apt-get install {package}), or " * bool(package)
    return (
        f"OpenCV cannot be loaded ({message}); {system}replace opencv-python: "
        f"pip uninstall opencv-python, then pip install {HEADLESS}"
    )


class _OpenCV:
    """The module cv2; PackageMissing where it cannot be imported."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_load(), name)


if TYPE_CHECKING:
    import cv2 as cv2
else:
    cv2 = _OpenCV()
