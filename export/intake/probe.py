"""Examine a network by running it: sizes, classes, stride, batches, and whether its output can be used.

Every run is under ONNX Runtime without optimisation, on a built-in image normalised as the recipe says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import BuildError, IsnetError, SettingsError, TimeLimitExceeded
from isnet_trt.merging.geometry import coarse_size
from isnet_trt.settings import Size, size_text

Pixels = NDArray[np.float32]
Run = Callable[[Pixels], NDArray]
"""A network: (B, 3, H, W) float32 in, its output."""
MULTIPLES = (1, 2, 4, 8, 14, 16, 28, 32, 64, 128)
"""Candidates for what sizes must be divisible by: strides of convolutional networks, patches of transformers."""
_FIRST_SIZES = ((192, 320), (224, 336), (512, 512), (384, 640))
"""Sizes that most networks take; between them multiples of all `MULTIPLES`."""
_SIDE = 96
"""Sides of further runs have at least so many pixels."""
LEAST_SPREAD = 1e-4
"""Smaller standard deviations are taken as this: where all probabilities are near 0, as those of a detector that finds
nothing, the rounding of the sigmoid would be a large share."""
_RANDOM, MIXED = 1e-5, 1e-3
"""Largest rms difference, in standard deviations, of two runs of one image; and of one alone and in a batch."""


@dataclass(frozen=True)
class Probed:
    """What was found of a network.

    Attributes:
        classes: channels of its output.
        stride: input pixels per output position; the output has ceil(side / stride) positions per side.
        multiple: what sides of its input must be divisible by.
        size: the only (height, width) that it takes; None: any.
        batch: the only number of images that it takes at once; None: any.
    """

    classes: int
    stride: int
    multiple: int = 1
    size: Size | None = None
    batch: int | None = None
    notes: tuple[str, ...] = field(default=())

    def lines(self) -> Iterator[str]:
        """What was found, for people."""
        yield f"classes     {self.classes}"
        yield f"stride      {self.stride}"
        sizes = f"{size_text(self.size)} only" if self.size else "any"
        yield f"sizes       {sizes if self.multiple == 1 or self.size else f'multiples of {self.multiple}'}"
        yield f"batch       {f'{self.batch} image at a time' if self.batch else 'any'}"
        yield from self.notes


@dataclass(frozen=True)
class Prober:
    """A network to examine, and the runs that examine it.

    Attributes:
        call: runs it; any exception means that it does not take its input.
        picture: a normalised image (1, 3, H, W) of a given size.
        classes: number of classes of the recipe.
        source: names the network in messages.
        size, batch: what its input declares to be fixed.
    """

    call: Run
    picture: Callable[[Size], Pixels]
    classes: int
    source: str
    size: Size | None = None
    batch: int | None = None

    def run(self, size: Size) -> NDArray:
        """The output for the built-in image at ``size``."""
        return self.call(self.picture(size))

    def first_run(self) -> tuple[Size, NDArray]:
        """The first size that the stride divides, and its output; without one, the first that shows a stride."""
        reasons: dict[str, str] = {}
        uneven: list[tuple[Size, NDArray]] = []
        for attempt in (self.size,) if self.size else _FIRST_SIZES:
            try:
                output = self.run(attempt)
            except IsnetError:
                raise
            except Exception as error:  # of whatever type: the network does not take this size
                reasons.setdefault(" ".join(str(error).split())[:300], size_text(attempt))
                continue
            self.check_shape(attempt, output)
            # 13 positions for 192 pixels may be steps of 14, the rest left out, or of 15.
            if _divides(stride_of(attempt, output), attempt, output.shape[2:]):
                return attempt, output
            uneven.append((attempt, output))
        for attempt, output in uneven:
            if stride_of(attempt, output):
                return attempt, output
        if uneven:
            attempt, output = uneven[0]
            raise BuildError(
                f"{self.source}: the output for an input of {size_text(attempt)} has {size_text(output.shape[2:])} "
                "positions, which is no whole number of pixels for each; export the network without what resizes its "
                "output to a size of its own"
            )
        reason, where = next(iter(reasons.items()))
        fixed = "; if it was traced for one size, export it with that size fixed (--module: --static H W) and give "
        remedy = "" if self.size else f"{fixed}presets windows of it"
        raise BuildError(f"{self.source} cannot be run on an image of {where}: {reason}{remedy}")

    def check_shape(self, size: Size, output: NDArray) -> None:
        """Refuse outputs that are no float (B, classes, h, w), or have another number of classes than the recipe."""
        shape, text = output.shape, f"{self.source}: the output for an input of {size_text(size)} is {output.shape}"
        if not np.issubdtype(output.dtype, np.floating):
            raise BuildError(
                f"{text} {output.dtype}: these are labels, not scores; name the tensor in front of the arg max with "
                "--output"
            )
        if output.dtype != np.float32:
            raise BuildError(
                f"{text} {output.dtype}, not float32; export the network in float32 and let --precision fp16 or bf16 "
                "convert it"
            )
        if len(shape) != 4 or 0 in shape:
            raise BuildError(
                f"{text}, and not (B, classes, h, w): it is no map of scores, or its classes were squeezed away; name "
                "another with --output, or export the network without what follows its logits"
            )
        if shape[1] != self.classes and shape[3] == self.classes:
            raise BuildError(
                f"{text}: its channels are last, the runtime takes (B, classes, h, w); export it channels first "
                "(tf2onnx: --outputs-as-nchw), or name the tensor in front of the last Transpose with --output"
            )
        if shape[1] != self.classes:
            raise SettingsError(
                f"{text}: {shape[1]} classes, and the recipe describes {self.classes}; the model and the recipe do not "
                "belong together"
            )

    def grid(self, size: Size, output: NDArray) -> tuple[int, int]:
        """Input pixels per output position, and what sides must be divisible by."""
        stride = stride_of(size, output)
        return stride, 1 if self.size else self._multiple(stride)

    def _multiple(self, stride: int) -> int:
        for multiple in MULTIPLES:
            size = odd_multiples(multiple)
            try:
                shape = self.run(size).shape
            except TimeLimitExceeded:
                raise
            except Exception:  # of whatever type: the network does not take this size
                continue
            if shape[1:] == (self.classes, *coarse_size(size, stride)):
                return multiple
        raise BuildError(
            f"{self.source} takes no sides divisible by any of {', '.join(map(str, MULTIPLES))} with an output of "
            f"ceil(side / {stride}) positions; export it with a fixed size and give presets windows of that size"
        )

    def check_values(self, size: Size, output: NDArray) -> None:
        """Refuse outputs that are not finite, or change from run to run."""
        if not np.isfinite(output).all():
            raise BuildError(
                f"{self.source}: the output for a normalised image of {size_text(size)} has NaN or infinite values: "
                "its weights are damaged, or mean and scale of the recipe are not its own"
            )
        if (difference := rms_difference(self.run(size), output)) > _RANDOM:
            raise BuildError(
                f"{self.source}: two runs on one image differ by {difference:.1e} of the output's standard deviation: "
                "the network is random (dropout, noise); export it in evaluation mode (module.eval())"
            )

    def takes_batches(self, size: Size, output: NDArray) -> bool:
        """Whether the network takes two images at once; refuses one whose output depends on the other image."""
        try:
            both = self.call(self.pictures(size, 2))
        except TimeLimitExceeded:
            raise
        except Exception:  # of whatever type: the network does not take two images
            return False
        if both.shape != (2, *output.shape[1:]):
            raise BuildError(
                f"{self.source}: the output for two images is {both.shape}, and {output.shape} for one; export it so "
                "that only the first size depends on the number of images"
            )
        self.check_independent(both, output)
        return True

    def pictures(self, size: Size, count: int) -> Pixels:
        """The built-in image and ``count`` - 1 others."""
        image = self.picture(size)
        # The same image mirrored and darker: statistics over the batch differ from those of the image alone.
        return np.concatenate([image, *[image[..., ::-1] * np.float32(0.5)] * (count - 1)])

    def check_independent(self, outputs: NDArray, output: NDArray) -> None:
        """Refuse a network whose output for the first of several images is not ``output``, that for it alone."""
        if (difference := rms_difference(outputs[:1], output)) > MIXED:
            raise BuildError(
                f"{self.source}: the output for an image depends on the other images of its batch (by {difference:.1e} "
                "of its standard deviation): batch normalisation in training mode? Export it in evaluation mode "
                "(module.eval())"
            )


def probe(network: Prober) -> tuple[Probed, NDArray]:
    """Examine a network; what was found, and its output for the built-in image.

    Raises:
        BuildError: the network takes none of the sizes that were tried, or its output cannot be used; the message says
            why and what to do.
    """
    size, output = network.first_run()
    stride, multiple = network.grid(size, output)
    network.check_values(size, output)
    batch = network.batch
    if batch is None and not network.takes_batches(size, output):
        batch = 1
    return Probed(output.shape[1], stride, multiple, network.size, batch), output


def stride_of(size: Size, output: NDArray) -> int:
    """Input pixels per output position; 0 where that is no whole number."""
    grid = output.shape[2:]
    fitting = [stride for stride in range(1, max(size) + 1) if coarse_size(size, stride) == grid]

    def rank(stride: int) -> tuple[bool, bool]:  # 4 positions for 97 pixels: 25 to 32 would fit, and 32 is likely
        return _divides(stride, size, grid), stride.bit_count() == 1

    return max(fitting, key=rank, default=0)


def _divides(stride: int, size: Size, grid: tuple[int, ...]) -> bool:
    return tuple(stride * side for side in grid) == size


def odd_multiples(multiple: int) -> Size:
    """Two sides that are odd multiples, so that nothing larger divides both."""
    factor = -(-_SIDE // multiple) | 1
    return multiple * factor, multiple * (factor + 2)


def rms_difference(values: NDArray, reference: NDArray) -> float:
    """Root-mean-square difference in standard deviations of ``reference``; infinite where it is not finite."""
    difference = values.astype(np.float64) - reference
    rms = float(np.sqrt(np.mean(difference**2)) / max(float(reference.std()), LEAST_SPREAD))
    return rms if np.isfinite(rms) else float("inf")
