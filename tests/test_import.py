"""What a service pays for `import isnet_trt`."""

from __future__ import annotations

import pytest
from children import run_python

HEAVY = ("torch", "onnx", "onnxruntime", "triton", "cuda", "tensorrt", "tensorrt_rtx", "polygraphy")
LIMIT = 4
"""Times the processor time that NumPy and OpenCV take, which the package needs; the best of some tries of both."""
CODE = """
import sys, time
start = time.process_time()
{statement}
print(time.process_time() - start, *sorted({{name.split(".")[0] for name in sys.modules}}))
"""


def imported(statement: str) -> tuple[float, list[str]]:
    """Seconds of processor time that a statement takes in a new process, and the packages that it imports."""
    seconds, *modules = run_python("-c", CODE.format(statement=statement), check=True).stdout.split()
    return float(seconds), modules


@pytest.mark.parametrize("statement", ["import isnet_trt", "from isnet_trt import Segmenter, Segmentation"])
def test_import_is_light_and_quick(statement):
    ours, needed = [], []
    for _ in range(6):
        seconds, modules = imported(statement)
        assert not set(HEAVY) & set(modules)
        ours.append(seconds)
        needed.append(imported("import numpy, cv2")[0])
        if min(ours) < LIMIT * min(needed):
            return
    pytest.fail(f"{statement!r} takes {min(ours):.2f} s, NumPy and OpenCV {min(needed):.2f} s")


def test_names_are_found_and_unknown_ones_refused():
    import isnet_trt

    assert all(getattr(isnet_trt, name) is not None for name in isnet_trt.__all__)
    with pytest.raises(AttributeError, match="Segmentor"):
        _ = isnet_trt.Segmentor
