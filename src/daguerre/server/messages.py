"""Error texts for callers: without paths of this machine."""

import re

from daguerre.errors import DaguerreError
from daguerre.server.errors import ApiError

_PATH = re.compile(r"(?<![\w.:/])(?:~?/|[A-Za-z]:\\)(?:[^\s'\"/\\]+[/\\])+([^\s'\"/\\]*)")


def without_local_paths(text: str) -> str:
    """A text with only the last part of each absolute path."""
    return _PATH.sub(r"\1", text)


def for_callers(error: Exception) -> str:
    """The message of an error, as callers may see it."""
    return error.message if isinstance(error, ApiError) else without_local_paths(str(error))


def is_storage_trouble(error: Exception) -> bool:
    """Whether the disk or the database is to blame, so that the same work succeeds later."""
    if isinstance(error, ApiError):
        return error.status in (503, 507) or error.code == "database_error"
    return isinstance(error, DaguerreError) and isinstance(error.__cause__, OSError) and "write" in str(error)


def as_api_error(error: DaguerreError, *, param: str | None = None) -> ApiError:
    """An error of the library as one of the interfaces."""
    if is_storage_trouble(error):
        return ApiError(507, without_local_paths(str(error)), code="disk_full")
    return ApiError(422, for_callers(error), code="invalid_request", param=param)
