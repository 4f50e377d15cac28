"""What all trials of kernels share: how far a result may be from its float64 reference, and how it is examined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.kernel_cost import Cost
from isnet_trt.cuda.element_types import ELEMENT_TYPES, FLOATS
from tests.kernels.variants import TORCH, Output, Variant

TOLERANCES = {"fp32": (3e-6, 5e-5), "fp16": (1e-3, 2e-2), "bf16": (6e-3, 1e-1)}
"""Type -> the most that ‖result − reference‖ / ‖reference‖ and the worst element over the root mean square may be.

float32 products are exact to 1e-7; float16 and bfloat16 round weights and results to 2^-11 and 2^-8. The largest on an
H100 were 3.6e-7 and 2.3e-5, 2.5e-4 and 7.3e-3, 1.9e-3 and 2.9e-2."""
BYTES = {name: ELEMENT_TYPES[name].size for name in FLOATS}


class Deviation(NamedTuple):
    """How far a result is off; NaN is too far."""

    what: str
    value: float
    bound: float

    @property
    def good(self) -> bool:
        return bool(self.value <= self.bound)

    def __str__(self) -> str:
        return f"{self.what} {self.value:.2g} (at most {self.bound:.2g})"


@dataclass(frozen=True)
class Trial:
    """One kernel, or the few that belong together, on one set of random inputs.

    Attributes:
        launch: queues the work.
        outputs: all that is written.
        reference: what the outputs must be, in float64; it depends on the inputs alone, not on the variant.
        compare: the outputs against the reference's result.
        cost: of a launch, for its floor.
        parts: how many parts an inner loop is cut into.
    """

    launch: Callable[[], None]
    outputs: Sequence[Output]
    reference: Callable[[], Any]
    compare: Callable[[Any], Iterator[Deviation]]
    cost: Cost
    parts: int = 1


def examine(trial: Trial, reference: Any, twice: bool = True) -> list[Deviation]:
    """Poison, launch, compare; with ``twice`` once more: the bits must be the same. The guards must be untouched."""
    first = _launch(trial)
    deviations = [*trial.compare(reference)]
    if twice:
        different = sum(a != b for a, b in zip(first, _launch(trial), strict=True))
        deviations.append(Deviation("results that differ between two launches", float(different), 0.0))
    touched = sum(output.touched_guards() for output in trial.outputs)
    return [*deviations, Deviation("elements written outside the outputs", float(touched), 0.0)]


def wrong(deviations: Sequence[Deviation]) -> list[str]:
    """Those beyond their bounds."""
    return [str(one) for one in deviations if not one.good]


def nearest(deviations: Sequence[Deviation]) -> Deviation:
    """The one nearest to its bound, or farthest beyond it."""
    return max(deviations, key=lambda d: np.inf if d.value != d.value else d.value / max(d.bound, 1e-30))


def _launch(trial: Trial) -> list[bytes]:
    for output in trial.outputs:
        output.poison()
    trial.launch()
    if trial.outputs[0].tensor.is_cuda:
        torch.cuda.synchronize()
    return [bytes(output.tensor.contiguous().view(torch.uint8).cpu().numpy()) for output in trial.outputs]


def numbers(tensor: torch.Tensor | Output) -> NDArray[Any]:
    """A copy in numpy: floats as float64, integers as they are."""
    tensor = tensor.tensor if isinstance(tensor, Output) else tensor
    return np.asarray(tensor.double().cpu().numpy() if tensor.is_floating_point() else tensor.cpu().numpy())


def normal(variant: Variant, seed: int, shape: Sequence[int], dtype: str = "fp32", gain: float = 1.0) -> torch.Tensor:
    """Random normal values on the variant's device."""
    generator = torch.Generator(variant.device).manual_seed(seed)
    return (gain * torch.randn(*shape, generator=generator, device=variant.device)).to(TORCH[dtype])


def on_device(variant: Variant, array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(variant.device)


def relative(what: str, values: NDArray[Any], reference: NDArray[Any], dtype: str) -> Iterator[Deviation]:
    """Relative distance, and the worst element over the root mean square."""
    norm, worst = TOLERANCES[dtype]
    scale = max(float(np.sqrt(np.mean(np.square(reference)))), 1e-30)
    distance = np.abs(values - reference)
    yield Deviation(f"{what}: relative error", float(np.sqrt(np.mean(np.square(distance)))) / scale, norm)
    yield Deviation(f"{what}: worst element", float(distance.max()) / scale, worst)


def labels(output: Output, width: int, scores: NDArray[np.float64], margin: float = 1e-4) -> Iterator[Deviation]:
    """Label maps in rows longer than ``width``, against scores (K, H, W): all clear labels right, nearly all clear."""
    values = numbers(output)
    outside = (values[:, width:] != Output.POISON[output.dtype]).sum()
    yield Deviation("elements written between the rows", float(outside), 0.0)
    best = np.partition(scores, -2, axis=0)[-2:]
    clear = best[1] - best[0] > margin
    differ = values[:, :width].astype(np.int64) != scores.argmax(axis=0)
    yield Deviation("wrong labels of clear pixels", float(differ[clear].mean()) if clear.any() else np.nan, 0.0)
    # In bfloat16 one value in some dozens equals the greatest of its pixel.
    yield Deviation("pixels that are not clear", float(1 - clear.mean()), 0.1)


def step(coarse: int, fine: int) -> float:
    """Input positions per output position, rounded as the host rounds it."""
    return float(np.float32(coarse) / np.float32(fine))
