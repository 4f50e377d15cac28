"""``python -m isnet_trt.training.data``: look through a dataset; the command is `isnet_trt.datasets.check`."""

from isnet_trt import cli
from isnet_trt.datasets.check import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main))
