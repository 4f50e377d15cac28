"""What a report says of how it was made: command, date, versions and machine."""

from __future__ import annotations

import datetime
import platform
import sys
from dataclasses import dataclass, field

from isnet_trt._version import __version__
from isnet_trt.engines.cores import usable_cores
from isnet_trt.markdown import code, plain

_PACKAGES = ("numpy", "cv2", "onnxruntime", "onnx", "torch", "triton", "tensorrt", "tensorrt_rtx")


def now() -> str:
    """The time in ISO 8601, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Provenance:
    """How a report was made. ``command`` is empty where a program called the library."""

    command: str = ""
    created_at: str = field(default_factory=now)

    def rows(self) -> list[tuple[str, str]]:
        """Title and Markdown of each fact; the versions are those of the packages that this process has loaded."""
        loaded = {name: getattr(sys.modules.get(name), "__version__", None) for name in _PACKAGES}
        versions = {"isnet_trt": __version__, "Python": platform.python_version(), **loaded}
        return [
            ("versions", plain(", ".join(f"{name} {version}" for name, version in versions.items() if version))),
            ("machine", plain(f"{platform.platform()}, {usable_cores()} CPU cores")),
            ("date", self.created_at),
            ("command", code(self.command) if self.command else "a call of the Python interface"),
        ]
