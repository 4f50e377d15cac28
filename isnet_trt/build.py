"""``python -m isnet_trt.build``; the command is `isnet_trt.commands.build`."""

import sys

from isnet_trt import cli
from isnet_trt.commands.build import main

if __name__ == "__main__":
    sys.exit(cli.run(main))
