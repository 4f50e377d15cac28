"""What is imported is declared in setup.py, what is declared is pinned in constraints.txt, and a wheel is whole."""

from __future__ import annotations

import ast
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
AT_THE_TOP = ("training", "export", "kernels")
PROJECTS = {
    "cv2": "opencv-python",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "cuda": "cuda-bindings",
    "pynvml": "nvidia-ml-py",
    "onnx_graphsurgeon": "onnx-graphsurgeon",
    "ml_dtypes": "ml-dtypes",
    "markdown_it": "markdown-it-py",
}
"""Modules whose project has another name."""
PEERS = {"openvino", "torch-tensorrt"}
"""What benchmarks compare with where it happens to be there."""


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Requirement]]:
    """The requirements of each extra, and of none under ""."""
    keywords: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", keywords.update)
    runpy.run_path(str(ROOT / "setup.py"))
    lists = {"": keywords["install_requires"], **keywords["extras_require"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in lists.items()}


def imported(folder: str) -> Iterator[tuple[str, str]]:
    """(project, file) of every import of another project's module."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for module in {name.partition(".")[0] for name in names} - {
                "isnet_trt",
                "benchmarks",
                "tests",
                "__future__",
            }:
                if module not in sys.stdlib_module_names:
                    yield PROJECTS.get(module, canonicalize_name(module)), str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", ["isnet_trt", "training", "export", "kernels", "benchmarks"])
def test_every_import_is_declared(declared: dict[str, list[Requirement]], folder: str) -> None:
    users = {canonicalize_name(one.name) for extra, lines in declared.items() if extra != "dev" for one in lines}
    projects = dict(imported(folder))
    assert "numpy" in projects
    assert {project: file for project, file in projects.items() if project not in users | PEERS} == {}


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


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_wheel_holds_every_module(tmp_path: Path, checkout: Callable[[bool], Path], links: bool) -> None:
    """Also from a checkout where git wrote each link as a text file, as it does with core.symlinks=false."""
    root = checkout(links)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path / 'dist')!r})"
    subprocess.run([sys.executable, "-c", build], cwd=root, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {f"isnet_trt/{path.relative_to(root)}" for folder in AT_THE_TOP for path in (root / folder).rglob("*.py")}
    inside = {str(path.relative_to(root)) for path in _real_files(root / "isnet_trt")}
    assert {name for name in names if name.endswith(".py")} == top | inside
    data = ("isnet_trt/recipes/labels.json", "isnet_trt/training/assets/isnet_demo.pth", "isnet_trt/py.typed")
    assert names >= {*data, "isnet_trt/export/pictures/rocket.jpg"}


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[[bool], Path]:
    """A copy of what is packaged, with the links inside ``isnet_trt/`` or with text files in their place."""

    def copied(links: bool) -> Path:
        root = tmp_path / "checkout"
        for folder in ("isnet_trt", *AT_THE_TOP):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, root / folder, symlinks=True, ignore=ignored)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, root / name)
        for name in AT_THE_TOP:
            link = root / "isnet_trt" / name
            link.unlink()
            if links:
                link.symlink_to(Path("..", name))
            else:
                link.write_text(f"../{name}", "utf-8")
        return root

    return copied


def _real_files(folder: Path) -> list[Path]:
    """Modules below ``folder`` that are not reached through a link."""
    return [path for path in folder.rglob("*.py") if not any(one.is_symlink() for one in path.parents)]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed here")
def test_an_environment_without_pip_is_named_with_its_cure(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    command = ["make", "-C", ROOT, f"VENV={tmp_path / 'env'}", tmp_path / "env" / ".torch"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode
    assert f"{tmp_path / 'env'} has no pip" in result.stdout
    assert "make clean" in result.stdout
