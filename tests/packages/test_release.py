"""What a release needs is checked; `make test-wheels` builds the packages and tries them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import release
import try_wheels
import yaml

ROOT = Path(__file__).parents[2]
CHANGELOG = "# Changelog\n\n## [1.1.0] - 2026-12-01\n\n### Added\n\n- New.\n\n## [1.0.0] - 2026-11-01\n\nFirst.\n"


@pytest.mark.parametrize(
    ("version", "changelog", "problem"),
    [
        ("1.1.0", CHANGELOG, None),
        ("1.0.0", CHANGELOG, None),
        ("1.1.0rc1", CHANGELOG.replace("1.1.0", "1.1.0rc1"), None),
        ("1.1", CHANGELOG.replace("1.1.0", "1.1"), "not of the form"),
        ("1.2.0", CHANGELOG, "no section '## [1.2.0] - YYYY-MM-DD'"),
        ("1.1.0", CHANGELOG.replace("2026-12-01", "unreleased"), "says 'unreleased' in the place of its date"),
        ("1.1.0", CHANGELOG.replace("### Added\n\n- New.\n", ""), "section of 1.1.0 is empty"),
    ],
)
def test_a_release_needs_a_dated_section(version: str, changelog: str, problem: str | None) -> None:
    problems = list(release.changelog_problems(changelog, version))
    assert len(problems) == (problem is not None)
    assert all(problem in text for text in problems if problem)


def test_the_notes_are_the_section_of_the_version() -> None:
    assert release.notes(CHANGELOG, "1.1.0") == "### Added\n\n- New."
    assert release.notes(CHANGELOG, "1.0.0") == "First."
    assert release.notes(CHANGELOG, "1.0") == ""
    assert release.read_version(ROOT) in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_a_release_is_made_of_a_commit(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert list(release.git_problems(tmp_path)) == []
    (tmp_path / "new.py").write_text("", "utf-8")
    assert list(release.git_problems(tmp_path)) == ["1 files are not committed: new.py"]


def test_versions_of_python_that_are_missing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is built."""
    assert try_wheels.main(["--python", "3.999"]) == 1
    output = capsys.readouterr()
    assert "Python 3.999: left out" in output.out
    assert "there is no Python 3.999 on this machine" in output.err
    here = ".".join(map(str, sys.version_info[:2]))
    assert try_wheels.find_python(here) is not None


def test_the_tried_versions_are_those_from_the_oldest_that_is_supported() -> None:
    oldest = re.search(r'python_requires=">=([\d.]+)"', (ROOT / "setup.py").read_text("utf-8"))
    assert oldest
    assert try_wheels.VERSIONS[0] == oldest[1]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_templates_are_yaml_and_run_what_is_there(path: Path) -> None:
    text = path.read_text("utf-8")
    assert yaml.safe_load(text)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
    assert [name for name in re.findall(r"\b(?:tests|docs)/[\w/]+\.\w+", text) if not (ROOT / name).is_file()] == []
