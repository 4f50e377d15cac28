"""From a checkpoint to a bundle: ONNX graph, engine, parity gate."""

from isnet_trt.export.build import build

__all__ = ["build"]
