"""``python -m isnet_trt.demo``: the demonstration of `make demo`; the command is `isnet_trt.commands.demo`."""

from isnet_trt import cli
from isnet_trt.commands.demo import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main))
