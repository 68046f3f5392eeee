"""Errors of the HTTP interfaces, each with a status, and the shapes in which callers get them."""

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

from starlette.responses import Response


class ApiError(Exception):
    """A request that cannot be answered.

    status: of HTTP. code: a short name that programs compare. param: the field that is wrong.
    retry_after: whole seconds after which the same request may succeed; None if it never does.
    """

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` for passing troubles, and what the official OpenAI client reads to retry only those."""
        if self.retry_after is None:
            return {"x-should-retry": "false"}
        return {"Retry-After": str(self.retry_after), "x-should-retry": "true"}

    def to_json(self) -> dict[str, Any]:
        """In OpenAI's shape, which our own routes use, too."""
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def to_sdapi_json(self) -> dict[str, Any]:
        """In the shape of the Stable Diffusion web UI."""
        return {"error": type(self).__name__, "detail": self.message, "body": self.param or "", "errors": self.message}

    def response(self, path: str) -> Response:
        """The answer to a request of `path`, in the shape that its callers expect."""
        content = self.to_sdapi_json() if path.startswith("/sdapi/") else self.to_json()
        return SafeJSONResponse(content, self.status, self.headers)


def not_found(kind: str, name: str) -> ApiError:
    """The error for an id or a path that does not exist."""
    return ApiError(404, f"There is no {kind} {name[:100]!r}.", code="not_found")


class SafeJSONResponse(Response):
    """JSON in ASCII: half a character of UTF-16 in a text, which UTF-8 cannot hold, does no harm."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(content, status_code, headers, **options)

    def render(self, content: Any) -> bytes:
        return to_json_text(content).encode()


def to_json_text(content: Any) -> str:
    """JSON as browsers read it: null for NaN and infinity, which a caller may have sent."""
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(content), allow_nan=False, separators=(",", ":"))


def _finite(content: Any) -> Any:
    """Content with null for each number that JSON lacks."""
    if isinstance(content, float) and not isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content
