"""What a model needs besides its weights: label set, preprocessing and inference settings.

Plain frozen dataclasses without arrays or engines, shared by the recipes (training), the bundle manifest and the
runtime. Each one checks itself when it is made and turns into JSON (`isnet_trt.bundle.strict` reads it back).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from isnet_trt.errors import SettingsError

Mode = Literal["whole", "slide"]
ChannelOrder = Literal["rgb", "bgr"]
Upsampling = Literal["none", "half_pixel", "align_corners"]
Activation = Literal["none", "softmax", "sigmoid"]
PaddingSide = Literal["bottom_right", "centre"]
Size = tuple[int, int]
"""(height, width) in pixels."""
MOST_CLASSES = 2**16 - 1
"""Label maps are uint16 above 256 classes, and the merge counts classes from 1."""
MOST_PIXELS = 2**28
"""Pixels of the largest picture that is decoded by default, and of the largest network input: 16384 x 16384."""
_LONGEST_NAME = 1000
_MOST_SCALES = 64
_LARGEST_VALUE = 1e6
_SMALLEST_STD = 1e-6
LARGEST_MULTIPLE = 1024


def short_name(name: str, longest: int | None = None) -> str:
    """The class name ``name`` without its synonyms, which follow a comma, and of at most ``longest`` characters."""
    short = name.split(",")[0].strip() or name
    return short if longest is None or len(short) <= longest else f"{short[: longest - 2]}.."


@dataclass(frozen=True)
class Placement:
    """Where a network runs: "auto" (on the GPU for libraries that need one, else on the CPU), "cpu" or "cuda".

    ``number`` is that of ``cuda:N``, as CUDA_VISIBLE_DEVICES counts; None: no GPU was named, which means GPU 0.
    """

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    number: int | None = None

    @classmethod
    def parse(cls, device: object) -> Placement:
        """The placement that ``device`` names: "auto", "cpu", "cuda", "cuda:N", or an object with such a text.

        Raises:
            SettingsError: it names none.
        """
        match = re.fullmatch(r"(auto|cpu|cuda)|cuda:([0-9]{1,9})", str(device))
        if match is None:
            raise SettingsError(f"device {device!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:N'")
        return cls(match[1] or "cuda", None if match[2] is None else int(match[2]))  # type: ignore[arg-type]

    @property
    def gpu(self) -> int:
        """The number of the GPU that is used where one is."""
        return self.number or 0


@dataclass(frozen=True)
class Labels:
    """The label set: class i is called ``names[i]`` and drawn in ``palette[i]`` (R, G, B, each 0..255).

    ``flip_pairs`` are the class pairs that change places when a picture is mirrored (left arm / right arm).
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < len(self.names) <= MOST_CLASSES:
            raise SettingsError(f"{len(self.names)} classes; a label map holds 1 to {MOST_CLASSES}")
        if len(self.names) != len(self.palette):
            raise SettingsError(f"{len(self.names)} class names but {len(self.palette)} palette colours")
        for number, (name, colour) in enumerate(zip(self.names, self.palette, strict=True)):
            if len(name) > _LONGEST_NAME:
                raise SettingsError(
                    f"the name of class {number} has {len(name)} characters; {_LONGEST_NAME} are allowed"
                )
            if not all(0 <= value <= 255 for value in colour):
                raise SettingsError(f"palette colour {tuple(colour)} of class {number} is outside 0 to 255")
        for pair in self.flip_pairs:
            if len(set(pair)) != 2 or not all(0 <= c < len(self.names) for c in pair):
                raise SettingsError(f"flip pair {pair} does not name two of the {len(self.names)} classes")

    @property
    def count(self) -> int:
        """Number of classes K."""
        return len(self.names)


