"""The hooks that turn the repository's pages into a site; `make docs` builds it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import yaml
from documented import ROOT

import isnet_trt
from isnet_trt import errors, export

HOOKS = runpy.run_path(str(ROOT / "docs" / "site" / "hooks.py"))


def test_linked_pages_outside_docs_and_what_they_link_to_are_part_of_the_site(tmp_path: Path) -> None:
    """Links of pages that are linked are followed too; other hosts, folders and what is missing are not."""
    page = ROOT / "docs" / "engines.md"
    names = [path.relative_to(ROOT).as_posix() for path in HOOKS["closure"]([page])]
    assert names[0] == "docs/engines.md"
    assert {"kernels/README.md", "docs/precision.md", "benchmarks/results/precision-demo.md"} <= set(names)
    assert len(names) == len(set(names))
    outside = tmp_path / "page.md"
    outside.write_text(
        f"[a](https://example.org/x) [b](.) [c](missing.md) [d]({ROOT / 'README.md'}) [e](#here)", "utf-8"
    )
    assert HOOKS["closure"]([outside])[1] == ROOT / "README.md"
    assert outside.with_name("missing.md") not in HOOKS["closure"]([outside])


def test_what_a_page_loads_from_other_hosts_is_found() -> None:
    loads = (
        '<script async src="https://a.example/x.js"></script><img alt="" src=//b.example/p.png>'
        "<link rel='stylesheet' href='http://c.example/s.css'><style>@import 'https://d.example/s.css';"
        'p { background: url(https://e.example/p.png) }</style><iframe src="https://f.example"></iframe>'
    )
    hosts = [address.partition("//")[2].partition(".")[0] for address in HOOKS["fetched"](loads)]
    assert hosts == list("abcdef")
    stays = '<a href="https://a.example">a</a> <img src="demo.jpg"> <script src="assets/x.js"></script> url(x.woff)'
    assert HOOKS["fetched"](stays) == []


def test_the_navigation_names_every_page_of_the_site_once() -> None:
    """`make docs` fails on others too; this says so without it."""
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    nav = yaml.safe_load(text)["nav"]
    named = HOOKS["named"](nav)
    assert HOOKS["named"](["a.md", {"Title": "b.md"}, {"Section": ["c.md", {"Title": "d.md"}]}]) == [
        "a.md",
        "b.md",
        "c.md",
        "d.md",
    ]
    assert sorted(named) == sorted(set(named))
    assert {page for page in named if not (ROOT / page).is_file()} == set()
    pages = HOOKS["closure"]([*map(ROOT.joinpath, named), *(ROOT / "docs").rglob("*.md")])
    written = {path.relative_to(ROOT).as_posix() for path in pages if path.suffix == ".md"}
    assert written - set(named) == set(), "add the page to nav in mkdocs.yml"


def test_the_python_reference_has_every_public_name() -> None:
    shown = set(re.findall(r"^::: (\S+)", (ROOT / "docs" / "reference" / "python.md").read_text("utf-8"), re.MULTILINE))
    public = {f"{package.__name__}.{name}" for package in (isnet_trt, export) for name in package.__all__}
    assert "isnet_trt.errors" in shown
    exceptions = {f"isnet_trt.{name}" for name in vars(errors)}
    assert public - shown - exceptions - {"isnet_trt.__version__"} == set()
