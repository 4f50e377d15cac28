"""Evaluation on labelled pictures: what `python -m isnet_trt.evaluate` is made of. No torch where none is needed."""
