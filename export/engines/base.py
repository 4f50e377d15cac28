"""The build's description of an engine library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import onnx

from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import Library
from isnet_trt.engines.table import KINDS, library
from isnet_trt.errors import SettingsError
from isnet_trt.export.engines.profiles import Shapes
from isnet_trt.export.options import CONTEXTS, Context, EngineOptions
from isnet_trt.export.quantise.formats import Flavour


@dataclass(frozen=True)
class BuildRequest:
    """The graph and settings of an engine.

    ``kernels`` is the folder of the compiled kernels, for a library that runs plugins while it builds; ``replaced`` the
    bundle that the build will replace, whose measurements may be used again; ``measurements`` the file that keeps a
    timing cache from build to build.
    """

    proto: onnx.ModelProto
    shapes: Shapes
    options: EngineOptions = field(default_factory=EngineOptions)
    precision: str = "fp32"
    kernels: Path | None = None
    replaced: Path | None = None
    measurements: Path | None = None
    progress: bool = True


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in a bundle's folder: its manifest entry, facts for the report, and notes for the user."""

    info: EngineInfo
    about: Mapping[str, Any]
    notes: tuple[str, ...] = ()


class EngineBuilder:
    """One engine library at build time.

    Attributes:
        library: its description for the runtime.
        eight_bits: precision of eight bits -> the placement of Q/DQ nodes that the library takes.
        fastest_first: precisions that a tuning tries, in this order; empty: all of the library.
        beside_cpu: for messages: where else than on a CPU a library that needs no GPU runs.
        no_bf16: operators that the library has in float32 and float16 only -> the library, for the report.
        reasons: option that the library lacks (`Library.options`) -> why.
    """

    library: Library
    eight_bits: ClassVar[Mapping[str, Flavour]]
    fastest_first: ClassVar[tuple[str, ...]] = ()
    beside_cpu: ClassVar[str] = ""
    no_bf16: ClassVar[Mapping[str, str]] = {}
    reasons: ClassVar[Mapping[str, str]] = {}

    @property
    def kind(self) -> str:
        """The library's name."""
        return self.library.kind

    def check(self, options: EngineOptions) -> None:
        """Raise SettingsError, with the reason and the alternatives, where the library lacks one of ``options``."""
        if options.context not in (None, *CONTEXTS):
            raise SettingsError(f"context {options.context!r} is unknown; it is {' or '.join(CONTEXTS)}")
        changed = [option.name for option in fields(options) if getattr(options, option.name) != option.default]
        for name in changed:
            if name in self.library.options | {"kind"}:
                continue
            titles = [library(kind).title for kind in KINDS if name in library(kind).options]
            reason = self.reasons.get(name, f"{self.kind} has no such setting")
            raise SettingsError(f"--{name.replace('_', '-')} is for {' and '.join(titles)}; {reason}")

    def check_precision(self, precision: str, options: EngineOptions) -> None:
        """Raise SettingsError, with the alternatives, where the library or one of its targets lacks ``precision``."""
        if precision not in self.library.precisions:
            others = [kind for kind in KINDS if precision in library(kind).precisions]
            place = "" if self.library.needs_gpu else " on a CPU" + self.beside_cpu
            raise SettingsError(
                f"{self.library.title} has no {precision} convolutions{place}; use "
                f"{', '.join(self.library.precisions)}, or --engine {' or '.join(others)}"
            )
        self.capabilities(options, precision)

    def runs_on_gpu(self, options: EngineOptions) -> bool:
        """Whether the engine is built for a GPU."""
        return self.library.needs_gpu

    def context(self, options: EngineOptions) -> Context | None:
        """Who computes the context operations; None where the library has no choice."""
        return None

    def capabilities(self, options: EngineOptions, precision: str) -> tuple[str, ...] | None:
        """Compute capabilities of the GPUs that the engine will run on; None where it is for none in particular.

        Raises:
            SettingsError: one of them is unknown to the library, or has no units for ``precision``.
        """
        return None

    def build(self, request: BuildRequest, folder: Path) -> BuiltEngine:
        """Build the engine into a bundle's folder, which holds the ONNX graph already.

        Raises:
            EngineUnavailable, EngineError, SettingsError, BuildError: it cannot be built.
        """
        raise NotImplementedError