@dataclass(frozen=True)
class Preprocess:
    """From a source picture to the network's input: resized, then (pixel - mean) / std.

    ``size`` is (long side, short side) when ``keep_ratio``, else the exact (height, width); None: not resized.
    ``channel_order`` is that of the network's input; ``mean`` and ``std`` are per channel in that order, in units of
    0..255 pixel values.
    """

    size: tuple[int, int] | None
    keep_ratio: bool = True
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        if self.size is not None:
            check_size("test size", self.size)
        if not all(abs(value) <= _LARGEST_VALUE for value in self.mean):
            raise SettingsError(f"normalisation mean {self.mean} must lie within ±{_LARGEST_VALUE:g}")
        if not all(_SMALLEST_STD <= value <= _LARGEST_VALUE for value in self.std):
            raise SettingsError(
                f"normalisation std {self.std} must be positive, from {_SMALLEST_STD:g} to {_LARGEST_VALUE:g}"
            )


@dataclass(frozen=True)
class NetworkFacts:
    """What the runtime must know about a segmentation network beside its classes, its input and its output stride.

    The defaults are those of ISNet: logits that the merge resamples, inputs of any size.

    Attributes:
        activation: what the network's output already is: "none" (logits), "softmax" (probabilities of the classes) or
            "sigmoid" (a probability for each class on its own). It is never applied again. Outputs that are
            probabilities are averaged as they are, whatever `Inference.softmax_before_resize` says, and are the
            probabilities of a result. Logits become probabilities by softmax, those of a one-class network by sigmoid.
        threshold: probability (0..1, exclusive) above which the label is 1; the network has one output channel and the
            label set two classes, 0 background and 1. None: a channel for each class, and the largest is the label.
        upsampling: the enlargement of the output grid to the size of the network's input that was cut off the end of
            the graph and is done by the merge: PyTorch's bilinear with ``align_corners`` False ("half_pixel") or True.
            "none": the graph is the whole network. Without padding, whole pictures are then resampled from the output
            grid to the label map in one step; windows are enlarged to their size in half-pixel positions.
        size_multiple: both sides of the network's input are padded up to a multiple of this. The output is enlarged to
            the padded size (by ``upsampling``; "none": half-pixel) and cropped before it is resampled or averaged.
        padding_side: where the padding is: behind the last row and column, or half of it (rounded down) before the
            first ones. Mirrored windows are mirrored first.
        padding_value: pixel value of the padding, 0..255 for each channel in the network's order, normalised like any
            pixel; None: the mean, which becomes 0.
    """

    activation: Activation = "none"
    threshold: float | None = None
    upsampling: Upsampling = "none"
    size_multiple: int = 1
    padding_side: PaddingSide = "bottom_right"
    padding_value: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise SettingsError(f"threshold {self.threshold:g} must be a probability above 0 and below 1")
        if self.threshold is not None and self.activation == "softmax":
            raise SettingsError(
                "softmax over one class is always 1: with a threshold, activation is 'sigmoid' or 'none'"
            )
        if not 1 <= self.size_multiple <= LARGEST_MULTIPLE:
            raise SettingsError(f"size multiple {self.size_multiple} must be 1 to {LARGEST_MULTIPLE}")
        if self.padding_value is not None and not all(0 <= value <= 255 for value in self.padding_value):
            raise SettingsError(f"padding value {self.padding_value} is outside 0 to 255")

    def check_labels(self, labels: Labels) -> None:
        """Raise SettingsError where threshold and number of classes do not belong together."""
        if self.threshold is not None and labels.count != 2:
            raise SettingsError(f"a threshold separates two classes, background and one other, not {labels.count}")
        if self.threshold is not None and labels.flip_pairs:
            raise SettingsError("flip pairs belong to networks with a channel for each class, not to a threshold")
        if self.threshold is None and labels.count == 1:
            raise SettingsError("one class without a threshold: every label would be 0; name two and give a threshold")

    def channels(self, labels: Labels) -> int:
        """Number of the network's output channels."""
        return labels.count if self.threshold is None else 1


