"""What stands before all routes: which callers are answered at all, and in what sizes. Plain ASGI, so that it acts before a body is read.

    Host           a name of this server (DNS rebinding)
    Origin         if present, equal to Host; "null" never is (requests forged by other sites)
    Sec-Fetch-Site if present, from this site; links to the page pass
    token          if the server has one
    Content-Type   JSON, or what known clients send instead
    body           bounded in size and time; a full queue refuses before reading it

A program sends neither Origin nor Sec-Fetch-Site and passes. There are no CORS headers and no redirects.
"""

import asyncio
import base64
import binascii
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

from daguerre.server.config import LOOPBACK, ServerConfig
from daguerre.server.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; "
    "manifest-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
OPEN_PATHS = ("/healthz",)  # answered without a token
# Paths that take other bodies than JSON: OpenAI's clients send files, bots of the web UI a login, which changes nothing here.
OTHER_BODIES = {
    "/v1/images/edits": "multipart/form-data",
    "/v1/images/variations": "multipart/form-data",
    "/login": "application/x-www-form-urlencoded",
}
QUEUED_PATHS = ("/api/jobs", "/api/grids", "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/v1/images/generations", "/v1/images/edits")
DRAINED = 1 << 20  # bytes of a refused body that are read and dropped, so that the caller reads the refusal
DRAIN_SECONDS = 2.0


@dataclass(frozen=True)
class Guard:
    """Checks every request, then passes it on.

    refuse: raises ApiError if the queue takes no more jobs.
    """

    app: App
    config: ServerConfig
    refuse: Callable[[], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        body = BoundedBody(receive, self.config.limits.body, self.config.limits.body_seconds)
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                names = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in SECURITY_HEADERS if pair[0] not in names)]
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, body, send_with_headers)
        except ApiError as error:
            if started:
                raise
            await body.drain()
            await error.response(scope["path"])(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        """Raise ApiError for a request that is not answered."""
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key = name.decode("latin-1").lower()
            if key in ("host", "origin", "content-length", "content-type", "authorization") and key in headers:
                raise ApiError(400, f"The header {key} occurs twice.", code="bad_header")
            headers[key] = value.decode("latin-1")
        check_host(headers.get("host", ""), self.config)
        check_origin(scope["method"], headers)
        if self.config.token is not None and scope["path"] not in OPEN_PATHS:
            check_token(headers.get("authorization", ""), self.config.token)
        self._check_body(scope, headers)
        if scope["method"] == "POST" and scope["path"] in QUEUED_PATHS:
            self.refuse()

    def _check_body(self, scope: Scope, headers: MutableMapping[str, str]) -> None:
        length, limit = headers.get("content-length"), self.config.limits.body
        if length is not None and not (length.isascii() and length.isdigit()):
            raise ApiError(400, "The header content-length is no number.", code="bad_header")
        if length is not None and int(length[:20]) > limit:
            raise ApiError(413, f"The request has {length[:20]} bytes, more than the limit of {limit}.", code="body_too_large")
        if scope["method"] in ("GET", "HEAD", "OPTIONS") or (not int(length or 0) and "transfer-encoding" not in headers):
            return
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind not in ("application/json", OTHER_BODIES.get(scope["path"])):
            raise ApiError(
                415, f"Send JSON with Content-Type: application/json, not {kind[:60] or 'nothing'!r}.", code="unsupported_media_type"
            )


class BoundedBody:
    """The `receive` of a request, which raises ApiError when the body is longer or slower than it may be."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive, self._limit = receive, limit
        self._deadline = time.monotonic() + seconds
        self._size, self._ended = 0, False

    async def __call__(self) -> Message:
        if self._ended:
            return await self._receive()  # waits for the caller to disconnect
        try:
            message = await asyncio.wait_for(self._receive(), max(self._deadline - time.monotonic(), 0.001))
        except TimeoutError:
            self._ended = True
            raise ApiError(408, "The request did not arrive in time.", code="timeout") from None
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise ApiError(413, f"The request has more than the limit of {self._limit} bytes.", code="body_too_large")
        return message

    async def drain(self) -> None:
        """Read and drop the start of a body that nobody has read; a caller that still writes would not read the answer."""
        until = time.monotonic() + DRAIN_SECONDS
        while not self._ended and self._size < DRAINED and time.monotonic() < until:
            try:
                message = await asyncio.wait_for(self._receive(), max(until - time.monotonic(), 0.001))
            except TimeoutError:
                return
            self._size += len(message.get("body", b""))
            self._ended = message["type"] != "http.request" or not message.get("more_body", False)


def check_host(host: str, config: ServerConfig) -> None:
    """Raise ApiError unless the Host header names this server.

    Names are this machine's loopback names, the address that the server listens on and the machine's own name. An address of numbers is
    enough where the server listens on all of them: rebinding needs a name.
    """
    name = host_name(host)
    known = {*LOOPBACK, config.host.lower().strip("[]")}
    if config.host not in LOOPBACK:
        known.add(socket.gethostname().lower())
        if _is_address(name):
            return
    if name not in known:
        raise ApiError(403, "The Host header names another server. Use the address that the server printed at its start.", code="bad_host")


def host_name(host: str) -> str:
    """The name in a Host header without its port, in small letters; "" for a malformed one."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        port = port.removeprefix(":") if bracket else "x"
    else:
        name, _, port = host.partition(":")
    well_formed = name and (not port or (port.isascii() and port.isdigit())) and not set(name) & set("/\\@?#%, \t")
    return name.lower() if well_formed else ""


def check_origin(method: str, headers: MutableMapping[str, str]) -> None:
    """Raise ApiError for a request that another site made a browser send."""
    host, origin = headers.get("host", "").lower(), headers.get("origin")
    if origin is not None:
        scheme, separator, rest = origin.lower().partition("://")
        if not separator or scheme not in ("http", "https") or rest != host:
            raise ApiError(403, "Another site sent this request (its Origin is not this server's).", code="bad_origin")
        return
    site = headers.get("sec-fetch-site", "none").lower()
    if site in ("none", "same-origin"):
        return
    navigation = headers.get("sec-fetch-mode", "").lower() == "navigate" and headers.get("sec-fetch-dest", "").lower() == "document"
    if not (method == "GET" and navigation):
        raise ApiError(403, "Another site sent this request (Sec-Fetch-Site).", code="bad_origin")


def check_token(authorization: str, token: str) -> None:
    """Raise ApiError unless the header holds the token, as a bearer token or as the password of HTTP Basic."""
    scheme, _, value = authorization.partition(" ")
    given = value.strip()
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            given = ""
    elif scheme.lower() != "bearer":
        given = ""
    if not compare_digest(given.encode(), token.encode()):
        raise UnauthorizedError(401, "Give the server's token, as a bearer token or as the password.", code="unauthorized")


class UnauthorizedError(ApiError):
    """A request without the token; a browser asks its user for it."""

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "WWW-Authenticate": 'Basic realm="Daguerre", charset="UTF-8"'}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
