"""What every kernel trial shares: poisoned outputs with guards around them, and how far a result may be off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.forms import Form
from benchmarks.kernel_cost import Cost

GUARD = 64
"""Elements before and behind an output that no kernel may touch."""
LEVELS = {"fp32": (1e-5, 1e-4), "fp16": (2e-3, 2e-2), "bf16": (1.5e-2, 1.5e-1)}
"""Type -> the most that ‖made − wanted‖ / ‖wanted‖ and the worst element over the root mean square may be.

float32 products are exact to 1e-7; float16 and bfloat16 round weights and results to 2^-11 and 2^-8."""
SIZES = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Bytes per value."""


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


class Trial(Protocol):
    """One kernel, or the few that belong together, on one set of random inputs.

    Attributes:
        outputs: all that is written.
        cost: of a launch, for its floor.
    """

    outputs: Sequence[Output]
    cost: Cost

    def launch(self) -> None:
        """Queue the work."""
        ...

    def reference(self) -> Any:
        """What the outputs must be, in float64; it depends on the inputs alone, not on the form of launching."""
        ...

    def deviations(self, wanted: Any) -> Iterator[Deviation]:
        """The outputs against `reference`'s answer."""
        ...


class Output:
    """A tensor to be written, poisoned, with guards before and behind it."""

    def __init__(self, device: str, shape: Sequence[int], dtype: str) -> None:
        import torch

        kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.get(dtype)
        kind = kind or {"i32": torch.int32, "u8": torch.uint8, "u16": torch.uint16}[dtype]
        self.dtype = dtype
        self._all = torch.empty(int(np.prod(shape)) + 2 * GUARD, dtype=kind, device=device)
        self.tensor = self._all[GUARD:-GUARD].view(*shape)

    def poison(self) -> None:
        """What no kernel writes: NaN, -7, or the largest label."""
        import torch

        # PyTorch fills few unsigned types on a GPU; the bits of -1 are those of the largest label.
        flat = self._all.view(torch.int16) if self.dtype == "u16" else self._all
        flat.fill_({"i32": -7, "u8": 255, "u16": -1}.get(self.dtype, float("nan")))

    def values(self) -> NDArray[Any]:
        """A copy: float64 of floats, integers as they are."""
        return numbers(self.tensor)

    def guards(self) -> NDArray[Any]:
        """The elements around it."""
        flat = self._all
        return np.concatenate([numbers(flat[:GUARD]), numbers(flat[-GUARD:])])

    def bits(self) -> bytes:
        """The content as it is in memory."""
        import torch

        return bytes(self.tensor.contiguous().view(torch.uint8).cpu().numpy())


def numbers(tensor: Any) -> NDArray[Any]:
    """A tensor in numpy: floats as float64, integers as they are."""
    return np.asarray(tensor.double().cpu().numpy() if tensor.is_floating_point() else tensor.cpu().numpy())


def normal(form: Form, seed: int, shape: Sequence[int], dtype: str = "fp32", gain: float = 1.0) -> Any:
    """Random normal values on the form's device, of a type of `isnet_trt.cuda.element_types.FLOATS`."""
    import torch

    generator = torch.Generator(form.device).manual_seed(seed)
    made = gain * torch.randn(*shape, generator=generator, device=form.device)
    return made.to({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype])


def tensor(form: Form, array: NDArray[Any]) -> Any:
    """A numpy array on the form's device."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(form.device)


def compared(what: str, made: NDArray[Any], wanted: NDArray[Any], dtype: str) -> Iterator[Deviation]:
    """Relative distance, and the worst element over the root mean square."""
    norm, worst = LEVELS[dtype]
    scale = max(float(np.sqrt(np.mean(np.square(wanted)))), 1e-30)
    distance = np.abs(made - wanted)
    yield Deviation(f"{what}: relative error", float(np.sqrt(np.mean(np.square(distance)))) / scale, norm)
    yield Deviation(f"{what}: worst element", float(distance.max()) / scale, worst)


def labelled(made: NDArray[Any], scores: NDArray[np.float64], margin: float = 1e-4) -> Iterator[Deviation]:
    """Labels against scores (K, H, W): all that are clear must be right; nearly all must be clear."""
    best = np.partition(scores, -2, axis=0)[-2:]
    clear = best[1] - best[0] > margin
    wrong = made.astype(np.int64) != scores.argmax(axis=0)
    yield Deviation("wrong labels of clear pixels", float(wrong[clear].mean()) if clear.any() else np.nan, 0.0)
    # In bfloat16 one value in some dozens equals the greatest of its pixel.
    yield Deviation("pixels that are not clear", float(1 - clear.mean()), 0.1)


@dataclass(frozen=True)
class Finding:
    """One run of a trial."""

    deviations: tuple[Deviation, ...]

    @property
    def wrong(self) -> list[str]:
        """What is too far off."""
        return [str(one) for one in self.deviations if not one.good]

    @property
    def worst(self) -> Deviation:
        """What is nearest to its bound, or farthest beyond it."""
        return max(self.deviations, key=lambda d: np.inf if d.value != d.value else d.value / max(d.bound, 1e-30))


def examine(trial: Trial, wanted: Any) -> Finding:
    """Poison, launch, compare; launch once more: the bits must be the same, and the guards untouched."""
    first = _launched(trial)
    found = [*trial.deviations(wanted)]
    again = _launched(trial)
    found.append(Deviation("results that differ between two launches", float(first != again), 0.0))
    touched = sum(_touched(output) for output in trial.outputs)
    found.append(Deviation("elements written outside the outputs", float(touched), 0.0))
    return Finding(tuple(found))


def _launched(trial: Trial) -> list[bytes]:
    for output in trial.outputs:
        output.poison()
    trial.launch()
    _wait(trial)
    return [output.bits() for output in trial.outputs]


def _wait(trial: Trial) -> None:
    import torch

    if trial.outputs[0].tensor.is_cuda:
        torch.cuda.synchronize()


def _touched(output: Output) -> int:
    guards = output.guards()
    poison: Any = {"i32": -7, "u8": 255, "u16": 65535}.get(output.dtype)
    return int((~np.isnan(guards)).sum() if poison is None else (guards != poison).sum())
