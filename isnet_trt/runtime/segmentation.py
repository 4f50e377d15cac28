"""The result of a segmenter's call."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isnet_trt.pictures.files import Image
from isnet_trt.pictures.formats import Order
from isnet_trt.pictures.overlay import class_shares, draw
from isnet_trt.pictures.preprocess import check_image


@dataclass(frozen=True)
class Segmentation:
    """A label map and what belongs to it. Every array is the caller's own.

    Attributes:
        labels: class ids (H, W) at the source's size; uint8, or uint16 above 256 classes.
            Where they were written to GPU memory, the object that was passed as ``out``.
        names: class i is called ``names[i]``.
        palette: colours (K, 3), uint8 RGB.
        probabilities: (K, H, W) float32 where requested: the merged probabilities, or the softmax of merged logits.
        scores: (P, K) float32 at the chosen pixels: merged logits, or probabilities where those were merged.
        seconds: time spent by stage.
    """

    labels: NDArray[np.unsignedinteger]
    names: tuple[str, ...]
    palette: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def shares(self) -> dict[int, float]:
        """Class id -> share of the pixels (0..1), of the classes that occur, largest first."""
        return class_shares(self.labels, len(self.names))

    def colours(self) -> Image:
        """The label map in palette colours, uint8 (H, W, 3) RGB."""
        return self.palette[self.labels]

    def overlay(self, image: Image, alpha: float = 0.5, legend: bool = True, *, order: Order = "rgb") -> Image:
        """``image`` (uint8 (H, W, 3), the one that was segmented) blended with the label colours, uint8 RGB.

        ``alpha`` (0..1) is the share of the colours. With ``legend`` a panel with colour, name and share of the
        classes that occur is added on the right; below a height of about 180 pixels it is taller than the picture.

        Raises:
            ImageError: ``image`` has another size than the label map.
            SettingsError: ``alpha`` is out of range.
        """
        return draw(check_image(image, order), self.labels, self.names, self.palette, alpha, legend)
