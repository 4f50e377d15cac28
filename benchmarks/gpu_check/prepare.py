"""``python -m benchmarks.gpu_check.prepare``: what a GPU machine without network needs, into folders to carry there."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check.wheels import MEGABYTE, PACKAGES, Package, cut
from isnet_trt import cli
from isnet_trt.errors import SettingsError

GLIBC = (5, 12, 17, 24, 27, 28, 31, 34)
"""Versions 2.N of the C library that the wheels may ask for."""
_DESCRIPTION = """Fetch wheels for a GPU machine without network: TensorRT-RTX, pycuda's source and what builds it, and
small packages such a machine may lack. They go into folders DIR/1, DIR/2, … of at most --piece megabytes, the
95 MB library in parts; carry each folder there, then run benchmarks.gpu_check.install on all of them."""
_EPILOG = """examples:
  python -m benchmarks.gpu_check.prepare carried                       # for Python 3.12, folders of at most 60 MB
  python -m benchmarks.gpu_check.prepare carried --python 3.11 --piece 500
  python -m benchmarks.gpu_check.prepare carried --without opencv      # the machine has OpenCV
  python -m benchmarks.gpu_check.prepare carried --only tensorrt_rtx

Only x86-64 Linux with glibc 2.28 or newer. Nothing is installed here."""


def _version(text: str) -> str:
    if not re.fullmatch(r"3\.1\d", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no version such as 3.12")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.gpu_check.prepare", _DESCRIPTION, _EPILOG)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the numbered folders are made")
    parser.add_argument(
        "--python", type=_version, default="3.12", metavar="X.Y", help="of that machine (default: 3.12)"
    )
    parser.add_argument("--piece", type=cli.positive, default=60, metavar="MB", help="most per folder (default: 60)")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="only packages whose names hold a WORD")
    parser.add_argument("--without", nargs="+", default=[], metavar="WORD", help="none whose names hold a WORD")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    wanted = chosen(arguments.only, arguments.without)
    if arguments.folder.is_dir() and any(arguments.folder.iterdir()):
        raise SettingsError(f"{arguments.folder} is not empty; name another folder, or empty it")
    with tempfile.TemporaryDirectory() as temporary:
        for package in wanted:
            print(f"fetching {package.pinned}", flush=True)
            fetch(package, arguments.python, Path(temporary))
        folders = cut(sorted(Path(temporary).iterdir()), arguments.folder, arguments.piece * MEGABYTE)
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.iterdir()) / MEGABYTE
        print(f"{folder}  {size:.1f} MB, {len(list(folder.iterdir())) - 1} files")
    print(f"there: python3 -m benchmarks.gpu_check.install {' '.join(map(str, folders))} --site SITE")
    return 0


def chosen(only: Sequence[str], without: Sequence[str]) -> list[Package]:
    """The packages whose names hold one of the words of ``only`` (any, if it is empty) and none of ``without``.

    Raises:
        SettingsError: none is left, or a word is in no name.
    """
    lost = [word for word in (*only, *without) if not any(word in package.name for package in PACKAGES)]
    named = [p for p in PACKAGES if not only or any(word in p.name for word in only)]
    found = [p for p in named if not any(word in p.name for word in without)]
    if lost or not found:
        words = f"{lost[0]!r} is in no name" if lost else "no package is left"
        raise SettingsError(f"--only, --without: {words}; there are {', '.join(p.name for p in PACKAGES)}")
    return found


def fetch(package: Package, python: str, folder: Path) -> None:
    """One package into ``folder``, through pip.

    Raises:
        SettingsError: pip cannot get it; the message has its last words.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments(package, python, folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        said = " ".join((ran.stderr or ran.stdout).split())[-400:]
        raise SettingsError(f"{package.pinned} cannot be fetched for Python {python}: {said}")


def arguments(package: Package, python: str, folder: Path) -> list[str]:
    """Pip's arguments for a package: a wheel of the other Python, a pure one made here, or the source."""
    if package.form == "pure":
        return ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), package.pinned]
    common = ["download", "--quiet", "--no-deps", "--dest", str(folder)]
    if package.form == "source":
        return [*common, "--no-binary", package.name, "--no-build-isolation", package.pinned]
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC if minor <= 28]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    chosen = [word for name in platforms for word in ("--platform", name)]
    return [
        *common,
        "--only-binary=:all:",
        "--implementation",
        "cp",
        "--python-version",
        python,
        *chosen,
        package.pinned,
    ]


if __name__ == "__main__":
    sys.exit(cli.run(main))
