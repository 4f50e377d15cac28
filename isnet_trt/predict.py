"""``python -m isnet_trt.predict``; the command is `isnet_trt.commands.predict`."""

from isnet_trt import cli
from isnet_trt.commands.predict import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main))
