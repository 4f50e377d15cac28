"""``python -m isnet_trt.kernels.compile``: PTX and cubin of every kernel, without a GPU."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from isnet_trt import cli
from isnet_trt.cuda.context_ops import WIDTH, WIDTHS
from isnet_trt.cuda.work import MOST_CLASSES
from isnet_trt.errors import BuildError, SettingsError
from isnet_trt.kernels.launch import TYPES, Launch

SCHEMA = 1
PTX_VERSIONS = {80: 80, 86: 80, 89: 80, 90: 80, 100: 86, 120: 87}
"""Architecture -> PTX version: the oldest driver that knows it (8.0: 525, 8.6: 565, 8.7: 570; PTX ISA, release history)
can read the PTX.

PTX of sm_80 to sm_89 runs on every later GPU; that of sm_90, sm_100 and sm_120 uses instructions of its architecture
alone (sm_90a, …).
"""
SHARED_KIB = {80: 99, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Shared memory that a block may have (CUDA programming guide, compute capabilities). sm_80 has 163 KiB, but its PTX is
also for GPUs of 99 (8.6, 8.9, 12.x)."""

_EPILOG = """examples:
  python -m isnet_trt.kernels.compile --arch sm_89 --out kernels-out
  python -m isnet_trt.kernels.compile --arch sm_80 sm_90 --dtype fp16 --classes 19
  python -m isnet_trt.kernels.compile --arch sm_120 --only attention

DIR/sm_XX/ receives NAME.ptx, NAME.cubin and launch.json: for every kernel its entry, arguments, grid, threads, shared
memory and the digests of its files. Compiled is with Triton, which brings its own assembler; neither a GPU nor the CUDA
toolkit is needed. The exit status is 1 if a kernel spills registers to memory."""


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture: its files, and what launching it takes (the entry of launch.json)."""

    ptx: bytes
    cubin: bytes
    entry: dict[str, Any]

    @property
    def spills(self) -> bool:
        """True if a thread keeps registers in memory."""
        return bool(self.entry["spill_bytes"])


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """Compile for sm_``arch``.

    Raises:
        BuildError: Triton cannot compile it, or it would need scratch memory or more shared memory than there is.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise BuildError("TRITON_INTERPRET=1 is set: kernels are interpreted, not compiled; unset it")
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "ptx_version": PTX_VERSIONS[arch]}
    try:
        made = triton.compile(_source(launch), target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:  # Triton's errors have no common base
        raise BuildError(f"kernel {launch.name} cannot be compiled for sm_{arch}: {error}") from error
    if made.metadata.global_scratch_size or made.metadata.profile_scratch_size:
        raise BuildError(f"kernel {launch.name} for sm_{arch} needs scratch memory, which no launch provides")
    if made.metadata.shared > SHARED_KIB[arch] * 1024:
        limit = f"{SHARED_KIB[arch]} KiB of shared memory that a block has"
        raise BuildError(f"kernel {launch.name} for sm_{arch} takes {made.metadata.shared} bytes of the {limit}")
    files = (made.asm["ptx"].encode(), made.asm["cubin"])
    return Compiled(*files, _entry(launch, made.metadata, *files))


def _source(launch: Launch) -> Any:
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    types = {name: launch.types.get(name, "constexpr") for name in names}
    if set(launch.types) | set(launch.constants) != set(names):
        raise BuildError(f"launch {launch.name} describes other arguments than its kernel has: {', '.join(names)}")
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    pointers = [name for name, kind in launch.types.items() if kind.startswith("*") and name not in launch.unaligned]
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    return ASTSource(launch.kernel, types, constants, aligned)


def trailing_parameters(ptx: bytes, arguments: int) -> int:
    """How many parameters an entry has after its ``arguments``: Triton's scratch memories, which no kernel here uses.

    The driver reads as many as there are; their number is Triton's affair.
    """
    begin = ptx.index(b".entry")
    return ptx[begin : ptx.index(b"{", begin)].count(b".param ") - arguments


def _entry(launch: Launch, metadata: Any, ptx: bytes, cubin: bytes) -> dict[str, Any]:
    target = re.search(rb"^\.target (\S+?),?\s*$", ptx, re.MULTILINE)
    registers, spill = _resources(cubin)
    return {
        "entry": metadata.name,
        "target": target.group(1).decode() if target else "",
        "arguments": [[name, launch.types[name]] for name in launch.kernel.arg_names if name in launch.types],
        "trailing_null_pointers": trailing_parameters(ptx, len(launch.types)),
        "constants": dict(launch.constants),
        "unaligned": list(launch.unaligned),
        "grid": [[list(term) for term in axis] for axis in launch.grid],
        "threads": 32 * launch.num_warps,
        "shared_bytes": metadata.shared,
        "registers": registers,
        "spill_bytes": spill,
        "ptx_sha256": hashlib.sha256(ptx).hexdigest(),
        "cubin_sha256": hashlib.sha256(cubin).hexdigest(),
    }


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, per thread, as the cubin says."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        ran = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=False)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", ran.stdout + ran.stderr)
    if ran.returncode or not found:
        raise BuildError(f"{tool} does not tell the resources of a cubin: {(ran.stdout + ran.stderr).strip()[-300:]}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def write(folder: Path, arch: int, kernels: dict[str, Compiled], classes: int) -> None:
    """Write the files of ``kernels`` to ``folder``, launch.json last.

    Raises:
        SettingsError: the folder cannot be written to.
    """
    import triton

    entries = {name: compiled.entry for name, compiled in kernels.items()}
    data = {"schema": SCHEMA, "arch": f"sm_{arch}", "triton": triton.__version__, "classes": classes}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "launch.json").unlink(missing_ok=True)
        for name, compiled in kernels.items():
            (folder / f"{name}.ptx").write_bytes(compiled.ptx)
            (folder / f"{name}.cubin").write_bytes(compiled.cubin)
        temporary = folder / f".launch.json.{os.getpid()}.tmp"
        temporary.write_text(json.dumps({**data, "kernels": entries}, indent=1) + "\n", "utf-8")
        temporary.replace(folder / "launch.json")
    except OSError as error:
        raise SettingsError(f"--out {folder}: {error.strerror}; without launch.json it is incomplete") from None


