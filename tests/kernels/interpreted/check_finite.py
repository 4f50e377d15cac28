"""`finite` against its reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreter import tensor

from isnet_trt.kernels import finite


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("count", "place"), [(1, 0), (4096, 4095), (9001, 8999), (9001, 0)])
def test_one_value_is_enough(dtype, bad, count, place):
    values = np.linspace(-6e4, 6e4, count + 5, dtype=np.float32)
    values[count:] = np.nan  # beyond the end
    if bad is not None:
        values[place] = bad
    flags = torch.tensor([7, 0, 7], dtype=torch.int32)
    finite.launch_finite(dtype).run(values=tensor(values, dtype), flag=flags, at=1, count=count)
    assert flags.tolist() == [7, finite.reference(values[:count]), 7]
    assert finite.reference(values[:count]) == (bad is not None)
