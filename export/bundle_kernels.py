"""The compiled kernels of a bundle: those of the runtime around the network, and those of the engine's plugins.

`isnet_trt.kernels.compile` compiles them in a process of its own, which gives Triton's memory back when it ends and
does not inherit TRITON_INTERPRET.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from isnet_trt.cuda.architectures import KERNEL_TARGETS, PORTABLE
from isnet_trt.cuda.context_ops import attention_kernels, pool_kernels
from isnet_trt.cuda.gpu import find_gpu
from isnet_trt.cuda.kernel_specs import WIDTHS
from isnet_trt.cuda.kernels import DESCRIPTION
from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import BuildError, EngineUnavailable, SettingsError, install_hint
from isnet_trt.export.engines.base import EngineBuilder
from isnet_trt.export.functions import context_nodes
from isnet_trt.export.onnx_edit import NAMES, element_types, output_type
from isnet_trt.export.options import Context, EngineOptions


def check_kernels(context: Context | None, width: int | None) -> None:
    """Check before a build that `compile_kernels` can do it.

    Raises:
        SettingsError: there are no kernels for plugins of this model.
        EngineUnavailable: there is no compiler for kernels here.
    """
    if context == "plugin" and width not in WIDTHS:
        raise SettingsError(
            f"the attention of this model has {width} channels; there are kernels for "
            f"{' and '.join(map(str, WIDTHS))}; use --context native"
        )
    if importlib.util.find_spec("triton") is None:
        hint = install_hint("build") if sys.platform == "linux" else "build on Linux"
        raise EngineUnavailable(f"kernels are compiled with Triton, which is not installed; {hint}")


def include_kernels(
    builder: EngineBuilder, options: EngineOptions, width: int | None, say: Callable[[str], None]
) -> bool:
    """Whether a bundle gets kernels: where its engine runs on a GPU and they can be compiled, or they are asked for.

    Raises:
        SettingsError, EngineUnavailable: kernels that the engine's plugins or the user need cannot be compiled.
    """
    if not options.kernels and not builder.runs_on_gpu(options):
        return False
    context = builder.context(options)
    try:
        check_kernels(context, width)
    except EngineUnavailable as error:
        if options.kernels or context == "plugin":
            raise
        say(f"            without kernels for the CUDA runtime: {error}")
        return False
    return True


def kernel_capabilities(options: EngineOptions, supported: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The compute capabilities to compile kernels for: this machine's GPU, unless the options ask for more.

    ``supported`` are those that the engine runs on, None: any. Other GPUs run the portable PTX, which every bundle has.
    """
    gpu = find_gpu(options.gpu)
    if options.targets or options.hardware_compatible or gpu is None:
        return supported
    capability = gpu.compute_capability
    return supported if supported is not None and capability not in supported else (capability,)


def architectures(capabilities: Iterable[str] | None) -> tuple[int, ...]:
    """The compilation targets for GPUs of ``capabilities`` such as "8.9", and the portable one; None: all."""
    if capabilities is None:
        return tuple(KERNEL_TARGETS)
    own = {int(capability.replace(".", "")) for capability in capabilities}
    return tuple(arch for arch in KERNEL_TARGETS if arch in own or arch == PORTABLE)


def context_kernels(proto: onnx.ModelProto, width: int) -> tuple[str, ...]:
    """Names of the kernels that the plugins of a graph launch, for an attention of ``width`` channels."""
    types = element_types(proto)
    names: dict[str, None] = {}
    for node in context_nodes(proto):
        first, second = (NAMES[types[name]] for name in node.input[:2])
        specs = pool_kernels(first, second) if node.op_type == "RegionPool" else attention_kernels(first, width)
        names |= dict.fromkeys(spec.name for spec in specs)
    return tuple(names)


def compile_kernels(
    folder: Path,
    proto: onnx.ModelProto,
    channels: tuple[int, int | None],
    context: Context | None,
    capabilities: Iterable[str] | None,
    progress: bool = True,
    *,
    padded: bool = False,
) -> tuple[str, ...]:
    """Compile into ``folder``/sm_XX what the runtime launches for the engine of ``proto``, and the plugins' kernels.

    ``channels`` are those of the network's output, and of its context operations (None: it has none); ``padded``:
    inputs of the network are padded.

    Returns the kernels that spill registers to memory, such as "finish_fp32_u8 (sm_86)": on that architecture they are
    slower than they could be, but correct.

    Raises:
        BuildError: a kernel cannot be compiled; the last lines of the compiler's output are in the message.
    """
    arches = architectures(capabilities)
    classes, width = channels
    plugins = context_kernels(proto, width) if context == "plugin" and width else ()
    command = [sys.executable, "-m", "isnet_trt.kernels.compile", "--out", str(folder), "--dtype", "fp32"]
    command += ["--logits", output_type(proto), "--arch", *(f"sm_{arch}" for arch in arches), "--classes", str(classes)]
    # A kernel that spills is slow but correct: it is reported, and does not end the build.
    command += ["--allow-spills", "--jobs", str(usable_cores()), "--context", *plugins]
    command += ["--padded"] if padded else []
    if plugins:
        command += ["--width", str(width)]
    with _running(command) as process:
        output = list(tqdm(process.stdout, "kernels", leave=False, disable=None if progress else True))
        process.wait()
    if process.returncode:
        raise BuildError(f"the kernels cannot be compiled: {''.join(output[-3:]).strip()}")
    return tuple(_spilling(folder, arches))


def _spilling(folder: Path, arches: Iterable[int]) -> Iterator[str]:
    for arch in arches:
        kernels = json.loads((folder / f"sm_{arch}" / DESCRIPTION).read_text("utf-8"))["kernels"]
        yield from (f"{name} (sm_{arch})" for name, entry in kernels.items() if entry["spill_bytes"])


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive an error or Ctrl-C here."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # One pipe for both: with two, a child that fills the one that nobody reads would wait for ever.
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.terminate()  # does nothing to a process that has ended
            process.wait()  # it writes into a folder that may be deleted next
