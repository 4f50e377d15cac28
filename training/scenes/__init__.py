"""Procedurally drawn street scenes with exact labels: the data of the demo model. numpy and OpenCV only.

python -m isnet_trt.training.scenes --out DIR --count N --size H W --seed S [--labels]
"""

from isnet_trt.training.scenes.compose import Scene, draw_scene

TRAIN_SEED = 1_000_000
"""First scene of the training set; training scenes are TRAIN_SEED + 0, 1, 2, …"""
HELD_OUT_SEED = 9_000_000
"""First scene of the held-out set, whose scenes are counted likewise."""
HELD_OUT_COUNT = 12
"""Held-out scenes that training and evaluation score by default."""
SCENE_SIZE = (512, 1024)
"""(height, width) of the scenes of both sets."""

__all__ = ["HELD_OUT_COUNT", "HELD_OUT_SEED", "SCENE_SIZE", "TRAIN_SEED", "Scene", "draw_scene"]
