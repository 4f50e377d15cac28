"""``python -m isnet_trt.training.data``: look through a dataset; the command is `isnet_trt.datasets.__main__`."""

import sys

from isnet_trt import cli
from isnet_trt.datasets.__main__ import main

if __name__ == "__main__":
    sys.exit(cli.run(main))
