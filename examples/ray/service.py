"""Serve a bundle with Ray Serve: service.py BUNDLE [--port PORT] [--replicas LEAST MOST] [--gpus G]

POST the content of an image file to http://127.0.0.1:PORT/segment: the label map is answered as PNG. Inference settings
are query parameters, such as ?preset=ms-flip. Without a cluster (RAY_ADDRESS) one is started on this machine.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

import ray
from ray import serve

from isnet_trt.integrations.ray_serve import application


def main() -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--replicas", nargs=2, type=int, default=(1, 1), metavar=("LEAST", "MOST"))
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a replica, such as 0.5 (default: 0)")
    arguments = parser.parse_args()
    end = threading.Event()
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    app = application(arguments.bundle, replicas=tuple(arguments.replicas), num_gpus=arguments.gpus)
    serve.run(app, route_prefix="/segment")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    print(f"serving at http://127.0.0.1:{arguments.port}/segment", flush=True)
    end.wait()
    serve.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
