"""Evaluation on labelled pictures, the parts of `python -m isnet_trt.evaluate`; bundles are evaluated without torch."""
