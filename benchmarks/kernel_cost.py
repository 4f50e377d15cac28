"""What each kernel must move and compute, and the least time that takes: ``python -m benchmarks.kernel_cost``.

Bytes are those of a kernel's inputs and results, each once: what caches may or may not save is left out, and so are
partial results. FLOPs are those of the classes that there are, a fused multiply-add counted as two;
`region_pool`'s are those of whole tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from isnet_trt import cli
from isnet_trt.cuda.element_types import FLOAT
from isnet_trt.cuda.kernel_specs import WIDTH
from isnet_trt.merging import geometry
from isnet_trt.merging.geometry import coarse_size
from isnet_trt.settings import Inference, Size

FEATURES, CHANNELS = 512, 3
"""Channels of the pooled features, and of an image."""
HALF = 2
"""Bytes of a value inside a float16 engine, as its plugins see it. Engines take float32, and by default give it."""
BILINEAR, SOFTMAX = 9, 5
"""FLOPs per value."""


@dataclass(frozen=True)
class Card:
    """Rates of a GPU from its data sheet: bytes/s, and FLOP/s of dense float16 matrices with float32 sums, float32."""

    name: str
    memory: float
    matrix: float
    vector: float


CARDS = (Card("H100 SXM", 3.35e12, 989.4e12, 66.9e12), Card("RTX 4090", 1.008e12, 165.2e12, 82.6e12))
"""NVIDIA's H100 data sheet and architecture paper; Ada architecture paper, table of the RTX 4090."""


@dataclass(frozen=True)
class Cost:
    """Bytes moved, and FLOPs on the matrix units or on the ordinary ones (``vector``)."""

    bytes: float
    flops: float
    unit: Literal["matrix", "vector"] = "vector"

    def floor(self, card: Card) -> float:
        """Seconds that ``card`` needs at least."""
        return max(self.bytes / card.memory, self.flops / (card.matrix if self.unit == "matrix" else card.vector))

    def bound(self, card: Card) -> str:
        """What takes longest on ``card``: memory, or the unit."""
        return "memory" if self.floor(card) == self.bytes / card.memory else self.unit

    def __mul__(self, times: int) -> Cost:
        return Cost(self.bytes * times, self.flops * times, self.unit)


def resize(source: Size, target: Size) -> Cost:
    """One picture."""
    values = CHANNELS * _area(target)
    return Cost(CHANNELS * _area(source) + values, BILINEAR * values)


def yuv_resize(source: Size, target: Size) -> Cost:
    """One picture of half a byte of U and V a pixel; each of four samples is converted by five products and sums."""
    values = CHANNELS * _area(target)
    return Cost(1.5 * _area(source) + values, BILINEAR * values + 4 * 10 * _area(target))


def gather(picture: Size, window: Size, batch: int, size: int = FLOAT) -> Cost:
    """A batch of windows; the picture is read once. ``size`` is bytes per value."""
    values = batch * CHANNELS * _area(window)
    return Cost(CHANNELS * _area(picture) + size * values, BILINEAR * values)


def region_pool(classes: int, positions: int, size: int = HALF) -> Cost:
    """`pool` and `join` for one image; a product has 32 rows, whatever the number of classes."""
    values = (classes + FEATURES) * positions + classes * FEATURES
    return Cost(size * values + 4 * classes, 2 * 32 * positions * FEATURES, "matrix")


def attention(queries: int, keys: int, size: int = HALF) -> Cost:
    """One image, in one part."""
    return Cost(size * WIDTH * 2 * (queries + keys) + 4 * keys, 4 * WIDTH * queries * keys, "matrix")


def finite(windows: int, window: Size, classes: int, stride: int = 8, size: int = FLOAT) -> Cost:
    """The logits of ``windows`` windows, read once."""
    values = windows * classes * _area(coarse_size(window, stride))
    return Cost(size * values, values)


