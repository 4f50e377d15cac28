"""NVIDIA's trtexec: the engine alone, without pictures and labels, as its own tool times it; no contender.

Options: docs.nvidia.com/deeplearning/tensorrt, "trtexec" (--onnx, --optShapes, --exportTimes, --fp16 before 11).
"""

from __future__ import annotations

import json
import shutil
import subprocess

from benchmarks.peers.base import Missing, Setup
from benchmarks.peers.networks import exported
from isnet_trt.settings import Size


def seconds(setup: Setup, size: Size) -> list[float]:
    """Seconds of the network on one (height, width) window, one figure per run of trtexec's own loop.

    Raises:
        Missing: trtexec is not installed, there is no checkpoint, or the graph cannot be built; the message ends with
            the end of trtexec's output.
    """
    program = shutil.which("trtexec")
    if program is None:
        raise Missing("trtexec is not installed (it comes with TensorRT's tar and Debian packages)")
    shape = f"image:1x3x{size[0]}x{size[1]}"
    with exported(setup) as (graph, _):
        times = graph.with_name("times.json")
        shapes = [f"--{name}Shapes={shape}" for name in ("min", "opt", "max")]
        command = [program, f"--onnx={graph}", *shapes, f"--shapes={shape}", f"--exportTimes={times}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not times.is_file():
            raise Missing(f"trtexec failed: {(done.stdout + done.stderr)[-500:]}")
        return [float(run["computeMs"]) / 1000 for run in json.loads(times.read_text("utf-8"))]
