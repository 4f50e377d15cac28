"""What a build can be told: about the engine, its arithmetic, and the images that it is judged on."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from isnet_trt.evaluation.labelled import Labelled
from isnet_trt.settings import Size

Context = Literal["plugin", "native"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
OptionalPath = str | os.PathLike[str] | None


@dataclass(frozen=True)
class EngineOptions:
    """What engine is built. Which library has which option, its `EngineBuilder` says.

    Attributes:
        kind: ``auto`` or a library of `isnet_trt.engines.table`.
        context: ``plugin``: the two context operations are computed by the kernels of `isnet_trt.kernels`; ``native``:
            by the engine's own layers, which hold N x N scores; None: plugin, where there is a choice.
        batch: largest batch of windows.
        static: (height, width) of an engine for one input size only.
        targets: compute capabilities to build for ahead of time, such as "8.9"; None: all that the library knows.
        workspace: GiB of scratch memory that a layer may use at most; None: all of the GPU's.
        hardware_compatible: an engine for every GPU from Ampere on, not only for the one it is built on.
        version_compatible: an engine that later versions of the same major version run as well.
        timing_cache: file of an earlier build's measurements; None: those of the bundle that is replaced.
        kernels: put kernels for the CUDA runtime into a bundle whose engine does not need a GPU as well.
    """

    kind: str = "auto"
    context: Context | None = None
    batch: int = 1
    static: Size | None = None
    targets: tuple[str, ...] | None = None
    workspace: float | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    timing_cache: Path | None = None
    kernels: bool = False

    def given(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        names = (field.name for field in fields(self) if getattr(self, field.name) != field.default)
        return [name for name in names if name != "kind"]


def flag(name: str) -> str:
    """An option as on the command line."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class PrecisionOptions:
    """The engine's arithmetic and how it is calibrated.

    Attributes:
        precision: one of `isnet_trt.engines.library.PRECISIONS`.
        rest: for int8 and fp8 on a GPU: the type of what stays out of eight bits.
        calib: a folder of typical images: calibrates int8 and fp8, finds the fp32 fallback of fp16 and bf16, and
            serves the gate.
        calib_inputs: at most so many network inputs of them.
        keep: layers that stay out of eight bits, as module names (``backbone_net.layer4``).
        max_drop: for int8 and fp8: the most points of mIoU (with labelled images, else of equal labels) that may be
            lost; the most damaging blocks are kept out of eight bits until it holds.
    """

    precision: str = "fp32"
    rest: str = "fp16"
    calib: OptionalPath = None
    calib_inputs: int = 128
    keep: tuple[str, ...] = ()
    max_drop: float | None = None


@dataclass(frozen=True)
class EvidenceOptions:
    """What the engine is compared with its checkpoint on.

    Attributes:
        images: an image or a folder of images for the parity gate instead of the built-in ones.
        score_on: a labelled set, or its name (as `isnet_trt.evaluate` takes it), on which both are scored.
        data: the folder of a set that is named.
    """

    images: OptionalPath = None
    score_on: Labelled | str | None = None
    data: OptionalPath = None
