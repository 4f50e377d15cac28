"""Downloads from a server on 127.0.0.1: whole bodies, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from children import PATIENCE

from isnet_trt.errors import ImageError
from isnet_trt.pictures import download
from isnet_trt.pictures.download import fetch, is_url, url_host, url_stem, without_password
from isnet_trt.pictures.files import LIMIT_VARIABLE
from isnet_trt.pictures.finding import find_images

BODY = bytes(range(256)) * 1000


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stop = threading.Event()
    secret = ""

    def do_GET(self) -> None:
        self.close_connection = True
        getattr(self, "_" + self.path.strip("/").partition("?")[0].partition("/")[0].partition(".")[0])()

    def _start(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def _whole(self) -> None:
        self._start(200, Content_Length=len(BODY))
        self.wfile.write(BODY)

    def _unannounced(self) -> None:
        self._start(200)
        self.wfile.write(BODY)

    def _chunked(self, end: bytes = b"0\r\n\r\n") -> None:
        self._start(200, Transfer_Encoding="chunked")
        for start in range(0, len(BODY), 10_000):
            part = BODY[start : start + 10_000]
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.write(end)

    def _chunked_cut(self) -> None:
        self._chunked(b"")

    def _cut(self) -> None:
        self._start(200, Content_Length=len(BODY) + 5)
        self.wfile.write(BODY)

    def _empty(self) -> None:
        self._start(200, Content_Length=0)

    def _missing(self) -> None:
        self._start(404, Content_Length=0)

    def _broken(self) -> None:
        self._start(503, Content_Length=0)

    def _redirect(self) -> None:
        self._start(302, Location="/whole", Content_Length=0)

    def _to_file(self) -> None:
        self._start(301, Location=f"file://{self.secret}", Content_Length=0)

    def _to_ftp(self) -> None:
        self._start(307, Location="ftp://127.0.0.1/photo.jpg", Content_Length=0)

    def _to_data(self) -> None:
        self._start(303, Location="data:,text", Content_Length=0)

    def _circle(self) -> None:
        self._start(302, Location="/circle", Content_Length=0)

    def _stalled(self) -> None:
        self._start(200, Content_Length=len(BODY))
        self.wfile.write(BODY[:1000])
        self.stop.wait(PATIENCE)

    def _silent(self) -> None:
        self.stop.wait(PATIENCE)

    def _slow(self) -> None:
        self._start(200, Content_Length=len(BODY))
        with suppress(ConnectionError):  # the reader gives up
            for byte in BODY:
                self.wfile.write(bytes([byte]))
                if self.stop.wait(0.05):
                    return

    def _nonsense(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server that runs while the tests of this module do."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    _Handler.stop.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize("path", ["whole", "unannounced", "chunked", "redirect", "whole/a b/Straße.jpg?größe=1 2#x"])
def test_whole_bodies(server: str, path: str) -> None:
    assert fetch(f"{server}/{path}") == BODY


REFUSED = {
    "missing": "cannot be downloaded: the server answered 404 Not Found",
    "broken": "the server answered 503 Service Unavailable",
    "cut": f"is cut off: {len(BODY)} of {len(BODY) + 5} bytes came",
    "chunked_cut": "cannot be downloaded: IncompleteRead",
    "empty": "the server's answer is empty",
    "to_file": "redirects to file://.*, which is no http",
    "to_ftp": "redirects to ftp://127.0.0.1/photo.jpg, which is no http",
    "to_data": "redirects to data:,text, which is no http",
    "circle": "the server answered 302 .*infinite loop",
    "nonsense": "cannot be downloaded: ",
}


@pytest.mark.parametrize("path", REFUSED)
def test_refused(server: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_bytes(BODY)
    monkeypatch.setattr(_Handler, "secret", str(tmp_path / "secret"))
    with pytest.raises(ImageError, match=f"(?s)^{server}/{path}.*{REFUSED[path]}") as error:
        fetch(f"{server}/{path}")
    assert str(error.value).count(server) == 1


@pytest.mark.parametrize("path", ["silent", "stalled"])
def test_a_server_that_stops(server: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with pytest.raises(ImageError, match=f"{path} cannot be downloaded: the server sent nothing for 0.2 s"):
        fetch(f"{server}/{path}")


def test_a_server_that_takes_its_time(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TOTAL_TIMEOUT", 0.3)
    with pytest.raises(ImageError, match=r"not complete after 0\.3 s"):
        fetch(f"{server}/slow")


def test_limits(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, str(len(BODY) // 4))
    assert fetch(f"{server}/whole") == BODY
    monkeypatch.setenv(LIMIT_VARIABLE, str(len(BODY) // 4 - 1))
    for path, message in (("whole", f"too large: {len(BODY)} bytes"), ("chunked", "too large: more than")):
        with pytest.raises(ImageError, match=message):
            fetch(f"{server}/{path}")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.jpg", "http://", "http://[::1", "http://127.0.0.1:port/x"])
def test_addresses_without_a_server(url: str) -> None:
    with pytest.raises(ImageError) as error:
        fetch(url)
    assert str(error.value).startswith(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://[::1/a.jpg", r"http://\[::1/a\.jpg: not a valid URL"),
        ("https://me:word@example.org/a.jpg", r"https://me:\*\*\*@example\.org/a\.jpg: a user and password"),
        ("https://me@example.org/a.jpg", "https://me@example.org/a.jpg: a user"),
    ],
)
def test_urls_that_are_refused_before_anything_is_read(url: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        find_images([url])


def test_messages_have_no_password() -> None:
    assert without_password("rtsp://me:w:ord@10.0.0.1/1") == "rtsp://me:***@10.0.0.1/1"
    unchanged = ["rtsp://10.0.0.1:554/a@b", "http://me@x/y", "a:b@c.mp4", "http://x/a:b@c"]
    assert list(map(without_password, unchanged)) == unchanged


def test_names() -> None:
    assert is_url("HTTPS://example.org/x")
    assert not any(map(is_url, ("file:///etc/passwd", "ftp://x/y", "http", "photos/http://x", "//x/y.jpg")))
    assert url_stem("https://example.org/a/photo.1.jpg?size=3#part") == "photo.1"
    assert url_stem("https://example.org/a/gro%C3%9F%2F..%00%1B.jpg") == "groß_..__"
    assert [url_stem(f"https://example.org{path}") for path in ("", "/", "/a/", "/.jpg")] == ["image"] * 3 + [".jpg"]
    assert len(url_stem("https://example.org/" + "x" * 400)) == 100
    assert url_host("https://user:word@example.org:8080/x.jpg") == "example.org_8080"
