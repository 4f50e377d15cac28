"""What the documentation names is there: linked files, modules after ``python -m``, paths of the source tree."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("training/assets/*.md")}
)
SOURCES = ("isnet_trt", "training", "export", "kernels", "benchmarks", "tests", "examples", "docs")


def names(page: Path, pattern: str) -> set[str]:
    return set(re.findall(pattern, page.read_text("utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    links = {link for link in names(page, r"\]\(([^)#\s]+)(?:#[^)]*)?\)") if "://" not in link}
    assert {link for link in links if not (page.parent / link).exists()} == set()
    paths = names(page, rf"`((?:{'|'.join(SOURCES)})/[\w./-]+)`")
    placeholders = re.compile("NAME|XX")
    assert {path for path in paths if not (placeholders.search(path) or (ROOT / path).exists())} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    modules = names(page, r"python3? -m ((?:isnet_trt|benchmarks)[\w.]*)")
    assert {module for module in modules if importlib.util.find_spec(module.rstrip(".")) is None} == set()


def test_the_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md"} <= {page.name for page in PAGES}
    assert len(PAGES) > 12