@dataclass(frozen=True)
class Inference:
    """How a picture is shown to the network and how the network's outputs are merged.

    ``window`` and ``stride`` are (height, width) in pixels of the scaled picture and belong to ``mode="slide"``.
    ``softmax_before_resize`` averages probabilities instead of logits: softmax at stride 8 in whole mode, after the
    resize to the window in slide mode.
    """

    mode: Mode = "whole"
    window: Size | None = None
    stride: Size | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    softmax_before_resize: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "slide"):
            raise SettingsError(f"mode {self.mode!r} is unknown; use 'whole' or 'slide'")
        if len(self.scales) > _MOST_SCALES:
            raise SettingsError(f"{len(self.scales)} scales; at most {_MOST_SCALES} are allowed")
        if not self.scales or any(not 0 < s <= 16 for s in self.scales):
            raise SettingsError(f"scales {self.scales} must be one or more factors in (0, 16]")
        if self.mode == "slide":
            self._check_slide()

    def _check_slide(self) -> None:
        if self.window is None or self.stride is None:
            raise SettingsError("mode 'slide' needs a window and a stride, each (height, width)")
        if min(self.window) < 1 or min(self.stride) < 1:
            raise SettingsError(f"window {self.window} and stride {self.stride} must be positive")
        check_size("window", self.window)
        if any(s > w for s, w in zip(self.stride, self.window, strict=True)):
            raise SettingsError(f"stride {self.stride} is larger than the window {self.window}: pixels stay uncovered")

    def replace(self, **changes: Any) -> Inference:
        """A copy with some fields changed, checked like any other."""
        return dataclasses.replace(self, **changes)

    def describe(self) -> str:
        """One line for people, such as ``slide 512x1024 / 341x341, scales 0.5 1, flip, probabilities``."""
        parts: list[str] = [self.mode]
        if self.mode == "slide" and self.window and self.stride:
            parts[0] += " {}x{} / {}x{}".format(*self.window, *self.stride)
        parts.append(("scales " if len(self.scales) > 1 else "scale ") + " ".join(f"{s:g}" for s in self.scales))
        parts += ["flip"] if self.flip else []
        parts.append("probabilities" if self.softmax_before_resize else "logits")
        return ", ".join(parts)


def check_size(title: str, size: Size) -> None:
    """Raise SettingsError for a (height, width) that no network input can have."""
    if min(size) < 1:
        raise SettingsError(f"{title} {size} must be positive")
    if size[0] * size[1] > MOST_PIXELS:
        raise SettingsError(f"{title} {size} has more than {MOST_PIXELS} pixels, the most of a network input")


def choose_preset(presets: Mapping[str, Inference], name: str) -> Inference:
    """The settings called ``name``; SettingsError, which lists the names, if there are none."""
    if name not in presets:
        raise SettingsError(f"preset {name!r} is unknown; there are: {', '.join(presets)}")
    return presets[name]


def adjust_preset(presets: Mapping[str, Inference], name: str, changes: Mapping[str, Any], dash: str = "") -> Inference:
    """The preset called ``name`` with some fields changed.

    Where neither the changes nor the preset have a window or a stride for mode "slide", those of the preset "ms-flip"
    are taken. ``dash`` is what messages put before the name of a field: "--" for options.

    Raises:
        SettingsError: there is no such preset, or the fields do not make sense together.
    """
    preset = choose_preset(presets, name)
    mode = changes.get("mode", preset.mode)
    if mode == "whole" and changes.keys() & {"window", "stride"}:
        raise SettingsError(f"{dash}window and {dash}stride belong to {dash}mode slide; add it or leave them out")
    if mode == "slide":
        published = presets.get("ms-flip", preset)
        windows = {"window": preset.window or published.window, "stride": preset.stride or published.stride}
        changes = {**windows, **changes}
        if missing := [f"{dash}{field} H W" for field in windows if changes[field] is None]:
            raise SettingsError(
                f"{dash}mode slide needs {' and '.join(missing)}: no preset of this bundle has windows. The training "
                f"crop with a stride of two thirds of it is usual, such as {dash}window 512 512 {dash}stride 341 341"
            )
    return preset.replace(**changes)


def size_text(size: Sequence[int]) -> str:
    """A size for people, such as ``512x1024``."""
    return "x".join(map(str, size))
