"""The options of a build: the engine, its arithmetic, and the images that it is checked on."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from isnet_trt.errors import SettingsError
from isnet_trt.evaluation.labelled import Labelled
from isnet_trt.settings import Placement, Size, check_size

_LARGEST_BATCH = 4096

Context = Literal["plugin", "native"]
OPTIMISATION_LEVELS = range(6)
"""Of TensorRT's builder: 3 is its default, 5 the slowest build."""
CONTEXTS: tuple[Context, ...] = get_args(Context)
OptionalPath = str | os.PathLike[str] | None


@dataclass(frozen=True)
class EngineOptions:
    """The engine. `isnet_trt.engines.library.Library.options` says which library has which option.

    Attributes:
        kind: ``auto`` or a library of `isnet_trt.engines.table`.
        context: the two context operations are computed by the kernels of `isnet_trt.kernels` (``plugin``) or by the
            engine's own layers, which hold N x N scores (``native``); None: plugin, where there is a choice.
        batch: largest batch of windows.
        static: (height, width) of an engine for one input size only.
        targets: compute capabilities to build for ahead of time, such as "8.9"; None: all that the library knows.
        workspace: GiB of scratch memory that a layer may use at most; None: all of the GPU's.
        hardware_compatible: an engine for every GPU from Ampere on, not only for the one it is built on.
        version_compatible: an engine that later versions of the same major version run as well.
        timing_cache: file of an earlier build's measurements; None: those kept beside the bundle, else those in the
            bundle that is replaced.
        optimisation_level: how long the library searches for kernels, 0 to 5; None: the library's default.
        streams: largest number of CUDA streams on which layers of the engine run side by side; None: the library
            chooses.
        device: the GPU to build and to check on, "cuda:N" as CUDA_VISIBLE_DEVICES counts; "auto" and "cuda": GPU 0.
            With ``onnxruntime`` any but "auto" makes a bundle for its CUDA provider.
        kernels: put kernels for the CUDA runtime, and a graph for the CUDA provider, into a bundle whose engine does
            not need a GPU as well.
        half_logits: leave the network's output in the half precision that it is computed in, for kernels that read it:
            the same labels with half the GPU memory for logits. Ignored where it is computed in float32.
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
    optimisation_level: int | None = None
    streams: int | None = None
    kernels: bool = False
    device: str = "auto"
    half_logits: bool = False

    @property
    def gpu(self) -> int:
        """The number of the GPU to build on."""
        return Placement.parse(self.device).gpu

    def __post_init__(self) -> None:
        if Placement.parse(self.device).kind == "cpu":
            raise SettingsError("--device cpu names no GPU to build on; for a bundle for CPUs use --engine onnxruntime")
        if self.static is not None:
            check_size("--static", self.static)
        if not 1 <= self.batch <= _LARGEST_BATCH:
            raise SettingsError(f"--batch {self.batch} is not within 1..{_LARGEST_BATCH}")


@dataclass(frozen=True)
class PrecisionOptions:
    """The engine's arithmetic and how it is calibrated.

    Attributes:
        precision: one of `isnet_trt.engines.library.PRECISIONS`.
        rest: for int8 and fp8 on a GPU: the type of the layers that are not quantised.
        calib: a folder of typical images, for the calibration of int8 and fp8, the fp32 fallback of fp16 and bf16, and
            the parity gate.
        calib_inputs: the largest number of network inputs that are taken from them.
        keep: layers that stay out of eight bits, as module names (``backbone_net.layer4``).
        max_drop: for int8 and fp8: points of mIoU (without labelled images, of equal labels) that may be lost; the
            most damaging blocks stay out of eight bits until the loss is no larger.
    """

    precision: str = "fp32"
    rest: str = "fp16"
    calib: OptionalPath = None
    calib_inputs: int = 128
    keep: tuple[str, ...] = ()
    max_drop: float | None = None


@dataclass(frozen=True)
class EvidenceOptions:
    """The images on which the engine is compared with its checkpoint.

    Attributes:
        images: an image or a folder of images for the parity gate instead of the built-in ones.
        score_on: a labelled set, or its name (as `isnet_trt.evaluate` takes it), on which both are scored.
        data: the folder of the set that ``score_on`` names.
        min_equal: smallest share, 0 to 1, of the network's labels that must equal the checkpoint's for a bundle to be
            written; None: the report holds it to what is expected of the precision (`isnet_trt.export.parity.TARGETS`).
        gate_inputs: the largest number of network inputs that the gate compares; None: 16.
    """

    images: OptionalPath = None
    score_on: Labelled | str | None = None
    data: OptionalPath = None
    min_equal: float | None = None
    gate_inputs: int | None = None

    def __post_init__(self) -> None:
        if self.min_equal is not None and not 0 < self.min_equal <= 1:
            raise SettingsError(f"--min-equal {self.min_equal:g}: it must be a share of labels above 0 and up to 1")
        if self.gate_inputs is not None and self.gate_inputs < 1:
            raise SettingsError(f"--gate-inputs {self.gate_inputs}: the gate needs at least one input")


@dataclass(frozen=True)
class TuneOptions:
    """A tuning: which candidates may win, how long it may take, and which call is timed.

    Attributes:
        accuracy: smallest share, 0 to 1, of the network's labels that must equal the checkpoint's; None: the precision
            is not varied.
        budget: seconds; None: until no setting that is varied makes the call faster.
        size: (height, width) of the timed image.
        image: file of the timed image. Without ``size`` and ``image`` it has the most frequent size of the calibration
            images, else that of the first comparison image, else the recipe's test size.
        preset: inference settings of the timed call, ``default`` or ``ms-flip``.
    """

    accuracy: float | None = None
    budget: float | None = None
    size: Size | None = None
    image: OptionalPath = None
    preset: str = "default"

    def __post_init__(self) -> None:
        if self.accuracy is not None and not 0 < self.accuracy <= 1:
            raise SettingsError(f"tune accuracy {self.accuracy:g}: it must be a share of labels above 0 and up to 1")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise SettingsError(f"budget {self.budget:g}: it must be a number of seconds above 0")
        if self.size is not None and self.image is not None:
            raise SettingsError("the timed image is given twice: by --tune-size and by --tune-image; leave one out")
        if self.size is not None:
            check_size("--tune-size", self.size)