def accumulate(picture: Size, inference: Inference, classes: int, stride: int = 8, size: int = FLOAT) -> Cost:
    """All scales of one picture; every volume, in whole mode of the logits' resolution, is written once, as float32."""
    passes = geometry.passes(picture, inference)
    windows = [window.size for scaled in passes for window in geometry.windows(scaled, inference)]
    coarse = sum(_area(coarse_size(window, stride)) for window in windows)
    flops = BILINEAR + 1 + (SOFTMAX if inference.softmax_before_resize else 0)
    whole = inference.mode == "whole"
    volumes = coarse // (1 + inference.flip) if whole else sum(_volumes(picture, inference))
    values = coarse if whole else sum(map(_area, windows))
    return Cost(classes * (size * coarse + FLOAT * volumes), flops * classes * values)


def finish(picture: Size, inference: Inference, classes: int) -> Cost:
    """All scales of one picture in slide mode to labels of one byte."""
    pixels, volumes = _area(picture), _volumes(picture, inference)
    return Cost(FLOAT * classes * sum(volumes) + pixels, (BILINEAR + 1) * classes * pixels * len(volumes))


def upsample_argmax(classes: int, picture: Size, size_out: Size, stride: int = 8, size: int = FLOAT) -> Cost:
    """One whole pass over a resized ``picture`` to labels of one byte at the source's size."""
    pixels = _area(size_out)
    return Cost(size * classes * _area(coarse_size(picture, stride)) + pixels, (BILINEAR + 1) * classes * pixels)


def _area(size: Size) -> int:
    return size[0] * size[1]


def _volumes(picture: Size, inference: Inference) -> list[int]:
    """Pixels of each scale's volume."""
    return [_area(geometry.scaled_size(picture, scale)) for scale in inference.scales]


def cases() -> Iterator[tuple[str, str, Cost]]:
    """(case, kernel, cost) of the two cases, with plugins in float16."""
    source, ade, classes, positions = (480, 640), (512, 683), 150, 64 * 86
    name = "ADE, whole 512×683"
    yield name, "`resize` from 480×640", resize(source, ade)
    yield name, "`gather`", gather(ade, ade, 1)
    yield name, "`region_pool`", region_pool(classes, positions)
    yield name, "`attention`, 5,504 keys", attention(positions, positions)
    yield name, "`attention`, 150 keys", attention(positions, classes)
    yield name, "`finite`", finite(1, ade, classes)
    yield name, "`upsample_argmax`", upsample_argmax(classes, ade, source)
    city, window, classes, batch, positions = (1024, 2048), (512, 1024), 19, 8, 64 * 128
    name = "Cityscapes, 8 windows 512×1024"
    yield name, "`gather`", gather(city, window, batch)
    yield name, "`region_pool`", region_pool(classes, positions) * batch
    yield name, "`attention`, 8,192 keys", attention(positions, positions) * batch
    yield name, "`attention`, 19 keys", attention(positions, classes) * batch
    single = Inference("slide", window, (341, 341))
    ms_flip = single.replace(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True, softmax_before_resize=True)
    for inference, text in ((single, "15 windows"), (ms_flip, "ms+flip, 262 windows")):
        name = f"Cityscapes, 1024×2048, {text}"
        yield name, "`finite`", finite(geometry.window_count(city, inference), window, classes)
        yield name, "`accumulate`, all rows", accumulate(city, inference, classes)
        yield name, "`finish`, all rows", finish(city, inference, classes)


def table() -> str:
    """The cases as a Markdown table; floors in microseconds, with what bounds them on the card."""
    lines = ["| case | kernel | MB | GFLOP | " + " | ".join(f"{card.name}, µs" for card in CARDS) + " |"]
    lines.append("|---|---|--:|--:|" + "--:|" * len(CARDS))
    for case, kernel, cost in cases():
        floors = (f"{cost.floor(card) * 1e6:.1f} {cost.bound(card)}" for card in CARDS)
        lines.append(f"| {case} | {kernel} | {cost.bytes / 1e6:.2f} | {cost.flops / 1e9:.2f} | {' | '.join(floors)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    cli.parser("benchmarks.kernel_cost", __doc__ or "").parse_args(argv)
    print(table())
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
