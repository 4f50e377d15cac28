"""What a build asks of each engine library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import onnx

from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import Library
from isnet_trt.engines.table import KINDS, library
from isnet_trt.errors import SettingsError
from isnet_trt.export.engines.profiles import Shapes
from isnet_trt.export.options import CONTEXTS, Context, EngineOptions, flag
from isnet_trt.export.quantise.formats import Flavour


@dataclass(frozen=True)
class BuildRequest:
    """What an engine is built from.

    ``kernels`` is the folder of the compiled kernels, for a library that runs plugins while it builds; ``replaced`` the
    bundle that the build will replace, whose measurements may be used again.
    """

    proto: onnx.ModelProto
    shapes: Shapes
    options: EngineOptions = field(default_factory=EngineOptions)
    precision: str = "fp32"
    kernels: Path | None = None
    replaced: Path | None = None
    progress: bool = True


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in a bundle's folder: its manifest entry, what the report says of it, and notes for the user."""

    info: EngineInfo
    about: Mapping[str, Any]
    notes: tuple[str, ...] = ()


class EngineBuilder:
    """One engine library at build time.

    Attributes:
        library: what the runtime knows of it.
        eight_bits: precision of eight bits -> the form of Q/DQ nodes that the library takes.
        reasons: option that the library has not (`Library.options`) -> why.
    """

    library: Library
    eight_bits: ClassVar[Mapping[str, Flavour]]
    reasons: ClassVar[Mapping[str, str]] = {}

    @property
    def kind(self) -> str:
        """The library's name."""
        return self.library.kind

    def check(self, options: EngineOptions) -> None:
        """Refuse what an engine of this library cannot have.

        Raises:
            SettingsError: the message says why, and what can be had.
        """
        if options.context not in (None, *CONTEXTS):
            raise SettingsError(f"context {options.context!r} is unknown; it is {' or '.join(CONTEXTS)}")
        for name in options.given():
            if name not in self.library.options:
                titles = [library(kind).title for kind in KINDS if name in library(kind).options]
                reason = self.reasons.get(name, f"{self.kind} has no such setting")
                raise SettingsError(f"{flag(name)} is for {' and '.join(titles)}; {reason}")

    def check_precision(self, precision: str, options: EngineOptions) -> None:
        """Refuse a precision that this library, or one of the targets in ``options``, cannot do.

        Raises:
            SettingsError: the message says what can be had.
        """
        if precision not in self.library.precisions:
            others = [kind for kind in KINDS if precision in library(kind).precisions]
            place = "" if self.library.needs_gpu else " on a CPU"
            raise SettingsError(
                f"{self.library.title} has no {precision} convolutions{place}; use "
                f"{', '.join(self.library.precisions)}, or --engine {' or '.join(others)}"
            )
        self.capabilities(options, precision)

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
