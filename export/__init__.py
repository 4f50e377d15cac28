"""From a checkpoint to a bundle: ONNX graph, engine, parity gate."""

from isnet_trt.export.build import EngineOptions, EvidenceOptions, PrecisionOptions, build

__all__ = ["EngineOptions", "EvidenceOptions", "PrecisionOptions", "build"]
