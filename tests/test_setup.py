"""What the code imports is declared in setup.py, and what is declared is pinned in constraints.txt."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECTS = {
    "cv2": "opencv-python",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "cuda": "cuda-bindings",
    "pynvml": "nvidia-ml-py",
    "onnx_graphsurgeon": "onnx-graphsurgeon",
    "ml_dtypes": "ml-dtypes",
}
"""Modules whose project has another name."""
PEERS = {"openvino", "torch-tensorrt"}
"""What benchmarks compare with where it happens to be there."""


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Requirement]]:
    """The requirements of each extra, and of none under ""."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    lists = {"": given["install_requires"], **given["extras_require"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in lists.items()}


def imported(folder: str) -> Iterator[tuple[str, str]]:
    """(project, file) of every import of another project's module."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for module in {name.partition(".")[0] for name in names} - {"isnet_trt", "benchmarks", "__future__"}:
                if module not in sys.stdlib_module_names:
                    yield PROJECTS.get(module, canonicalize_name(module)), str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", ["isnet_trt", "training", "export", "kernels", "benchmarks"])
def test_every_import_is_declared(declared: dict[str, list[Requirement]], folder: str) -> None:
    users = {canonicalize_name(one.name) for extra, lines in declared.items() if extra != "dev" for one in lines}
    found = dict(imported(folder))
    assert "numpy" in found
    assert {project: file for project, file in found.items() if project not in users | PEERS} == {}


def test_everything_but_tensorrt_and_pycuda_is_pinned_within_its_bounds(declared: dict[str, list[Requirement]]) -> None:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()]
    pins: dict[str, list[str]] = {}
    for pin in (Requirement(line) for line in lines if line):
        (version,) = (one.version for one in pin.specifier)
        pins.setdefault(canonicalize_name(pin.name), []).append(version)
    for one in {str(line): line for lines in declared.values() for line in lines}.values():
        name = canonicalize_name(one.name)
        if name not in ("tensorrt", "pycuda"):
            assert name in pins, f"{one} is not pinned"
            assert all(one.specifier.contains(version) for version in pins[name]), f"{one}: {pins[name]}"
