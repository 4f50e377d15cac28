"""Images beside two label maps of them: the worst of a comparison are kept, and shown as panels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from isnet_trt.markdown import plain
from isnet_trt.metrics import percent
from isnet_trt.opencv import cv2
from isnet_trt.pictures.label_maps import class_shares, colours, with_void
from isnet_trt.settings import Labels, short_name

_SIDE = 560
"""Longest side of a panel in pixels."""
_DIFFERENT = np.array((230, 0, 120), np.uint8)
"""Magenta, RGB: on a grey image no other pixel has a hue."""
_LISTED, _LONGEST = 24, 26
"""Most classes of the legend, and characters of a name."""
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Example:
    """An image and two label maps of it, reduced to a panel's size.

    Attributes:
        name: of the image.
        image: uint8 (H, W, 3) RGB.
        expected, actual: class ids (H, W), of the reference or the truth, and of what is judged; where ``expected``
            is no class, nothing is compared.
        differs: bool (H, W), whether any of the pixels behind a panel's pixel has different labels.
        equal: share of the compared pixels with equal labels, 0 to 1, before the reduction.
    """

    name: str
    image: NDArray[np.uint8]
    expected: NDArray[np.integer]
    actual: NDArray[np.integer]
    differs: NDArray[np.bool_]
    equal: float

    @classmethod
    def of(
        cls,
        name: str,
        image: NDArray[np.uint8],
        expected: NDArray[np.integer],
        actual: NDArray[np.integer],
        classes: int | None = None,
    ) -> Example:
        """Reduce an image, uint8 (H, W, 3) RGB, and its label maps (h, w), which may be smaller than the image.

        ``classes`` is the number of classes where ``expected`` may hold other values.
        """
        compared = np.ones(expected.shape, bool) if classes is None else (expected >= 0) & (expected < classes)
        differs = (expected != actual) & compared
        equal = 1 - float(differs.sum() / max(compared.sum(), 1))
        factor = min(1.0, _SIDE / max(image.shape[:2]))
        height, width = (max(1, round(side * factor)) for side in image.shape[:2])
        small = np.asarray(
            cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA), np.uint8
        )
        rows, columns = np.arange(height) * expected.shape[0] // height, np.arange(width) * expected.shape[1] // width
        nearest = np.ix_(rows, columns)
        mark = differs[nearest]
        if height < expected.shape[0]:  # one of many pixels must not get lost
            mark = np.asarray(cv2.resize(differs.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)) > 0
        return cls(name, small, expected[nearest], actual[nearest], mark, equal)

    def panels(self, labels: Labels) -> dict[str, bytes]:
        """Image files by name: input, expected, actual and difference; where all labels are equal the first two."""
        palette = np.array(labels.palette, np.uint8)
        files = {"input.jpg": self.image, "expected.png": _painted(self.expected, palette)}
        if self.equal < 1:
            grey = cv2.cvtColor(cv2.cvtColor(self.image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) // 2 + 96
            files["actual.png"] = _painted(self.actual, palette)
            files["difference.jpg"] = np.where(self.differs[..., None], _DIFFERENT, grey).astype(np.uint8)
        return {name: _encoded(name, image) for name, image in files.items()}


def _painted(labels: NDArray[np.integer], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class colours, RGB; where there is no class, grey stripes."""
    height, width = labels.shape
    stripes = np.add.outer(np.arange(height), np.arange(width)) // 4 % 2 == 0
    grey = np.where(stripes, 225, 150).astype(np.uint8)[..., None]
    is_void = with_void(labels, len(palette)) >= len(palette)
    return np.where(is_void[..., None], grey, colours(labels, palette)).astype(np.uint8)


def _encoded(name: str, image: NDArray[np.uint8]) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if name.endswith(".jpg") else []
    return bytes(cv2.imencode(name[name.index(".") :], np.ascontiguousarray(image[..., ::-1]), options)[1])


def worst(count: int, examples: Iterable[Example], *more: Example) -> list[Example]:
    """The ``count`` with the fewest equal labels, worst first; equal ones by name."""
    return sorted([*examples, *more], key=lambda example: (example.equal, example.name))[:count]


def figures(
    examples: Sequence[Example], labels: Labels, captions: Mapping[str, str], folder: str
) -> tuple[list[str], dict[str, bytes | str]]:
    """Markdown that shows each example in a row of panels and the colours of the classes, and the files it needs.

    ``captions`` are those of input, expected, actual, difference, and "both" where expected and actual are equal;
    ``folder`` is where the files are to lie beside the page.
    """
    lines: list[str] = []
    files: dict[str, bytes | str] = {}
    # Images without a difference are shown only where no image has any.
    examples = [example for example in examples if example.equal < 1] or examples
    for number, example in enumerate(examples, 1):
        images = []
        for name, content in example.panels(labels).items():
            panel, path = name.partition(".")[0], f"{folder}/{number}-{name}"
            images.append(f"![{captions['both' if panel == 'expected' and example.equal == 1 else panel]}]({path})")
            files[path] = content
        lines += [f"**{plain(example.name)}**: {percent(example.equal, 3)} % equal", "\n".join(images)]
    legend = f"{folder}/classes.svg"
    files[legend] = _legend(examples, labels)
    return [*lines, f"![Classes in these images, by area]({legend})"], files


def _legend(examples: Sequence[Example], labels: Labels) -> str:
    """Swatch and name of the classes in the label maps, by area, as SVG."""
    both = np.concatenate([maps.ravel() for e in examples for maps in (e.expected, e.actual)])
    shares = list(class_shares(both[None], labels.count))
    entries = [(f"rgb{tuple(labels.palette[k])}", short_name(labels.names[k], _LONGEST)) for k in shares[:_LISTED]]
    if len(shares) > _LISTED:
        entries.append(("none", f"and {len(shares) - _LISTED} more"))
    rows = -(-len(entries) // 2)
    cells = []
    for index, (colour, name) in enumerate(entries):
        x, y = 190 * (index // rows), 22 * (index % rows)
        cells.append(f'<rect x="{x + 1}" y="{y + 4}" width="22" height="14" fill="{colour}" stroke="#888"/>')
        cells.append(f'<text x="{x + 30}" y="{y + 16}">{escape(name)}</text>')
    size = f'width="380" height="{22 * rows + 4}" viewBox="0 0 380 {22 * rows + 4}"'
    style = 'font-family="sans-serif" font-size="13" fill="#222"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(cells)}</svg>'
