"""``python -m isnet_trt.training.recipes``: the table of recipes; the command is `isnet_trt.recipes.__main__`."""

import sys

from isnet_trt import cli
from isnet_trt.recipes.__main__ import main

if __name__ == "__main__":
    sys.exit(cli.run(main))
