"""All stages from the source image to the label map on an NVIDIA GPU.

Importing the package or any module of it loads numpy only; cuda-bindings and pycuda are imported when a device is
opened, after the driver was found.
"""
