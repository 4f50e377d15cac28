"""What isnet_trt is measured against, each in its best fair form."""
