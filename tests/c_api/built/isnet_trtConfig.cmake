# find_package(isnet_trt) inside a project that compiles the library itself: its target exists already.
