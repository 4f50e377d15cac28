"""What is imported is declared in setup.py, what is declared is pinned in constraints.txt, and a wheel is whole."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools
from children import explained
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
PEERS = {"openvino", "torch-tensorrt", "tritonclient", "triton-python-backend-utils"}
"""What benchmarks compare with where it happens to be there, and what a server's own processes have."""
MORE = "train,bench,rtx,dev"
"""Extras that the tests need beside those of the demo."""


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


def test_everything_but_gpu_packages_is_pinned_within_its_bounds(declared: dict[str, list[Requirement]]) -> None:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()]
    pins: dict[str, list[str]] = {}
    for pin in (Requirement(line) for line in lines if line):
        (version,) = (one.version for one in pin.specifier)
        pins.setdefault(canonicalize_name(pin.name), []).append(version)
    for one in {str(line): line for lines in declared.values() for line in lines}.values():
        name = canonicalize_name(one.name)
        if name not in ("tensorrt", "pycuda", "onnxruntime-gpu"):
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
    sources = {f"isnet_trt/c_api/{path.name}" for path in (root / "isnet_trt" / "c_api").iterdir()}
    assert {Path(name).suffix for name in sources} == {".c", ".h", ".hpp", ".in", ".txt"}
    assert names >= {
        *sources,
        "isnet_trt/recipes/labels.json",
        "isnet_trt/markdown.js",
        "isnet_trt/evaluation/confusion.js",
        "isnet_trt/py.typed",
        "isnet_trt/export/pictures/rocket.jpg",
    }
    assert not [name for name in names if "assets" in name], "the demo's checkpoint is most of a wheel"
    assert wheel.stat().st_size < 1 << 20


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
            link.unlink(missing_ok=True)  # the source distribution has no links
            if links:
                link.symlink_to(Path("..", name))
            else:
                link.write_text(f"../{name}", "utf-8")
        return root

    return copied


def test_the_source_distribution_holds_the_whole_repository(tmp_path: Path) -> None:
    """What a checkout has, but for the links inside ``isnet_trt/``: tests and documentation work from it."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("this is no checkout")
    files = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    for name in files:
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).symlink_to(ROOT / name)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "copy", check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert files - names == set()
    assert [name for name in names if re.match("isnet_trt/(training|export|kernels)/", name)] == []


def test_the_page_of_a_package_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """No link of it leads nowhere; with the repository's address, links are absolute."""
    pages = {}
    for url in ("", "https://example.org/isnet/"):
        keywords: dict[str, Any] = {}
        monkeypatch.setenv("ISNET_TRT_URL", url)
        monkeypatch.setattr(setuptools, "setup", keywords.update)
        runpy.run_path(str(ROOT / "setup.py"))
        pages[url] = keywords["long_description"]
        assert re.findall(r"\]\((?!https?://)", pages[url]) == []
        assert all(" :: " in classifier for classifier in keywords["classifiers"])
    assert (
        "[architecture](https://example.org/isnet/blob/main/docs/architecture.md)"
        in pages["https://example.org/isnet/"]
    )
    assert "architecture" in pages[""]


def test_onnxruntime_is_the_users_choice(declared: dict[str, list[Requirement]]) -> None:
    brought = {extra: {one.name for one in lines} for extra, lines in declared.items()}
    assert {extra for extra, names in brought.items() if "onnxruntime" in names} == {"cpu"}
    assert {extra for extra, names in brought.items() if "onnxruntime-gpu" in names} == {"gpu-ort"}


def test_the_image_has_headless_opencv_in_the_pinned_version(declared: dict[str, list[Requirement]]) -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "opencv" in line)
    assert pins["opencv-python"] == pins["opencv-python-headless"]
    text = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    installed = re.search(r"pip install .*constraints\.txt (.*) \\\n", text)
    assert installed
    required = {one.name for one in (*declared[""], *declared["cpu"])} - {"opencv-python"}
    assert set(installed[1].split()) == {*required, "opencv-python-headless"}
    assert "--no-deps /wheels/*.whl" in text


def _real_files(folder: Path) -> list[Path]:
    """Modules below ``folder`` that are not reached through a link."""
    return [path for path in folder.rglob("*.py") if not any(one.is_symlink() for one in path.parents)]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed here")
def test_an_environment_without_pip_is_named_with_its_cure(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    command = ["make", "-C", ROOT, f"VENV={tmp_path / 'env'}", tmp_path / "env" / ".torch"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode, explained(result)
    assert f"{tmp_path / 'env'} has no pip" in result.stdout
    assert "make clean" in result.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed here")
@pytest.mark.parametrize("offered", [True, False])
def test_make_says_what_it_installs_before_it_does(tmp_path: Path, offered: bool) -> None:
    """With an interpreter that prints its arguments instead of running pip; the CPU build is offered or not."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("with an NVIDIA GPU the CPU build is not looked for")
    program = tmp_path / "env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "RUN $*"\ncase "$*" in *+cpu*) exit {int(not offered)};; esac\n')
    program.chmod(0o755)
    command = ["make", "-C", ROOT, f"VENV={tmp_path / 'env'}", tmp_path / "env" / ".test"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, explained(result)
    steps = re.sub(r"RUN .*constraints\.txt", "RUN", result.stdout).splitlines()
    torch = re.search(r"^torch==([\d.]+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)[1]
    cuda = ["RUN torch==" + torch]
    assert ([step for step in steps if step in cuda] == cuda) != offered
    assert ("PIP_EXTRA_INDEX_URL" in result.stdout) != offered
    if not offered:
        assert "4.9 GB" in "".join(steps[: steps.index(cuda[0])])
    demo, test = (steps.index(f"RUN --editable .[{extras}]") for extras in ("cpu,build", f"cpu,build,{MORE}"))
    assert "0.5 GB" in steps[demo - 1]
    assert "0.7 GB" in steps[test - 1]


def test_the_changelog_has_a_section_for_the_version() -> None:
    version = re.search(r'"(.+)"', (ROOT / "isnet_trt" / "_version.py").read_text("utf-8"))[1]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    sections = r"^## \[([^\]]+)\] - (?:unreleased|\d{4}-\d{2}-\d{2})$"
    assert version in re.findall(sections, changelog, re.MULTILINE)


def test_the_version_is_written_in_one_place() -> None:
    version = re.search(r'"(.+)"', (ROOT / "isnet_trt" / "_version.py").read_text("utf-8"))[1]
    files = [ROOT / name for name in ("setup.py", "pyproject.toml", "CITATION.cff", "Makefile", "docker/Dockerfile")]
    files += [path for path in (ROOT / "isnet_trt").rglob("*.py") if path.name != "_version.py"]
    assert [path.name for path in files if f'"{version}"' in path.read_text("utf-8")] == []


def test_the_citation_file_is_valid_yaml_and_names_the_paper() -> None:
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Jin", "Liu", "Chu", "Yu"]
    assert paper["title"].startswith("ISNet: ")
