"""Download a picture file over http or https, whole and within limits."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from isnet_trt.errors import ImageError
from isnet_trt.pictures.files import max_bytes

TIMEOUT = 30.0
"""Seconds in which a server has to answer and to go on sending."""
TOTAL_TIMEOUT = 300.0
"""Seconds that a download may take in all."""
_CHUNK = 1 << 16
_LONGEST_STEM = 100
_URL_SAFE = "%/:=&?~#+!$,;'@()*[]"
"""Characters that stay as they are in a path or query, beside letters and digits."""


def is_url(text: str) -> bool:
    """Whether ``text`` is an http or https URL."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def check_url(url: str) -> None:
    """Raise ImageError for a URL that is malformed, or names a user, whom a download would not name to the server."""
    try:
        has_user = "@" in urlsplit(url).netloc
    except ValueError as error:
        raise ImageError(f"{without_password(url)}: not a valid URL ({error})") from None
    if has_user:
        reason = "a user and password in a URL are not sent; download the picture first"
        raise ImageError(f"{without_password(url)}: {reason}")


def without_password(url: str) -> str:
    """``url`` for messages: a user's password in it is replaced by ``***``."""
    return re.sub(r"(?<=://)([^/@:]*):[^/]*@", r"\1:***@", url)


def url_host(url: str) -> str:
    """The host of a URL, as part of a file name."""
    return _file_name(urlsplit(url).netloc.rpartition("@")[2])


def url_stem(url: str) -> str:
    """The last part of a URL's path without its suffix, as part of a file name; "image" where there is none."""
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    return _file_name(name.rpartition(".")[0] or name) or "image"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+ -]", "_", text)[:_LONGEST_STEM]


def fetch(url: str) -> bytes:
    """The whole body of the answer to a GET of ``url``; proxies of the environment are used.

    Redirects are followed to http and https only.

    Raises:
        ImageError: there is no server or no answer in time, its status is not 2xx, it redirects elsewhere, the body is
            cut off or longer than `isnet_trt.pictures.files.max_bytes`.
    """
    try:
        with _opener().open(_ascii(url), timeout=TIMEOUT) as response:
            return _body(response, url)
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"{url} cannot be downloaded: the server answered {error.code} {error.reason}") from None
    except TimeoutError:
        raise _too_slow(url) from None
    except ImageError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise _too_slow(url) from None
        raise ImageError(f"{url} cannot be downloaded: {str(reason) or type(reason).__name__}") from None


def _too_slow(url: str) -> ImageError:
    return ImageError(f"{url} cannot be downloaded: the server sent nothing for {TIMEOUT:g} s")


def _ascii(url: str) -> str:
    """The URL with spaces and letters beyond ASCII escaped, as a browser sends it."""
    parts = urlsplit(url)
    host = parts.netloc.encode("idna").decode("ascii") if not parts.netloc.isascii() else parts.netloc
    path, query = quote(parts.path, _URL_SAFE), quote(parts.query, _URL_SAFE)
    return urlunsplit((parts.scheme, host, path, query, ""))


def _body(response: http.client.HTTPResponse, url: str) -> bytes:
    limit, expected, content = max_bytes(), response.length, bytearray()
    if expected is not None and expected > limit:
        raise ImageError(f"{url} is too large: {expected} bytes, the limit is {limit}")
    end = time.monotonic() + TOTAL_TIMEOUT
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > limit:
            raise ImageError(f"{url} is too large: more than {limit} bytes, which is the limit")
        if time.monotonic() > end:
            raise ImageError(f"{url} cannot be downloaded: it is not complete after {TOTAL_TIMEOUT:g} s")
    # `read1` takes a connection that the server closed early for the end.
    if expected is not None and len(content) < expected:
        raise ImageError(f"{url} is cut off: {len(content)} of {expected} bytes came; try again")
    if not content:
        raise ImageError(f"{url}: the server's answer is empty ({response.status} {response.reason})")
    return bytes(content)


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects to http and https only: a server must not choose a file of this machine."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        target = headers.get("location") or headers.get("uri") or ""
        if urlsplit(target).scheme and not is_url(target):  # urllib follows ftp
            raise ImageError(f"{req.full_url} cannot be downloaded: it redirects to {target}, which is no http(s) URL")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """Handlers of http and https alone: `urllib.request.build_opener` adds those of file, ftp and data URLs."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _WebRedirects,
    ):
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", "isnet_trt")]
    return opener
