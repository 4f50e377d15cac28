"""Write a bundle as a model of a Triton Inference Server's model repository, for Triton's Python backend.

The layout is Triton's (user guide, "Model Repository" and "Model Configuration"). The code that serves the model is in
`isnet_trt.integrations.triton`; the repository holds the bundle's files and the settings of the server.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isnet_trt.bundle.draft import absolute, new_folder, sync_all
from isnet_trt.bundle.files import Bundle, read_bundle
from isnet_trt.bundle.manifest import MANIFEST
from isnet_trt.errors import BundleError, SettingsError

IMAGE, ENCODED = "IMAGE", "ENCODED"
"""Inputs: uint8 (B, H, W, 3), and the content of an image file, uint8 (B, bytes). A request has one of them."""
LABELS, PROBABILITIES = "LABELS", "PROBABILITIES"
"""Outputs: class ids (B, H, W), and float32 (B, K, H, W) where a request asks for them."""
BUNDLE = "bundle"
"""The folder of the bundle, beside model.py."""
CONFIG = "config.pbtxt"
_VERSION = "1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MODEL = '''"""The package isnet_trt opens the bundle beside this file and answers the requests."""

from isnet_trt.integrations.triton import TritonPythonModel  # noqa: F401
'''


@dataclass(frozen=True)
class Serving:
    """How a server runs the model.

    Attributes:
        instances: segmenters that run side by side, on each GPU or in all on the CPU.
        gpus: numbers of the GPUs, as the server's CUDA_VISIBLE_DEVICES counts; none: every GPU for a bundle whose
            engine needs one, the CPU for ONNX Runtime.
        batch: images that the server may hand to a segmenter at once.
        engine: the engine instead of the bundle's own, "onnxruntime".
    """

    instances: int = 1
    gpus: Sequence[int] = ()
    batch: int = 8
    engine: str | None = None


def export_triton(
    bundle: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    name: str | None = None,
    serving: Serving | None = None,
    force: bool = False,
) -> Path:
    """Write a bundle into a model repository, as a whole or not at all; return the model's folder.

    ``name`` is the model's, by default that of its recipe. With ``force`` a model that was exported before is replaced.

    Raises:
        BundleError: the bundle is damaged, or the folder exists or cannot be written.
        SettingsError: no model can have this name.
    """
    opened = read_bundle(bundle, verify=False)  # each file is checked as it is copied
    name = opened.manifest.recipe if name is None else name
    if not _NAME.fullmatch(name):
        raise SettingsError(f"--name: {name!r} cannot be the name of a model; use letters, digits, '.', '_' and '-'")
    target = absolute(repository) / name
    with new_folder(target, lambda: _check_target(target, force)) as folder:
        version = folder / _VERSION
        _copy(opened, version / BUNDLE)
        (version / "model.py").write_text(_MODEL, "utf-8")
        (folder / CONFIG).write_text(configuration(opened, name, serving or Serving()), "utf-8")
        sync_all(folder)
    return target


def _check_target(target: Path, force: bool) -> None:
    """Refuse to replace anything but a model that was exported before and has no further version."""
    if not os.path.lexists(target):
        return
    advice = "choose another --name"
    exported = target.is_dir() and not target.is_symlink() and (target / _VERSION / BUNDLE / MANIFEST).is_file()
    if not exported or {path.name for path in target.iterdir()} - {CONFIG, _VERSION}:
        raise BundleError(f"{target} exists and is no exported bundle, or holds more than one; {advice}")
    if not force:
        raise BundleError(f"{target} already holds an exported bundle; use --force to replace it, or {advice}")


def _copy(bundle: Bundle, folder: Path) -> None:
    for file in bundle.manifest.files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle.read(file))
    (folder / MANIFEST).write_bytes((bundle.folder / MANIFEST).read_bytes())
    read_bundle(folder, verify=False)  # the manifest may have been replaced since it was read


def configuration(bundle: Bundle, name: str, serving: Serving) -> str:
    """The text of config.pbtxt (protobuf text format of Triton's ``ModelConfig``)."""
    manifest = bundle.manifest
    classes = manifest.labels.count
    # https://github.com/triton-inference-server/python_backend#input-tensor-device-placement
    parameters = {
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "engine": serving.engine or manifest.engine.kind,
        "names": json.dumps(manifest.labels.names, ensure_ascii=False),
        "palette": json.dumps(manifest.labels.palette),
        "presets": json.dumps({key: preset.describe() for key, preset in manifest.presets.items()}),
    }
    return f"""# Written by isnet-trt bundle export-triton.
name: {_text(name)}
backend: "python"
max_batch_size: {serving.batch}
input [
  {{ name: "{IMAGE}" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] optional: true }},
  {{ name: "{ENCODED}" data_type: TYPE_UINT8 dims: [ -1 ] optional: true allow_ragged_batch: true }}
]
output [
  {{ name: "{LABELS}" data_type: {"TYPE_UINT8" if classes <= 256 else "TYPE_UINT16"} dims: [ -1, -1 ] }},
  {{ name: "{PROBABILITIES}" data_type: TYPE_FP32 dims: [ {classes}, -1, -1 ] }}
]
dynamic_batching {{ }}
instance_group [ {_instances(serving, parameters["engine"])} ]
{_parameters(parameters)}"""


def _instances(serving: Serving, engine: str) -> str:
    count = f"count: {serving.instances}"
    if serving.gpus:
        return f"{{ kind: KIND_GPU {count} gpus: [ {', '.join(map(str, serving.gpus))} ] }}"
    return f"{{ kind: {'KIND_CPU' if engine == 'onnxruntime' else 'KIND_GPU'} {count} }}"


def _parameters(parameters: Mapping[str, str]) -> str:
    return "".join(
        f"parameters {{ key: {_text(key)} value: {{ string_value: {_text(value)} }} }}\n"
        for key, value in parameters.items()
    )


def _text(value: str) -> str:
    """A string of the text format: without control characters, which JSON has escaped, only two need an escape."""
    return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'