@dataclass(frozen=True)
class _Job:
    """What to compile; launches are made again in the worker, since Triton's functions do not travel."""

    arch: int
    name: str
    dtypes: tuple[str, ...]
    classes: int
    width: int
    context: tuple[str, ...] | None

    def launches(self) -> Iterator[Launch]:
        """Those that this one's is among."""
        from isnet_trt.kernels import catalogue

        return catalogue.launches(self.arch, self.dtypes, self.classes, self.width, self.context)


def _do(job: _Job) -> Compiled | BuildError:
    try:
        return compile_launch(next(launch for launch in job.launches() if launch.name == job.name), job.arch)
    except BuildError as error:
        return error


def _jobs(arguments: argparse.Namespace) -> list[_Job]:
    context = None if arguments.context is None else tuple(arguments.context)
    sizes = (tuple(arguments.dtype), arguments.classes, arguments.width, context)
    models = [_Job(arch, "", *sizes) for arch in arguments.arch]
    jobs = [dataclasses.replace(job, name=launch.name) for job in models for launch in job.launches()]
    names = list(dict.fromkeys(job.name for job in jobs))
    if unknown := [name for name in context or () if name not in names]:
        raise SettingsError(f"--context {' '.join(unknown)}: no kernel has that name; see kernels/README.md")
    chosen = [job for job in jobs if not arguments.only or any(map(job.name.startswith, arguments.only))]
    if not chosen:
        raise SettingsError(
            f"--only {' '.join(arguments.only)}: no kernel's name begins so; there are {', '.join(names)}"
        )
    return chosen


def _compiled(jobs: Sequence[_Job], workers: int) -> Iterator[Compiled | BuildError]:
    """The result of each job in order, ``workers`` at a time."""
    if workers <= 1:
        yield from map(_do, jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(_do, jobs)


def _architecture(text: str) -> int:
    number = text.removeprefix("sm_").replace(".", "")
    if not number.isdigit() or int(number) not in PTX_VERSIONS:
        known = ", ".join(f"sm_{arch}" for arch in PTX_VERSIONS)
        raise argparse.ArgumentTypeError(f"{text!r} is no architecture that kernels are made for; there are {known}")
    return int(number)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("isnet_trt.kernels.compile", "Compile the kernels ahead of time, for any GPU.", _EPILOG)
    parser.add_argument(
        "--arch", type=_architecture, nargs="+", default=list(PTX_VERSIONS), help="sm_80 … sm_120 (default: all)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: compile and report only)")
    parser.add_argument(
        "--dtype", nargs="+", choices=tuple(TYPES), default=list(TYPES), help="types of the engine (default: all)"
    )
    parser.add_argument("--classes", type=int, default=150, metavar="K", help="classes of the model (default: 150)")
    parser.add_argument(
        "--width", type=int, choices=WIDTHS, default=WIDTH, help=f"channels of the attention (default: {WIDTH})"
    )
    parser.add_argument(
        "--context",
        nargs="*",
        metavar="NAME",
        help="the kernels of the context operations, by name, of any type (default: all of --dtype; no NAME: none)",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only kernels whose names begin so")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="compile N kernels at a time (default: 1)")
    parser.add_argument("--keep-going", action="store_true", help="leave out kernels that do not compile; status 1")
    return parser


def _report(job: _Job, compiled: Compiled) -> str:
    entry = compiled.entry
    spill = f"SPILLS {entry['spill_bytes']} B" if compiled.spills else "no spill"
    shared = f"{entry['shared_bytes']:7} B shared"
    return f"sm_{job.arch:<4} {job.name:28} {entry['registers']:4} registers {shared}  {spill}"


def _run(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.classes <= MOST_CLASSES:
        raise SettingsError(f"--classes {arguments.classes}: it must be 1 to {MOST_CLASSES}")
    jobs = _jobs(arguments)
    done: dict[int, dict[str, Compiled]] = {}
    failed: list[str] = []
    for job, compiled in zip(jobs, _compiled(jobs, arguments.jobs), strict=True):
        if isinstance(compiled, BuildError):
            if not arguments.keep_going:
                raise compiled
            failed.append(str(compiled))
            continue
        print(_report(job, compiled), flush=True)
        done.setdefault(job.arch, {})[job.name] = compiled
    for arch, kernels in done.items():
        if arguments.out:
            write(arguments.out / f"sm_{arch}", arch, kernels, arguments.classes)
    if failed:
        print(f"{len(failed)} of {len(jobs)} kernels do not compile: {'; '.join(failed)}", file=sys.stderr)
        return cli.FAILED
    spilled = [f"{name} (sm_{arch})" for arch, kernels in done.items() for name, c in kernels.items() if c.spills]
    if spilled:
        print(f"{len(spilled)} of {len(jobs)} kernels spill registers: {', '.join(spilled)}", file=sys.stderr)
        return cli.FAILED
    print(f"{len(jobs)} kernels, none spills")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # whatever a later Triton's default is
    # Line tables hold the paths of this machine, which are nobody's business in a bundle, and most of a cubin's bytes.
    os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")
    return _run(_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(cli.run(main))
