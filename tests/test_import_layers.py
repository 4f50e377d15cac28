"""`make lint` holds the layers: an import of an upper layer and a circle are found, lazy ones too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("isnet_trt", "training", "export", "kernels", "benchmarks")
LAZY = "\n\ndef planted():\n    from {module} import {name}\n\n    return {name}\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in PACKAGES:
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("training", "export", "kernels"):
        if not (tmp_path / "isnet_trt" / name).exists():  # the source distribution has no links
            (tmp_path / "isnet_trt" / name).symlink_to(Path("..", name))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> tuple[int, str]:
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=tree, capture_output=True, text=True, env={"PYTHONPATH": "."}
    )
    return ran.returncode, ran.stdout + ran.stderr


def plant(tree: Path, file: str, module: str, name: str) -> None:
    path = tree / file
    path.write_text(path.read_text("utf-8") + LAZY.format(module=module, name=name), "utf-8")


def test_the_tree_as_it_is(tree: Path) -> None:
    status, output = lint(tree)
    assert status == 0, output
    assert "2 kept, 0 broken" in output


@pytest.mark.parametrize(
    ("file", "module", "name"),
    [
        ("isnet_trt/recipes/published.py", "isnet_trt.pictures.files", "read_image"),
        ("isnet_trt/cuda/plan.py", "isnet_trt.engines.select", "choose"),
        ("training/trainer.py", "isnet_trt.export.tracing", "export_graph"),
        ("export/build_bundle.py", "isnet_trt.commands.build", "main"),
    ],
)
def test_an_upward_import_fails(tree: Path, file: str, module: str, name: str) -> None:
    plant(tree, file, module, name)
    status, output = lint(tree)
    assert status == 1
    importer = file.removesuffix(".py").replace("/", ".").removeprefix("isnet_trt.")
    assert f"{importer} -> {module}" in output


def test_a_circle_within_a_layer_fails(tree: Path) -> None:
    plant(tree, "isnet_trt/merging/resample.py", "isnet_trt.merging.volumes", "softmax")
    status, output = lint(tree)
    assert status == 1
    assert "No circles BROKEN" in output
    assert "resample" in output
