"""``python -m isnet_trt.evaluate``; the command is `isnet_trt.commands.evaluate`."""

from isnet_trt import cli
from isnet_trt.commands.evaluate import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main))
