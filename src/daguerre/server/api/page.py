"""The page: static files from a fixed folder, compressed where the browser takes that. Only files that are in it can be named.

The first file names all modules, so that the browser asks for them at once instead of one level of imports after the other.
"""

import gzip
import hashlib
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from daguerre.server.errors import not_found

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
    ".webmanifest": "application/manifest+json",
}
MODULE_LINKS = b"<!-- modules -->"  # in the first file
COMPRESSED = (".html", ".js", ".css", ".svg", ".json")


def page_routes(folder: Path) -> APIRouter:
    """`/` and `/web/…`: the files of a folder with known suffixes."""
    routes = APIRouter(include_in_schema=False)
    files = {f"/web/{file.relative_to(folder).as_posix()}": file for file in folder.rglob("*") if file.is_file() and file.suffix in TYPES}
    modules = sorted(path for path in files if path.endswith(".js"))
    preloads = "\n".join(f'<link rel="modulepreload" href="{path}">' for path in modules).encode()
    files["/"] = folder / "index.html"

    @routes.api_route("/", methods=["GET", "HEAD"])
    @routes.api_route("/web/{path:path}", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        path = request.scope["path"]
        file = files.get(path)
        if file is None or not file.is_file():
            raise not_found("file", path)
        data = file.read_bytes()  # small and in the cache of the disk: a thread would cost more
        if path == "/":
            data = data.replace(MODULE_LINKS, preloads)
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if file.suffix in COMPRESSED and "gzip" in request.headers.get("accept-encoding", ""):
            data, headers["Content-Encoding"] = compressed(data), "gzip"
        return Response(data, media_type=TYPES[file.suffix], headers=headers)

    return routes


@lru_cache(maxsize=256)
def compressed(data: bytes) -> bytes:
    """A file's content as gzip."""
    return gzip.compress(data, mtime=0)
