"""Build the C library for this Python, and print the paths and flags that C and C++ programs need.

    isnet-trt c-config --build
    cc service.c -o service $(isnet-trt c-config --cflags --libs)
    cmake -B build -DCMAKE_PREFIX_PATH="$(isnet-trt c-config --prefix-path)"

The wheel holds sources: --build compiles them with CMake and a C compiler, and installs library, headers, CMake package
and pkg-config file below --prefix, by default the environment that this command belongs to.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isnet_trt import cli, get_include
from isnet_trt.errors import BuildError, PackageMissing, SettingsError

_VALUES = {
    "cflags": "flags for the compiler",
    "libs": "flags for the linker, with the run path",
    "cmake-dir": "folder of isnet_trtConfig.cmake, for -Disnet_trt_DIR",
    "prefix-path": "for CMAKE_PREFIX_PATH",
    "pkg-config-dir": "for PKG_CONFIG_PATH",
    "include-dir": "folder of isnet.h and isnet.hpp",
    "lib-dir": "folder of libisnet_trt.so",
    "source-dir": "sources, for CMake's add_subdirectory",
    "python": "interpreter to pass to isnet_start",
}
_NEED_NO_BUILD = ("source-dir", "python")
_LAST_LINES = 12


@dataclass(frozen=True)
class Installation:
    """Where the library is installed below ``prefix``."""

    prefix: Path

    @property
    def library(self) -> Path:
        """The file that programs are linked with."""
        return self.prefix / "lib" / "libisnet_trt.so"

    def value(self, name: str) -> str:
        """One of the values that the command prints."""
        include, lib = self.prefix / "include" / "isnet_trt", self.library.parent
        if name not in _NEED_NO_BUILD and not self.library.exists():
            raise SettingsError(f"{self.library} is not there: build it with {_build_command(self.prefix)}")
        return {
            "cflags": shlex.join([f"-I{include}"]),
            "libs": shlex.join([f"-L{lib}", f"-Wl,-rpath,{lib}", "-lisnet_trt"]),
            "cmake-dir": str(lib / "cmake" / "isnet_trt"),
            "prefix-path": str(self.prefix),
            "pkg-config-dir": str(lib / "pkgconfig"),
            "include-dir": str(include),
            "lib-dir": str(lib),
            "source-dir": get_include(),
            "python": sys.executable,
        }[name]

    def build(self, options: Sequence[str] = ()) -> None:
        """Compile and install; ``options`` are further arguments of CMake's configuration.

        Raises:
            PackageMissing: CMake is not installed.
            BuildError: CMake, the compiler or the installation failed.
        """
        cmake = shutil.which("cmake")
        if cmake is None:
            raise PackageMissing("c-config --build needs cmake on PATH, and a C compiler; install them first")
        with tempfile.TemporaryDirectory(prefix="isnet-trt-") as folder:
            python = [f"-DPython3_EXECUTABLE={sys.executable}", f"-DISNET_TRT_PYTHON={sys.executable}"]
            places = [f"-DCMAKE_INSTALL_PREFIX={self.prefix}", "-DCMAKE_INSTALL_LIBDIR=lib"]
            build_type = "-DCMAKE_BUILD_TYPE=Release"
            _run([cmake, "-S", get_include(), "-B", folder, build_type, *python, *places, *options])
            _run([cmake, "--build", folder])
            _run([cmake, "--install", folder])


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if result.returncode:
        lines = "\n".join(result.stdout.strip().splitlines()[-_LAST_LINES:])
        raise BuildError(f"{shlex.join(command)} failed with status {result.returncode}:\n{lines}")


def _build_command(prefix: Path) -> str:
    where = [] if prefix == Path(sys.prefix) else ["--prefix", str(prefix)]
    return shlex.join([*cli.command_line("isnet_trt.commands.c_config").split(), "--build", *where])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = argument_parser().parse_args(argv)
    installation = Installation(Path(args.prefix).absolute())
    if args.build:
        installation.build(args.cmake_option)
        print(f"installed {installation.library}", file=sys.stderr)
    if args.values:
        print(" ".join(installation.value(name) for name in args.values))
    elif not args.build:
        for name in _VALUES:
            print(f"{name:15} {installation.value(name)}")
    return 0


def argument_parser() -> cli.Parser:
    """The options of the command line."""
    parser = cli.parser("isnet_trt.commands.c_config", __doc__ or "")
    add = parser.add_argument
    add("--build", action="store_true", help="compile and install the library for this Python")
    add(
        "--prefix", metavar="DIR", default=sys.prefix, help="where it is, or is to be, installed (default: %(default)s)"
    )
    text = "with --build: a further argument of CMake's configuration, as --cmake-option=-DNAME=VALUE; repeatable"
    add("--cmake-option", metavar="OPTION", action="append", default=[], help=text)
    values = parser.add_argument_group("values, printed on one line in the order given (default: all)").add_argument
    for name, meaning in _VALUES.items():
        values(f"--{name}", dest="values", action="append_const", const=name, help=meaning)
    return parser


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
