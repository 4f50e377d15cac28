"""The command lines. Each is also a module of the package's root, such as ``python -m isnet_trt.build``."""
