"""Running launches on numpy arrays in Triton's interpreter."""

from __future__ import annotations

import os

import numpy as np
import torch
from interpreted_fma import round_once

assert os.environ.get("TRITON_INTERPRET") == "1", "run these files through tests/kernels/test_interpreted.py"
torch.set_num_threads(1)
round_once()

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
POISON = 7777.0
"""What results hold before a launch: what a kernel does not write is seen."""


def tensor(array, dtype=None):
    """A copy of a numpy array as a tensor, of a type of `launch.TYPES` if given."""
    made = torch.from_numpy(np.array(array))
    return made.to(TORCH[dtype]) if dtype else made


def poisoned(*shape, dtype="fp32"):
    """A tensor of results yet to be written."""
    return torch.full(shape, POISON, dtype=TORCH[dtype])


def values(made):
    """A tensor as float32 or integers in numpy."""
    return made.float().numpy() if made.is_floating_point() else made.numpy()
