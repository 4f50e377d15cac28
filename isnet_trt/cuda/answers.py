"""The network's answers once they are in host memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.steps import FLOAT, Plan
from isnet_trt.errors import EngineError


def check_answers(made: Plan, flags: NDArray[np.uint8]) -> None:
    """Refuse answers that are no numbers, by the flags that the kernel ``finite`` left for each region.

    Raises:
        EngineError: there are NaN or infinite values.
    """
    for region, flag in zip(made.regions, flags.view(np.int32), strict=True):
        if flag:
            raise EngineError(
                f"the network's answer to an input of {(region.batch, 3, *region.window)} has NaN or infinite values; "
                "if the engine is of low precision, build it again with --precision fp32"
            )


def split_answers(made: Plan, logits: NDArray[np.uint8], classes: int) -> list[NDArray[np.float32]]:
    """Copies of each window's answer (K, h, w), in the order of the queue, from the bytes of the buffer "logits"."""
    found = []
    for which, slot in made.slots:
        region = made.regions[which]
        shape = (classes, *region.coarse)
        size = FLOAT * shape[0] * shape[1] * shape[2]
        begin = region.offset + slot * size
        found.append(logits[begin : begin + size].view(np.float32).reshape(shape).copy())
    return found
