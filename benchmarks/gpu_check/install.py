"""``python -m benchmarks.gpu_check.install``: carried wheels into a private folder, on a machine without network.

Nothing outside that folder is written, neither the system nor the site-packages of any Python.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu_check.wheels import PACKAGES, Package, join
from isnet_trt import cli
from isnet_trt.errors import SettingsError

_DESCRIPTION = """Put together what benchmarks.gpu_check.prepare fetched, and install it into the folder SITE alone,
without network. What this Python can import already is left out. pycuda is built where a driver, a C++ compiler and
cuda.h are found; everything else goes on without it."""
_EPILOG = """example:
  python3 -m benchmarks.gpu_check.install carried/1 carried/2 --site /tmp/site
  PYTHONPATH=/tmp/site python3 -m benchmarks.gpu_check --quick --minutes 8"""
_HEADER = Path("include") / "cuda.h"
_USUAL = Path("/usr/local")
"""Where NVIDIA's packages put the toolkit, in a folder such as cuda-13.0."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.gpu_check.install", _DESCRIPTION, _EPILOG)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="all the numbered folders")
    parser.add_argument("--site", type=Path, required=True, help="the folder to install into")
    parser.add_argument("--all", action="store_true", help="install also what this Python can import already")
    parser.add_argument("--jobs", type=cli.positive, default=8, help="compilations of pycuda at a time (default: 8)")
    arguments = parser.parse_args(argv)
    site = arguments.site.resolve()
    files = join(arguments.folders, site / ".carried")
    wanted = [p for p in PACKAGES if arguments.all or not importable(p.module)]
    wheels = [file for package in wanted for file in files_of(package, files) if file.suffix == ".whl"]
    for package in PACKAGES:
        if package not in wanted and files_of(package, files):
            print(f"here already: {package.name}")
    if wheels:
        install(wheels, site)
    print(f"installed: {', '.join(w.name.split('-')[0] for w in wheels) or 'nothing'}")
    missing = _pycuda([f for p in wanted if p.form == "source" for f in files_of(p, files)], site, arguments.jobs)
    print(f"then: PYTHONPATH={site} python3 -m benchmarks.gpu_check")
    return cli.FAILED if missing else 0


def importable(module: str) -> bool:
    """Whether this Python finds a module, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # the package that would hold it is missing
        return False


def files_of(package: Package, files: Sequence[Path]) -> list[Path]:
    """The carried files of a package."""
    name = package.name.lower().replace("-", "_")
    return [file for file in files if file.name.lower().replace("-", "_").startswith(f"{name}_")
            and _after(file, name)[:1].isdigit()]  # fmt: skip


def _after(file: Path, name: str) -> str:
    return file.name[len(name) + 1 :]


def install(wheels: Sequence[Path], site: Path) -> None:
    """Wheels into ``site``, by pip.

    Raises:
        SettingsError: pip refuses; the message has its last words.
    """
    _pip(["install", "--target", str(site), "--upgrade", *map(str, wheels)], dict(os.environ), site)


def _pip(words: Sequence[str], environment: dict[str, str], folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        words[0],
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    command += ["--no-compile", "--no-cache-dir", *words[1:]]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    if ran.returncode:
        raise SettingsError(f"pip cannot install: {' '.join((ran.stderr or ran.stdout).split())[-500:]}")


def _pycuda(sources: Sequence[Path], site: Path, jobs: int) -> str:
    """Build pycuda; why that could not be, or nothing."""
    if not sources:
        return ""
    try:
        build_pycuda(sources[0], site, jobs)
    except SettingsError as error:
        print(f"pycuda not built: {error}", file=sys.stderr)
        return str(error)
    print("pycuda built")
    return ""


def build_pycuda(source: Path, site: Path, jobs: int) -> None:
    """pycuda from its source into ``site``, against the CUDA toolkit and the driver of this machine.

    Its setup takes the toolkit's place from a wrapper of nvcc and wants a library called libcuda.so, which a driver
    installs as libcuda.so.1 only: it is told both.

    Raises:
        SettingsError: what is missing, or the build's last words.
    """
    toolkit, driver = find_toolkit(), find_driver()
    if toolkit is None:
        raise SettingsError("no cuda.h was found, neither beside nvcc nor in CUDA_HOME nor in Python's nvidia packages")
    if driver is None:
        raise SettingsError("no NVIDIA driver is installed (libcuda.so.1 is missing)")
    work = site / ".pycuda"
    shutil.rmtree(work, ignore_errors=True)
    with tarfile.open(source) as archive:
        archive.extractall(work, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(work)
    folder = next(work.iterdir())
    (folder / "stub").mkdir()
    (folder / "stub" / "libcuda.so").symlink_to(driver)
    options = [f"--cuda-root={toolkit}", "--no-cuda-enable-curand", f"--cudadrv-lib-dir={folder / 'stub'}"]
    configured = subprocess.run(
        [sys.executable, "configure.py", *options], cwd=folder, capture_output=True, text=True, check=False
    )
    if configured.returncode:
        raise SettingsError(f"its configure.py failed: {configured.stderr.strip()[-300:]}")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "MAKEFLAGS": f"-j{jobs}",
        "MAX_JOBS": str(jobs),
    }
    _pip(["install", "--no-build-isolation", "--target", str(site), "--upgrade", "."], environment, folder)


def find_toolkit() -> Path | None:
    """The folder of the CUDA toolkit whose ``include`` holds cuda.h."""
    return next((root for root in _toolkits() if (root / _HEADER).is_file()), None)


def _toolkits() -> Iterator[Path]:
    if nvcc := shutil.which("nvcc"):
        yield Path(nvcc).resolve().parents[1]
    # Also where nvcc is not on PATH: a shell that nobody logged into often lacks it.
    yield from sorted(_USUAL.glob("cuda*"), reverse=True)
    for name in ("CUDA_HOME", "CUDA_ROOT", "CUDA_PATH"):
        if name in os.environ:
            yield Path(os.environ[name])
    for entry in map(Path, sys.path):
        yield from (header.parents[1] for header in sorted(entry.glob("nvidia/*/include/cuda.h")))


def find_driver() -> Path | None:
    """The driver's library, where the loader finds it."""
    try:
        ctypes.CDLL("libcuda.so.1")
        text = Path("/proc/self/maps").read_text("utf-8")
    except OSError:
        return None
    return next((Path(line.split()[-1]) for line in text.splitlines() if "libcuda.so" in line), None)


if __name__ == "__main__":
    sys.exit(cli.run(main))
