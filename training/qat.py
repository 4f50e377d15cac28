"""``python -m isnet_trt.training.qat``: fine-tuning for eight bits; the command is `isnet_trt.commands.qat`."""

import sys

from isnet_trt import cli
from isnet_trt.commands.qat import main

if __name__ == "__main__":
    sys.exit(cli.run(main))
