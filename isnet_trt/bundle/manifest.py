"""``bundle.json``: what a bundle holds, what it was made from and what it can run on.

The one place where the layout of the manifest is defined. ``SCHEMA_VERSION`` grows whenever an older reader could
misread a newer manifest.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from dataclasses import dataclass, field
from typing import Any, Literal

from isnet_trt._version import __version__
from isnet_trt.bundle.strict import FieldError, decode
from isnet_trt.engines.info import EngineInfo
from isnet_trt.errors import BundleError, SettingsError, escaped
from isnet_trt.settings import Inference, Labels, NetworkFacts, Preprocess, choose_preset

SCHEMA_VERSION = 4
"""2 added how the engine computes the context operations, and whether later versions of its library take it; 3 the
facts of networks other than ISNet: activation, threshold, upsampling, padding, channel order, pictures not resized;
4 the type of an engine's output."""
_FLOAT_OUTPUT = 3
"""The version that is written for engines whose output is float32, which readers of that version take."""
MANIFEST = "bundle.json"
ONNX = "model.onnx"
ENGINE = "model.engine"
CUDA_ONNX = "model.cuda.onnx"
"""The graph for ONNX Runtime's CUDA provider, where a bundle has one beside the portable `ONNX`."""
_LARGEST_STRIDE = 256
_LARGEST_BATCH = _MOST_THREADS = 1024
_LONGEST_MESSAGE = 500
REPORT = "precision"
"""How the names of the report's files begin: ``precision.html``, ``precision/1-input.jpg``."""
KERNELS = "kernels"
"""Folder of the compiled kernels, ``kernels/sm_XX/`` (isnet_trt.kernels.compile)."""
TIMING_CACHE = "timing.cache"
"""What TensorRT measured while it built the engine: the next build of the same model need not measure again."""


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if self.bytes < 0:
            raise SettingsError(f"{self.bytes} bytes is no file size")
        _check_digest(self.sha256)


@dataclass(frozen=True)
class CheckpointInfo:
    """The checkpoint that the bundle was built from: file name (without folder) and SHA-256 (hex).

    ``weights`` are those of its weights that were taken: as trained, or their running average ("ema").
    """

    name: str
    sha256: str
    weights: Literal["plain", "ema"] = "plain"

    def __post_init__(self) -> None:
        _check_digest(self.sha256)


def _check_digest(text: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise SettingsError(f"{text!r} is no SHA-256 in lower-case hex")


@dataclass(frozen=True)
class Tuning:
    """What ``build --tune`` chose beside the engine; opening the bundle takes it as the default.

    ``batch`` windows at once, and ``threads`` of the CPU (None: all) on a machine of as many ``cores``. The build had
    ``optimisation_level`` and ``streams`` (None: the library's defaults). The whole call of ``size`` (height, width)
    with ``preset`` took ``seconds`` on ``device``.
    """

    batch: int
    threads: int | None
    cores: int
    optimisation_level: int | None
    streams: int | None
    device: str
    size: tuple[int, int]
    preset: str
    seconds: float

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= _LARGEST_BATCH or not (self.threads is None or 1 <= self.threads <= _MOST_THREADS):
            raise SettingsError(f"batch {self.batch} and threads {self.threads} are not those of a tuning")


@dataclass(frozen=True)
class Manifest:
    """Everything that the runtime needs to know about a bundle. ``files`` is filled in when the bundle is sealed."""

    recipe: str
    labels: Labels
    preprocess: Preprocess
    presets: dict[str, Inference]
    output_stride: int
    precision: str
    engine: EngineInfo
    checkpoint: CheckpointInfo
    parity: dict[str, Any]
    created_at: str
    isnet_trt_version: str
    network: NetworkFacts = field(default_factory=NetworkFacts)
    tuning: Tuning | None = None
    files: dict[str, FileInfo] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not 1 <= self.output_stride <= _LARGEST_STRIDE:
            raise SettingsError(f"output stride {self.output_stride} must be 1 to {_LARGEST_STRIDE}")
        if "default" not in self.presets:
            raise SettingsError("there is no preset called default")
        self.network.check_labels(self.labels)

    def preset(self, name: str) -> Inference:
        """The inference settings called ``name``; see `isnet_trt.settings.choose_preset`."""
        return choose_preset(self.presets, name)

    def to_json(self) -> dict[str, Any]:
        """The content of ``bundle.json``; what readers from before a field would refuse is in it only where needed."""
        data = dataclasses.asdict(self)
        if self.checkpoint.weights == "plain":
            del data["checkpoint"]["weights"]
        if self.tuning is None:
            del data["tuning"]
        if self.engine.output == "fp32":
            del data["engine"]["output"]
            data["schema_version"] = _FLOAT_OUTPUT
        return data


def manifest_from_json(data: Any, source: str) -> Manifest:
    """The manifest in ``data``, read from ``source`` (named in errors).

    Raises BundleError if a newer version wrote it, or a field is missing, unknown, of the wrong type or refused.
    """
    if not isinstance(data, dict):
        raise BundleError(f"{source} is not a bundle manifest: it holds no JSON object")
    _check_schema(data, source)
    try:
        return decode(Manifest, _upgraded(data))
    except FieldError as error:
        message = escaped(str(error))  # it may quote any text of the file
        if len(message) > _LONGEST_MESSAGE:
            message = message[:_LONGEST_MESSAGE] + "…"
        raise BundleError(f"{source} is damaged: {message}. Copy the bundle again or build it again") from None


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """A manifest of an older schema as one of this schema; its meaning stays."""
    engine = data.get("engine")
    if data["schema_version"] == 1 and isinstance(engine, dict):
        context = None if engine.get("kind") == "onnxruntime" else "native"
        data = {**data, "engine": {"context": context, "version_compatible": False, **engine}}
    if isinstance(data.get("engine"), dict):
        data = {**data, "engine": {"output": "fp32", **data["engine"]}}
    preprocess = data.get("preprocess")
    if data["schema_version"] < 3 and isinstance(preprocess, dict):
        data = {"network": dataclasses.asdict(NetworkFacts()), **data}
        data["preprocess"] = {"channel_order": "rgb", **preprocess}
    checkpoint = data.get("checkpoint")
    if isinstance(checkpoint, dict):
        data = {**data, "checkpoint": {"weights": "plain", **checkpoint}}
    return {"tuning": None, **data, "schema_version": SCHEMA_VERSION}


def _check_schema(data: dict[str, Any], source: str) -> None:
    version = data.get("schema_version")
    if type(version) is not int or version < 1:
        raise BundleError(
            f"{source} has no valid schema_version ({reprlib.repr(version)}): it is not a bundle manifest"
        )
    if version > SCHEMA_VERSION:
        author = data.get("isnet_trt_version")
        raise BundleError(
            f"{source} has schema version {reprlib.repr(version)}, written by isnet_trt "
            f"{escaped(author[:40]) if isinstance(author, str) else '?'}; "
            f"isnet_trt {__version__} reads up to {SCHEMA_VERSION}. Upgrade isnet_trt, or build the bundle again with "
            f"this one"
        )
