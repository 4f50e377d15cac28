"""Triton kernels of the context modules and of everything between the picture and the label map."""
