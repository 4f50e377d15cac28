"""Lowering: from the float32 graph to the graph that an engine is built from, and to one that ONNX Runtime can run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import onnx

from isnet_trt.engines.library import PRECISIONS
from isnet_trt.errors import SettingsError
from isnet_trt.export import winograd
from isnet_trt.export.engines import engine_builder
from isnet_trt.export.fp32_fallback import Half, find_fp32_fallback
from isnet_trt.export.options import EngineOptions, PrecisionOptions
from isnet_trt.export.precision import cast_to_half, count_casts, emulate_bf16
from isnet_trt.export.quantise import Flavour, Table, emulate_qdq, quantisable_layers, quantise
from isnet_trt.export.quantise.formats import ACTIVATIONS
from isnet_trt.export.ranges import Ranges

EIGHT_BITS = ("int8", "fp8")
HALVES: tuple[Half, ...] = get_args(Half)


@dataclass(frozen=True)
class LoweredGraphs:
    """``engine`` is what a library runs on a GPU; ``portable`` computes the same under ONNX Runtime on a CPU.

    ``about``, for the report: nodes of the fp32 fallback with reasons (``islands``), casts, eight-bit layers.
    """

    engine: onnx.ModelProto
    portable: onnx.ModelProto
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arithmetic:
    """The ``precision`` of a build and, for int8 and fp8, the type ``rest`` of what is not in eight bits."""

    precision: str = "fp32"
    rest: str = "fp16"

    def check(self, kind: str, options: EngineOptions | None = None) -> None:
        """Check that the engine ``kind`` and its targets have this arithmetic.

        Raises:
            SettingsError: they do not; the message lists what they have.
        """
        if self.precision not in PRECISIONS:
            raise SettingsError(f"precision {self.precision!r} is not available; there is: {', '.join(PRECISIONS)}")
        if self.rest not in ("fp32", *HALVES):
            raise SettingsError(f"what stays out of eight bits can be fp32, {' or '.join(HALVES)}, not {self.rest!r}")
        builder, options = engine_builder(kind), options or EngineOptions()
        builder.check(options)
        builder.check_precision(self.precision, options)
        if self.eight_bits:
            # The layers that are not quantised have demands of their own: bf16 beside int8 needs Ampere.
            builder.capabilities(options, self.rest)

    def check_options(self, options: PrecisionOptions, candidates: tuple[str, ...] = ()) -> None:
        """Refuse early what eight bits lack, and what only they have; ``candidates`` are precisions tried beside this.

        Raises:
            SettingsError: the message says which option.
        """
        eight_bits = self.eight_bits or bool(set(candidates) & set(EIGHT_BITS))
        if options.keep and not eight_bits:
            raise SettingsError(f"keep {' '.join(options.keep)} with {self}: it is for int8 and fp8; leave it out")
        drop = options.max_drop
        if drop is not None and not (0 <= drop < math.inf and eight_bits):
            raise SettingsError(f"max_drop {drop:g} with {self}: it is for int8 and fp8, and 0 points or more")
        if options.calib is None and self.eight_bits:
            raise missing_calibration(self.precision)

    def __str__(self) -> str:
        return f"{self.precision}+{self.rest}" if self.eight_bits else self.precision

    @property
    def eight_bits(self) -> bool:
        """Whether layers are quantised, for which a calibration table is needed."""
        return self.precision in EIGHT_BITS


def lower_graph(
    proto: onnx.ModelProto,
    arithmetic: Arithmetic,
    kind: str,
    ranges: Ranges | None = None,
    table: Table | None = None,
    skip: Iterable[str] = (),
) -> LoweredGraphs:
    """Lower the float32 graph ``proto`` for the engine ``kind``.

    ``ranges`` (`isnet_trt.export.ranges.measure_ranges`) are needed for half precision, a calibration ``table`` for
    eight bits; ``skip`` names layers that are not quantised.

    Raises:
        SettingsError: ranges or table are missing, or ``skip`` names no layer.
        BuildError: ranges or table belong to another graph.
    """
    if arithmetic.precision == "fp32":
        # TensorRT gets the plain convolutions, for which it has kernels of its own.
        return LoweredGraphs(proto, winograd.rewrite(proto))
    if arithmetic.eight_bits:
        return _eight_bits(proto, arithmetic, kind, ranges, table, tuple(skip))
    # On a CPU ONNX Runtime runs float16 graphs as they are, but has no bfloat16 convolutions.
    graph, about = _half(proto, cast(Half, arithmetic.precision), kind, ranges)
    return LoweredGraphs(graph, emulate_bf16(graph) if arithmetic.precision == "bf16" else graph, about)


def _half(
    proto: onnx.ModelProto, half: Half, kind: str, ranges: Ranges | None
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    if ranges is None:
        raise SettingsError(f"a graph in {half} needs the ranges of its tensors, measured on pictures")
    fallback = find_fp32_fallback(proto, ranges, half, engine_builder(kind).no_bf16)
    graph = cast_to_half(proto, half, fallback)
    return graph, {"islands": fallback, "casts": count_casts(graph)}


def missing_calibration(precision: str) -> SettingsError:
    """The error of eight bits without a calibration."""
    return SettingsError(f"{precision} needs a calibration; give --calib FOLDER with typical pictures")


def flavour_of(precision: str, kind: str) -> Flavour:
    """The eight-bit format of an engine: uint8 under ONNX Runtime, symmetric int8 or E4M3 under TensorRT."""
    return engine_builder(kind).eight_bits[precision]


def _eight_bits(
    proto: onnx.ModelProto,
    arithmetic: Arithmetic,
    kind: str,
    ranges: Ranges | None,
    table: Table | None,
    skip: tuple[str, ...],
) -> LoweredGraphs:
    if table is None:
        raise missing_calibration(arithmetic.precision)
    flavour = flavour_of(arithmetic.precision, kind)
    plain = quantise(proto, table, flavour, skip)
    about: dict[str, Any] = {
        "eight-bit layers": len(quantisable_layers(proto, flavour)),
        "kept out": list(skip),
        "calibration inputs": len(table.inputs),
        "ranges by observer": table.observers_taken(ACTIVATIONS[flavour]),
    }
    # Nothing to emulate: uint8 Q/DQ is what ONNX Runtime itself runs.
    if flavour == "cpu":
        return LoweredGraphs(plain, plain, about)
    if arithmetic.rest == "fp32":
        return LoweredGraphs(plain, emulate_qdq(plain), about)
    # Types first, then Q/DQ: `quantise` reads the types that the layers have.
    half, half_about = _half(proto, cast(Half, arithmetic.rest), kind, ranges)
    graph = quantise(half, table, flavour, skip)
    # bfloat16 is not emulated beside eight bits: its own rounding error is a tenth of theirs.
    return LoweredGraphs(graph, emulate_qdq(graph if arithmetic.rest == "fp16" else plain), about | half_about)
