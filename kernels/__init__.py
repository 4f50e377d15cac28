"""Triton kernels of the context modules and of everything between the picture and the label map.

`region_pool` and `attention` are the network's two context operations; `gather_windows`, `accumulate` and `finish` are
the work before and after the network. Each module holds the formula, the kernel and a plain numpy reference;
`isnet_trt.cuda.kernel_specs` declares arguments and grids, and `compile` makes PTX and cubin ahead of time. Importing
this package imports neither triton nor torch: triton is loaded by the modules that hold kernels.
"""
