"""``python -m isnet_trt.build``; the command is `isnet_trt.commands.build`."""

from isnet_trt import cli
from isnet_trt.commands.build import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main))
