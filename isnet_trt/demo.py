"""``python -m isnet_trt.demo``: the demonstration of `make demo`; the command is `isnet_trt.commands.demo`."""

import sys

from isnet_trt import cli
from isnet_trt.commands.demo import main

if __name__ == "__main__":
    sys.exit(cli.run(main))
