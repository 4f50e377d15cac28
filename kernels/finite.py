"""Whether logits are all finite.

    flag[at] = 1 if any of values[0 .. count - 1] is NaN or infinite, else as it was

Blocks that find one write the same value, so that no atomics are needed. The caller sets the flag to 0 before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray


def reference(values: NDArray[Any]) -> int:
    """1 if any of ``values`` is no finite number."""
    return int(not np.isfinite(values.astype(np.float32)).all())


@triton.jit
def finite(
    values: tl.tensor,  # (count,)
    flag: tl.tensor,  # int32, several; flag[at] is written
    at: tl.tensor,
    count: tl.tensor,  # int64
    BLOCK: tl.constexpr,
) -> None:
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + i, i < count, 0.0).to(tl.float32)
    # NaN fails every comparison, so it counts as bad as well.
    bad = tl.where(tl.abs(value) < float("inf"), 0, 1)
    if tl.max(bad, 0) != 0:
        tl.store(flag + at, 1)
