"""Training data: the datasets on disk or drawn, and what happens to a picture before the network sees it.

``python -m isnet_trt.training.data check NAME DIR`` looks through a dataset before training.
"""
