"""An HTTP service around one bundle: service.py BUNDLE [--host HOST] [--port PORT] [--preset PRESET] [--threads N]

    POST /labels    an encoded picture -> its label map as PNG, class ids, 8 bits (16 above 256 classes)
    POST /shares    an encoded picture -> JSON: size, share of the pixels and name of each class, seconds by stage
    GET  /metrics   call statistics as Prometheus scrapes them
    GET  /health    200 while the service answers

Standard library, OpenCV and isnet_trt only. Each connection has a thread of its own; the segmenter computes one picture
at a time, and no more than --waiting requests are let in: further ones are answered with 503 and Retry-After. SIGTERM
and Ctrl-C finish the requests that are running and then end the process with status 0. There is neither TLS nor a
check of who asks: on an open network it belongs behind a proxy that has both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2

from isnet_trt import ImageError, IsnetError, Segmentation, Segmenter

LARGEST_BODY = 64 << 20
"""Bytes of an encoded picture; the segmenter limits its pixels (docs/pictures.md)."""
IDLE_SECONDS = 30
"""A client that sends nothing for so long loses its connection."""
LINGER_SECONDS = 2
"""Wait for the rest of a refused request's body."""


class Refused(Exception):
    """A request that is answered with an HTTP error: its status and the reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Service(ThreadingHTTPServer):
    """A segmenter and the requests that may wait for it; ``server_close`` waits for those that run."""

    daemon_threads = False

    def __init__(self, address: tuple[str, int], segmenter: Segmenter, waiting: int = 8) -> None:
        super().__init__(address, Handler)
        self.segmenter = segmenter
        self.places = threading.BoundedSemaphore(waiting)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Service
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        """Answer /metrics and /health."""
        if self.path == "/metrics":
            text = self.server.segmenter.stats().prometheus()
            self.answer(HTTPStatus.OK, text.encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif self.path == "/health":
            self.answer(HTTPStatus.OK, b"ok\n", "text/plain")
        else:
            self.refuse(HTTPStatus.NOT_FOUND, f"GET {self.path}: there are /metrics and /health")

    def do_POST(self) -> None:
        """Segment the picture in the body for /labels and /shares."""
        try:
            if self.path not in ("/labels", "/shares"):
                raise Refused(HTTPStatus.NOT_FOUND, f"POST {self.path}: there are /labels and /shares")
            picture = self.body()
            segmentation = self.segmented(picture)
        except Refused as error:
            self.refuse(error.status, str(error))
        except ImageError as error:
            self.refuse(HTTPStatus.BAD_REQUEST, str(error))
        except IsnetError as error:
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        else:
            if self.path == "/labels":
                self.answer(HTTPStatus.OK, cv2.imencode(".png", segmentation.labels)[1].tobytes(), "image/png")
            else:
                self.answer(HTTPStatus.OK, shares(segmentation), "application/json")

    def body(self) -> bytes:
        """What the client sends, all of it."""
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request names no Content-Length")
        if int(length) > LARGEST_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes; the limit is {LARGEST_BODY}")
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise Refused(HTTPStatus.BAD_REQUEST, f"{len(content)} bytes of {length} arrived")
        return content

    def segmented(self, picture: bytes) -> Segmentation:
        """The picture's segmentation, when its turn has come."""
        if not self.server.places.acquire(blocking=False):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are waiting")
        try:
            return self.server.segmenter(picture)
        finally:
            self.server.places.release()

    def answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        """Send status, headers and content."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status: HTTPStatus, reason: str) -> None:
        """Send an error as JSON; the connection ends, since the rest of the body may still be on its way."""
        self.close_connection = True
        self.answer(status, json.dumps({"error": reason}).encode(), "application/json")
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(LINGER_SECONDS)
        # Closing a socket with unread bytes resets the connection, and the client may lose the answer.
        left = 2 * LARGEST_BODY
        with contextlib.suppress(OSError):
            while left > 0 and (content := self.connection.recv(1 << 20)):
                left -= len(content)


def shares(segmentation: Segmentation) -> bytes:
    """A segmentation in numbers, as JSON."""
    height, width = segmentation.labels.shape
    found = segmentation.shares().items()
    classes = [{"id": number, "name": segmentation.names[number], "share": share} for number, share in found]
    result = {"height": height, "width": width, "classes": classes, "seconds": segmentation.seconds}
    return json.dumps(result).encode()


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    parser.add_argument("--preset", default="default", help="default or ms-flip")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--waiting", type=int, default=8, help="requests that may run and wait at once (default: 8)")
    args = parser.parse_args(arguments)
    try:
        segmenter = Segmenter.open(args.bundle, preset=args.preset, threads=args.threads)
    except IsnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with segmenter, Service((args.host, args.port), segmenter, args.waiting) as service:

        def end(*_: object) -> None:
            # `shutdown` waits for the loop that this thread runs.
            threading.Thread(target=service.shutdown).start()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        host, port = service.server_address[:2]
        print(f"{segmenter!r} at http://{host}:{port}", flush=True)
        service.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
