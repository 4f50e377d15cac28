"""Build wheel and source distribution, and try the wheel in clean environments of Python 3.10 to 3.13.

    python tests/packages/try_wheels.py [--out dist] [--python 3.12 …]

In each environment the wheel is installed with its extra `cpu` alone, and `isnet-trt` prints its version and help and
segments a picture with a tiny bundle. Versions of Python that this machine lacks are named and left out; having none
is an error. The wheel built from the source distribution must hold the same files as the one from the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
_PROBE = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
_SEGMENT = """
import json
import sys
from isnet_trt import Segmenter

bundle, picture, site = sys.argv[1:]
assert sys.modules["isnet_trt"].__file__.startswith(site), sys.modules["isnet_trt"].__file__
with Segmenter.open(bundle, threads=1) as segmenter:
    print(json.dumps(segmenter(picture).shares()))
assert not {"torch", "onnx", "triton"} & set(sys.modules)
"""


class Failed(Exception):
    """A step ended with an error; the message has its output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Build and try; the exit status is 1 if anything failed or no version of Python was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep wheel and source distribution here (default: nowhere)")
    parser.add_argument("--python", nargs="+", default=VERSIONS, metavar="X.Y", help="versions (default: 3.10 to 3.13)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return try_all(Path(folder), arguments.python, arguments.out)
        except Failed as failure:
            print(failure, file=sys.stderr)
            return 1


def try_all(work: Path, versions: Sequence[str], out: Path | None) -> int:
    """Build in ``work``, try each version, compare what they printed, and copy the packages to ``out``."""
    pythons = {version: find_python(version) for version in versions}
    for version in (version for version, python in pythons.items() if python is None):
        print(f"Python {version}: left out, there is none on this machine")
    if not any(pythons.values()):
        raise Failed(
            f"there is no Python {', '.join(versions)} on this machine: install one, or name others by --python"
        )
    wheel = build(work / "dist")
    bundle, picture = samples(work)
    answers = {
        version: try_wheel(work / version, python, wheel, bundle, picture)
        for version, python in pythons.items()
        if python is not None
    }
    first, *others = answers.values()
    if any(abs(first.get(label, 0) - other.get(label, 0)) > 0.005 for other in others for label in first | other):
        raise Failed(f"the shares of the classes differ between versions of Python: {answers}")
    if out is not None:
        shutil.copytree(work / "dist", out, dirs_exist_ok=True)
        print(f"written: {', '.join(sorted(str(out / path.name) for path in (work / 'dist').iterdir()))}")
    return 0


def find_python(version: str) -> str | None:
    """An interpreter of ``version`` that runs: on the path, or among those of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    installed = sorted(pyenv.glob(f"{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *map(str, reversed(installed)), sys.executable):
        if candidate is not None:
            ran = subprocess.run([candidate, "-c", _PROBE], capture_output=True, text=True, check=False)
            if ran.stdout.strip() == version:
                return candidate
    return None


def run(*command: object, cwd: Path, **variables: str) -> str:
    """The standard output of a command that must succeed, without what points Python or pip to this checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    text = list(map(str, command))
    ran = subprocess.run(text, cwd=cwd, env=kept | variables, capture_output=True, text=True, timeout=600, check=False)
    if ran.returncode:
        raise Failed(f"{' '.join(text)}\nended with status {ran.returncode}:\n{(ran.stdout + ran.stderr)[-4000:]}")
    return ran.stdout


def build(dist: Path) -> Path:
    """Source distribution and wheel in ``dist``, both of the same files; the wheel's path."""
    dist.mkdir()
    settings = dist.parent / "build.cfg"  # what an earlier build left in the checkout must not come along
    settings.write_text(
        f"[build]\nbuild_base = {dist.parent / 'build'}\n[egg_info]\negg_base = {dist.parent}\n", "utf-8"
    )
    for kind in ("sdist", "wheel"):
        call = f"from setuptools import build_meta as b; b.build_{kind}({str(dist)!r})"
        run(sys.executable, "-c", call, cwd=ROOT, DIST_EXTRA_CONFIG=str(settings))
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    second = dist.parent / "from_sdist"
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        second,
        sdist,
        cwd=dist,
    )
    (other,) = second.glob("*.whl")
    if difference := contents(wheel) ^ contents(other):
        raise Failed(f"the wheel and the one built from {sdist.name} differ in: {', '.join(sorted(difference))}")
    print(f"built {wheel.name} and {sdist.name}, whose wheel has the same files")
    return wheel


def contents(wheel: Path) -> set[str]:
    """Names of the files of a wheel, with their checksums but for its own records."""
    with zipfile.ZipFile(wheel) as archive:
        return {f"{one.filename} {one.CRC:08x}" for one in archive.infolist() if ".dist-info/" not in one.filename}


def samples(work: Path) -> tuple[Path, Path]:
    """A bundle around a tiny network, and a picture."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import cv2
    import tiny_model

    from isnet_trt.training.scenes import draw_scene

    picture = work / "scene.png"
    assert cv2.imwrite(str(picture), draw_scene(0, 96, 160).image[..., ::-1])
    return tiny_model.write_bundle(work / "bundle", tiny_model.labels(9)), picture


def try_wheel(folder: Path, python: str, wheel: Path, bundle: Path, picture: Path) -> dict[str, float]:
    """Install the wheel with its extra ``cpu`` in an environment of its own and use it; the shares of the classes."""
    run(python, "-m", "venv", folder, cwd=wheel.parent)
    inside = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = (inside / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[cpu]", cwd=folder)
    command = inside / "isnet-trt"
    printed = run(command, "--version", cwd=folder).split()
    if printed[-1] != (version := wheel.name.split("-")[1]):
        raise Failed(f"isnet-trt --version prints {' '.join(printed)}, the wheel is {version}")
    if not re.search(r"^ +predict ", run(command, "--help", cwd=folder), re.MULTILINE):
        raise Failed("isnet-trt --help does not list the command predict")
    run(command, "predict", bundle, picture, "--out", folder / "results", cwd=folder)
    if not (folder / "results" / f"{picture.stem}_labels.png").is_file():
        raise Failed(f"isnet-trt predict wrote no label map: {sorted((folder / 'results').iterdir())}")
    shares: dict[str, float] = json.loads(run(inside / "python", "-c", _SEGMENT, bundle, picture, folder, cwd=folder))
    print(f"Python {run(inside / 'python', '--version', cwd=folder).split()[-1]}: installed, version, help, segments")
    return shares


if __name__ == "__main__":
    sys.exit(main())
