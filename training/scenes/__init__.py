"""Procedurally drawn street scenes with exact labels: the data of the demo model. numpy and OpenCV only.

python -m isnet_trt.training.scenes --out DIR --count N --size H W --seed S [--labels]
"""

from isnet_trt.training.scenes.compose import Scene, draw_scene

__all__ = ["Scene", "draw_scene"]
