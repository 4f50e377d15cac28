"""Bundles: the folder that carries everything a service needs to run one model."""

from isnet_trt.bundle.draft import Draft, check_target, new_bundle
from isnet_trt.bundle.files import Bundle, content_digest, read_bundle, sha256
from isnet_trt.bundle.manifest import (
    CUDA_ONNX,
    ENGINE,
    KERNELS,
    MANIFEST,
    ONNX,
    REPORT,
    SCHEMA_VERSION,
    TIMING_CACHE,
    CheckpointInfo,
    FileInfo,
    Manifest,
    Tuning,
)
