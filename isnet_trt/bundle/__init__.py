"""Bundles: the folder that carries everything a service needs to run one model."""

from isnet_trt.bundle.draft import Draft, check_target, new_bundle
from isnet_trt.bundle.files import Bundle, read_bundle, sha256
from isnet_trt.bundle.manifest import (
    ENGINE,
    KERNELS,
    MANIFEST,
    ONNX,
    SCHEMA_VERSION,
    TIMING_CACHE,
    CheckpointInfo,
    FileInfo,
    Manifest,
    Tuning,
)
