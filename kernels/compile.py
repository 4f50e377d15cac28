"""``python -m isnet_trt.kernels.compile``: PTX and cubin of every kernel, without a GPU."""

from __future__ import annotations

import argparse
import functools
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
from isnet_trt.cuda.architectures import KERNEL_TARGETS
from isnet_trt.cuda.element_types import FLOATS
from isnet_trt.cuda.kernel_specs import ALIGNMENT, MOST_CLASSES, WIDTH, WIDTHS, KernelSpec, bundle_kernels
from isnet_trt.cuda.kernels import DESCRIPTION, SCHEMA
from isnet_trt.cuda.tensor_maps import SWIZZLES
from isnet_trt.errors import BuildError, SettingsError
from isnet_trt.files import write_file
from isnet_trt.kernels.launch import map_layout, triton_function

_EPILOG = """examples:
  python -m isnet_trt.kernels.compile --arch sm_89 --out kernels-out
  python -m isnet_trt.kernels.compile --arch sm_80 sm_90 --dtype fp16 --classes 19
  python -m isnet_trt.kernels.compile --arch sm_120 --only attention

DIR/sm_XX/ receives NAME.ptx, NAME.cubin and launch.json: for every kernel its entry, arguments, grid, threads, shared
memory and the digests of its files. Triton compiles them and brings its own assembler; neither a GPU nor the CUDA
toolkit is needed. The exit status is 1 if a kernel spills registers to memory, which makes it slower but not wrong."""


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture: its files, and what launching it takes (the entry of launch.json)."""

    ptx: bytes
    cubin: bytes
    entry: dict[str, Any]


def compile_kernel(spec: KernelSpec, arch: int) -> Compiled:
    """Compile ``spec`` for sm_``arch``.

    Raises:
        BuildError: Triton cannot compile it, or it would need scratch memory or more shared memory than a block has.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise BuildError("TRITON_INTERPRET=1 is set: kernels are interpreted, not compiled; unset it")
    target, label = KERNEL_TARGETS[arch], f"kernel {spec.name} for sm_{arch}"
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages, "ptx_version": target.ptx_version}
    try:
        binary = triton.compile(_source(spec), target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:  # Triton's errors have no common base
        raise BuildError(f"kernel {spec.name} cannot be compiled for sm_{arch}: {error}") from error
    metadata, ptx, cubin = binary.metadata, binary.asm["ptx"].encode(), binary.asm["cubin"]
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise BuildError(f"{label} needs scratch memory, which no launch provides")
    if metadata.shared > target.shared_kib * 1024:
        limit = f"{target.shared_kib} KiB of shared memory that a block has"
        raise BuildError(f"{label} takes {metadata.shared} bytes of the {limit}")
    return Compiled(ptx, cubin, _entry(spec, metadata, ptx, cubin))


def _source(spec: KernelSpec) -> Any:
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    function = triton_function(spec)
    names = function.arg_names
    if [*spec.arguments, *spec.constants] != names:
        raise BuildError(f"{spec.name} is declared with other arguments than its function has: {', '.join(names)}")
    types = {**spec.arguments, **dict.fromkeys(spec.constants, "constexpr")}
    for name, tensor in spec.maps.items():
        layout = f",{map_layout(tensor)!r}" if function.is_gluon() else ""
        types[name] = f"tensordesc<{types[name][1:]}[{','.join(map(str, tensor.box))}]{layout}>"
    constants = {(names.index(name),): value for name, value in spec.constants.items()}
    # With addresses known to be multiples of 16, Triton loads and stores 16 bytes at a time.
    aligned = spec.pointers.difference(spec.unaligned, spec.maps)
    attributes = {(i,): [["tt.divisibility", ALIGNMENT]] for i, name in enumerate(names) if name in aligned}
    return (GluonASTSource if function.is_gluon() else ASTSource)(function, types, constants, attributes)


def trailing_parameters(ptx: bytes, kinds: Sequence[str]) -> int:
    """How many parameters an entry has after those of ``kinds``: Triton's scratch memories, which no kernel here uses.

    The driver reads all of them; their number depends on Triton's version.

    Raises:
        BuildError: its first parameters are of other kinds; this version of Triton passes arguments in another way.
    """
    begin = ptx.index(b".entry")
    header = ptx[begin : ptx.index(b"{", begin)].decode()
    parameters = re.findall(r"\.param (?:\.align \d+ )?\.(\w+)", header)
    if parameters[: len(kinds)] != list(kinds):
        raise BuildError(f"Triton passes {' '.join(parameters)} where the runtime would pass {' '.join(kinds)}")
    return len(parameters) - len(kinds)


def parameter_kinds(spec: KernelSpec) -> list[str]:
    """The types of the parameters in PTX: a tensor map is followed by the sizes and the strides of its tensor."""
    kinds = []
    for name, kind in spec.arguments.items():
        if tensor := spec.maps.get(name):
            axes = len(tensor.shape)
            kinds += ["b8", *["u32"] * axes, *["u64"] * axes]
        else:
            kinds.append({"i32": "u32", "fp32": "f32"}.get(kind, "u64"))
    return kinds


def _maps(spec: KernelSpec, metadata: Any) -> dict[str, Any]:
    """The fields of the arguments that are passed as tensor maps, with the box and the swizzle that Triton chose."""
    if not spec.maps:
        return {}
    compiled = zip(spec.maps.items(), metadata.tensordesc_meta, strict=True)
    swizzles = {code: size for size, code in SWIZZLES.items()}
    maps = {
        name: {"shape": list(tensor.shape), "box": list(meta["block_size"]), "swizzle": swizzles[meta["swizzle"]]}
        for (name, tensor), meta in compiled
    }
    return {"maps": maps, "fallback": spec.earlier}


def _entry(spec: KernelSpec, metadata: Any, ptx: bytes, cubin: bytes) -> dict[str, Any]:
    target = re.search(rb"^\.target (\S+?),?\s*$", ptx, re.MULTILINE)
    registers, spill = _resources(cubin)
    return {
        "entry": metadata.name,
        "target": target.group(1).decode() if target else "",
        "arguments": [[name, kind] for name, kind in spec.arguments.items()],
        "trailing_null_pointers": trailing_parameters(ptx, parameter_kinds(spec)),
        "constants": dict(spec.constants),
        "unaligned": list(spec.unaligned),
        **_maps(spec, metadata),
        "grid": [[list(term) for term in axis] for axis in spec.grid],
        "threads": 32 * metadata.num_warps,
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
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", ran.stdout + ran.stderr)
    if ran.returncode or not match:
        raise BuildError(f"{tool} does not tell the resources of a cubin: {(ran.stdout + ran.stderr).strip()[-300:]}")
    registers, stack, local = map(int, match.groups())
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
        (folder / DESCRIPTION).unlink(missing_ok=True)  # it would describe files that are about to change
        for name, compiled in kernels.items():
            write_file(folder / f"{name}.ptx", compiled.ptx)
            write_file(folder / f"{name}.cubin", compiled.cubin)
        write_file(folder / DESCRIPTION, (json.dumps({**data, "kernels": entries}, indent=1) + "\n").encode())
    except OSError as error:
        raise SettingsError(f"--out {folder}: {error.strerror}; without launch.json it is incomplete") from None
    except SettingsError as error:
        raise SettingsError(f"--out {folder}: {error}; without launch.json it is incomplete") from None


Job = tuple[KernelSpec, int]
"""A kernel, and the number of the architecture to compile it for."""


def _jobs(options: argparse.Namespace) -> list[Job]:
    sizes = (options.dtype, options.classes, options.width, options.context, options.padded)
    trials = bool(options.only)
    bundle = functools.partial(bundle_kernels, logits=options.logits)
    jobs = [(spec, arch) for arch in options.arch for spec in bundle(arch, *sizes, trials=trials)]
    names = list(dict.fromkeys(spec.name for spec, _ in jobs))
    known = {spec.name for arch in KERNEL_TARGETS for spec in bundle(arch, *sizes)}
    if unknown := [name for name in options.context or () if name not in known]:
        raise SettingsError(f"--context {' '.join(unknown)}: no kernel has that name; see kernels/README.md")
    chosen = [job for job in jobs if not options.only or job[0].name.startswith(tuple(options.only))]
    if not chosen:
        raise SettingsError(
            f"--only {' '.join(options.only)}: no kernel's name begins so; there are {', '.join(names)}"
        )
    return chosen


def _try_compile(job: Job) -> Compiled | BuildError:
    """The compiled kernel, or the error: the caller may go on with other kernels."""
    try:
        return compile_kernel(*job)
    except BuildError as error:
        return error


def _compiled(jobs: Sequence[Job], workers: int) -> Iterator[Compiled | BuildError]:
    """The result of each job in order, ``workers`` at a time."""
    if workers <= 1:
        yield from map(_try_compile, jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(_try_compile, jobs)


def _architecture(text: str) -> int:
    number = text.removeprefix("sm_").replace(".", "")
    if not number.isdigit() or int(number) not in KERNEL_TARGETS:
        names = ", ".join(f"sm_{arch}" for arch in KERNEL_TARGETS)
        raise argparse.ArgumentTypeError(f"{text!r} is no architecture that kernels are made for; there are {names}")
    return int(number)


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser("isnet_trt.kernels.compile", "Compile the kernels ahead of time, for any GPU.", _EPILOG)
    parser.add_argument(
        "--arch", type=_architecture, nargs="+", default=list(KERNEL_TARGETS), help="such as sm_89 (default: all)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: compile and report only)")
    parser.add_argument(
        "--dtype", nargs="+", choices=FLOATS, default=list(FLOATS), help="types of the engine (default: all)"
    )
    parser.add_argument(
        "--logits",
        choices=FLOATS,
        help="type of the network's output (default: the types of --dtype)",
    )
    parser.add_argument(
        "--classes", type=cli.whole(1, 65535), default=150, metavar="K", help="classes of the model (default: 150)"
    )
    parser.add_argument(
        "--width", type=int, choices=WIDTHS, default=WIDTH, help=f"channels of the attention (default: {WIDTH})"
    )
    parser.add_argument(
        "--context",
        nargs="*",
        metavar="NAME",
        help="the kernels of the context operations, by name, of any type (default: all of --dtype; no NAME: none)",
    )
    parser.add_argument("--padded", action="store_true", help="those too that pad the network's inputs")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only kernels whose names begin so, those that no bundle has among them",
    )
    parser.add_argument(
        "--jobs", type=cli.threads, default=1, metavar="N", help="compile N kernels at a time (default: 1)"
    )
    parser.add_argument("--allow-spills", action="store_true", help="a spill is reported, and the exit status stays 0")
    parser.add_argument("--keep-going", action="store_true", help="leave out kernels that do not compile; status 1")
    return parser


def _report(name: str, arch: int, entry: dict[str, Any]) -> str:
    spill = f"SPILLS {entry['spill_bytes']} B" if entry["spill_bytes"] else "no spill"
    return f"sm_{arch:<4} {name:36} {entry['registers']:4} registers {entry['shared_bytes']:7} B shared  {spill}"


def _run(options: argparse.Namespace) -> int:
    if not 1 <= options.classes <= MOST_CLASSES:
        raise SettingsError(f"--classes {options.classes}: it must be 1 to {MOST_CLASSES}")
    jobs = _jobs(options)
    done: dict[int, dict[str, Compiled]] = {}
    failed: list[str] = []
    for (spec, arch), compiled in zip(jobs, _compiled(jobs, options.jobs), strict=True):
        if isinstance(compiled, BuildError):
            if not options.keep_going:
                raise compiled
            failed.append(str(compiled))
            continue
        print(_report(spec.name, arch, compiled.entry), flush=True)
        done.setdefault(arch, {})[spec.name] = compiled
    for arch, kernels in done.items() if options.out else ():
        write(options.out / f"sm_{arch}", arch, kernels, options.classes)
    if failed:
        print(f"{len(failed)} of {len(jobs)} kernels do not compile: {'; '.join(failed)}", file=sys.stderr)
        return cli.FAILED
    spilled = [
        f"{name} (sm_{arch})" for arch, kernels in done.items() for name, c in kernels.items() if c.entry["spill_bytes"]
    ]
    if spilled:
        print(f"{len(spilled)} of {len(jobs)} kernels spill registers: {', '.join(spilled)}", file=sys.stderr)
        return 0 if options.allow_spills else cli.FAILED
    print(f"{len(jobs)} kernels, none spills")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # whatever a later Triton's default is
    # Line tables hold the paths of this machine, which are nobody's business in a bundle, and most of a cubin's bytes.
    os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")
    return _run(argument_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(cli.run(main))
