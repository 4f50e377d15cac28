"""Check what a release needs, or print its notes.

    python tests/packages/release.py [--tag vX.Y.Z]     # exit status 1 and what is missing, a line each
    python tests/packages/release.py --notes            # the section of CHANGELOG.md

The version is in isnet_trt/_version.py alone. A release has it in CHANGELOG.md with a date, and is tagged vX.Y.Z.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tag", help="the tag that is released (default: one of the checked-out commit, if any)")
    parser.add_argument("--notes", action="store_true", help="print the changelog's section of this version")
    arguments = parser.parse_args(argv)
    version = read_version(ROOT)
    if arguments.notes:
        print(notes((ROOT / "CHANGELOG.md").read_text("utf-8"), version))
        return 0
    missing = [*changelog_problems((ROOT / "CHANGELOG.md").read_text("utf-8"), version), *git_problems(ROOT)]
    tags = (
        [arguments.tag] if arguments.tag else [tag for tag in git(ROOT, "tag", "--points-at", "HEAD") if tag[:1] == "v"]
    )
    missing += [f"the tag is {tag}, but isnet_trt/_version.py has {version}" for tag in tags if tag != f"v{version}"]
    for line in missing:
        print(f"not ready: {line}")
    if not missing:
        print(f"ready: version {version}{'' if tags else f'; tag it with: git tag v{version}'}")
    return 1 if missing else 0


def read_version(root: Path) -> str:
    """The version in ``isnet_trt/_version.py``."""
    return re.findall(r'"(.+)"', (root / "isnet_trt" / "_version.py").read_text("utf-8"))[0]


def changelog_problems(changelog: str, version: str) -> Iterator[str]:
    """What is wrong with the version or with its section of the changelog."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        yield f"isnet_trt/_version.py: {version!r} is not of the form 1.2.3 or 1.2.3rc1"
    title = re.search(rf"^## \[{re.escape(version)}\] - (.*)$", changelog, re.MULTILINE)
    if title is None:
        yield f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'"
    elif not re.fullmatch(r"\d{4}-\d{2}-\d{2}", title[1]):
        yield f"CHANGELOG.md: the section of {version} says {title[1]!r} in the place of its date, YYYY-MM-DD"
    if title is not None and not notes(changelog, version):
        yield f"CHANGELOG.md: the section of {version} is empty"


def notes(changelog: str, version: str) -> str:
    """The text below the version's heading, up to the next version's; empty without such a heading."""
    section = re.search(rf"^## \[{re.escape(version)}\][^\n]*$(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return section[1].strip() if section else ""


def git_problems(root: Path) -> Iterator[str]:
    """Files that are changed or unknown: a release is made of a commit."""
    if changed := git(root, "status", "--porcelain"):
        yield f"{len(changed)} files are not committed: {', '.join(line[3:] for line in changed[:5])}"


def git(root: Path, *arguments: str) -> list[str]:
    """The lines that a git command prints."""
    ran = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())
