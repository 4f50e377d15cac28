"""What a service pays for `import isnet_trt`."""

from __future__ import annotations

import pytest
from children import run_python

HEAVY = ("torch", "onnx", "onnxruntime", "triton", "cuda", "tensorrt", "tensorrt_rtx", "polygraphy")
LIMIT = 0.5
"""Seconds of processor time, which other processes do not lengthen much, and the best of some tries."""
CODE = """
import sys, time
start = time.process_time()
{statement}
print(time.process_time() - start, *sorted({{name.split(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize("statement", ["import isnet_trt", "from isnet_trt import Segmenter, Segmentation"])
def test_import_is_light_and_quick(statement):
    seconds = []
    for _ in range(6):
        took, *modules = run_python("-c", CODE.format(statement=statement), check=True).stdout.split()
        assert not set(HEAVY) & set(modules)
        seconds.append(float(took))
        if seconds[-1] < LIMIT:
            return
    pytest.fail(f"{statement!r} takes {min(seconds):.2f} s")


def test_names_are_found_and_unknown_ones_refused():
    import isnet_trt

    assert all(getattr(isnet_trt, name) is not None for name in isnet_trt.__all__)
    with pytest.raises(AttributeError, match="Segmentor"):
        _ = isnet_trt.Segmentor
