"""Training: the PyTorch model, checkpoints, augmentation, the trainer, and drawn street scenes."""

from pathlib import Path

DEMO_CHECKPOINT = Path(__file__).parent / "assets" / "isnet_demo.pth"
"""The demo model's weights. A checkout and the source distribution have them; they would be most of a wheel."""
