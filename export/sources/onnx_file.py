"""An ONNX file of any segmentation network as the network of a build."""

from __future__ import annotations

import functools
from pathlib import Path

from isnet_trt.bundle import CheckpointInfo
from isnet_trt.export.graph import note_source
from isnet_trt.export.intake.graph import take_in
from isnet_trt.export.intake.reading import read_onnx
from isnet_trt.export.network import Network
from isnet_trt.export.onnx_edit import copied
from isnet_trt.export.reference import GraphReference
from isnet_trt.export.sources import OnnxFile, read_recipe
from isnet_trt.export.sources.facts import settle
from isnet_trt.files import printable
from isnet_trt.settings import Size


def load(source: OnnxFile, static: Size | None = None) -> Network:
    """See `isnet_trt.export.sources.Source.load`."""
    recipe, path = read_recipe(source.recipe), Path(source.path)
    proto, digest = read_onnx(path)
    name = printable(path.name)
    ports = source.input, source.output
    channels = recipe.network.channels(recipe.labels)
    intake = take_in(proto, recipe.preprocess, channels, name, ports, recipe.network.size_multiple)
    del proto
    settled = settle(recipe, intake, name, static)
    note_source(intake.proto, recipe.name, {})
    return Network(
        recipe=settled,
        path=str(path),
        source=CheckpointInfo(name, digest),
        stride=intake.probed.stride,
        reference=GraphReference(intake.reference, intake.reference_stride),
        export=functools.partial(copied, intake.proto),
        size=intake.probed.size,
        batch=intake.probed.batch,
        findings=tuple(intake.probed.lines()),
        identity=repr(ports),
    )
