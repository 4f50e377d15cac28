"""What the documentation names is there: linked files, paths of the source, commands with their options and files."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from children import run_python

from isnet_trt.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("[!.]*/README.md"),
        *ROOT.glob("benchmarks/results/*.md"),
        *ROOT.glob("training/assets/*.md"),
    }
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


class Command(NamedTuple):
    """``python -m MODULE`` or ``isnet-trt COMMAND`` with what follows, comments left out."""

    module: str
    arguments: list[str]

    def value(self, option: str) -> str | None:
        """What follows an option."""
        return self.arguments[self.arguments.index(option) + 1] if option in self.arguments[:-1] else None


def commands(text: str) -> Iterator[Command]:
    """The commands of a page, in order; a line that ends with a backslash goes on."""
    joined = re.sub(r"\\\n\s*", " ", text)
    pattern = r"(?:-m ((?:isnet_trt|benchmarks)[\w.]*)|isnet-trt ([a-z]+))([^\n`|]*)"
    for module, name, rest in re.findall(pattern, joined):
        module = COMMANDS[name].names[0] if name in COMMANDS else module.rstrip(".")
        if module:
            yield Command(module, rest.partition(" # ")[0].split())


@functools.cache
def help_of(module: str, *subcommand: str) -> str:
    """What ``python -m module --help`` prints; nothing for a module that takes no arguments."""
    package = importlib.util.find_spec(module)
    assert package is not None, module
    name = f"{module}.__main__" if package.submodule_search_locations else module
    main = getattr(importlib.import_module(name), "main", None)
    output = io.StringIO()
    if main is None:
        return ""
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as ended:
        main([*subcommand, "--help"])
    assert ended.value.code == 0
    return output.getvalue()


@functools.cache
def tracked() -> frozenset[str]:
    """Names of the repository's files, without their folders; of the tests, whose data may have any name, the code."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return frozenset(
        Path(name).name for name in listed.splitlines() if name.endswith(".py") or not name.startswith("tests/")
    )


def wrong_names(text: str) -> Iterator[str]:
    """Options that a command of ``text`` lacks, and files and bundles that are not where it says."""
    bundles = {"demo/bundle"}  # of `make demo`
    for command in commands(text):
        first = next(iter(command.arguments), "")
        subcommand = (first,) if command.module.endswith((".data", ".bundle")) and first.isalpha() else ()
        options = set(re.findall(r"--[a-z][a-z-]*", help_of(command.module, *subcommand)))
        if "--qat" in command.arguments:
            options |= set(re.findall(r"--[a-z][a-z-]*", help_of("isnet_trt.training.qat")))
        given = {argument.partition("=")[0].strip("[]()…") for argument in command.arguments if "--" in argument}
        yield from (f"{command.module} {option}" for option in given - options)
        yield from (name for name in command.arguments if Path(name).name in tracked() and not (ROOT / name).exists())
        if command.module == "isnet_trt.build":
            bundles.add(command.value("--out") or "")
        elif command.module in ("isnet_trt.predict", "isnet_trt.evaluate") and re.fullmatch(r"[a-z/]+", first):
            yield from () if first in bundles or first.startswith("bundles/") else (first,)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_options_and_files_that_exist(page: Path) -> None:
    assert list(wrong_names(page.read_text("utf-8"))) == []


@pytest.mark.parametrize("module", ["build", "predict", "evaluate", "bundle", "training.qat", "training.train"])
def test_examples_of_the_help_name_options_and_files_that_exist(module: str) -> None:
    assert list(wrong_names(help_of(f"isnet_trt.{module}"))) == []


def test_wrong_names_are_found() -> None:
    text = "{}build --ckpt isnet_demo.pth --oven b\n{}evaluate bundle --dataset lip\nisnet-trt data check lip --size 3"
    wrong = ["isnet_trt.build --oven", "isnet_demo.pth", "bundle", "isnet_trt.training.data --size"]
    for start in ("python -m isnet_trt.", "isnet-trt "):
        assert list(wrong_names(text.format(start, start))) == wrong


def test_the_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md"} <= {page.name for page in PAGES}
    assert len(PAGES) > 12


def test_the_figures_of_the_probes_are_those_of_their_file() -> None:
    checked = run_python(ROOT / "tests/stress/tables.py", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
