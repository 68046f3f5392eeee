"""The application: a studio, its routes, and the guard before them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from daguerre.errors import DaguerreError
from daguerre.server.api.health import health_routes
from daguerre.server.api.images import image_routes
from daguerre.server.api.jobs import job_routes
from daguerre.server.api.models import model_routes
from daguerre.server.api.openai_images import openai_routes
from daguerre.server.api.page import page_routes
from daguerre.server.api.uploads import upload_routes
from daguerre.server.errors import ApiError
from daguerre.server.guard import App, Guard
from daguerre.server.messages import as_api_error
from daguerre.server.sdapi.lists import sdapi_list_routes
from daguerre.server.sdapi.routes import sdapi_routes
from daguerre.server.studio import Studio
from daguerre.version import VERSION

WEB = Path(__file__).parent / "web"


def create_app(studio: Studio) -> App:
    """The guarded application of a studio, which starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        studio.start()
        yield
        await run_in_threadpool(studio.close)

    app = FastAPI(title="Daguerre", version=VERSION, docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False)
    for routes in (job_routes, image_routes, upload_routes, model_routes, openai_routes, sdapi_routes, sdapi_list_routes, health_routes):
        app.include_router(routes(studio))
    app.include_router(page_routes(WEB))
    _handle_errors(app)

    def refuse() -> None:
        if studio.queue.is_full:
            studio.counters.refused += 1
            raise studio.queue.full_error()

    return Guard(app, studio.config, refuse)


def _handle_errors(app: FastAPI) -> None:
    """Every error in the shape that the callers of its route expect."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error.response(request.url.path)

    @app.exception_handler(DaguerreError)
    async def library_error(request: Request, error: DaguerreError) -> Response:
        return as_api_error(error).response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        param = ".".join(place)[:100] or None
        message = f"{param}: {first['msg']}." if param else f"The request is not valid: {first['msg']}."
        return ApiError(422, message, code="invalid_request", param=param).response(request.url.path)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ApiError):  # raised while the body was read
            return error.__cause__.response(request.url.path)
        messages = {404: f"There is nothing at {request.url.path[:100]!r}.", 405: f"{request.method} is not allowed here."}
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        response = ApiError(error.status_code, messages.get(error.status_code, str(error.detail)), code=code).response(request.url.path)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        message = f"Unexpected {type(error).__name__}; the server's log has the details."
        return ApiError(500, message, code="internal_error").response(request.url.path)
