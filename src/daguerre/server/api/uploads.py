"""Images that callers bring: kept as inputs, or read for all that made them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field
from starlette.responses import Response

from daguerre.errors import DaguerreError
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.images.preprocess import flatten_input
from daguerre.pipelines.images.preprocessors import preprocess
from daguerre.pipelines.metadata.containers import TEXT
from daguerre.pipelines.metadata.readers import read_foreign
from daguerre.pipelines.metadata.write import Provenance, daguerre_json
from daguerre.server.api.jobs import StrictBody
from daguerre.server.errors import ApiError, SafeJSONResponse, not_found
from daguerre.server.messages import for_callers
from daguerre.server.storage.image_records import grid_of_data, public_request
from daguerre.server.storage.inputs import Upload, bytes_of_text, decode_upload, open_stored, store_input
from daguerre.server.studio import Studio


class ImageBody(StrictBody):
    """An image as a data URI or base64."""

    image: str = Field(max_length=80_000_000)


class MapBody(StrictBody):
    """An input image by its id, and how a condition map is computed from it."""

    id: str = Field(max_length=40)
    preprocessor: str = Field(max_length=40)


@dataclass(frozen=True)
class DropReport:
    """What an image's metadata says.

    software: what wrote it; None if there is no metadata. request: fields of a request that were read. model: its name there.
    unread: settings that were not understood, by name. missing_inputs: input images that this server does not have.
    exact: whether the same model is here, so that the image can be generated again. grid: the axes of a grid.
    """

    software: str | None = None
    request: Mapping[str, Any] | None = None
    model: str | None = None
    model_known: bool = False
    exact: bool = False
    unread: Mapping[str, str] | None = None
    missing_inputs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    grid: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "software": self.software,
            "request": self.request,
            "model": self.model,
            "model_known": self.model_known,
            "exact": self.exact,
            "unread": dict(self.unread or {}),
            "missing_inputs": list(self.missing_inputs),
            "warnings": list(self.warnings),
            "grid": self.grid,
        }


def upload_routes(studio: Studio) -> APIRouter:
    """The routes of `/api/inputs`, `/api/maps` and `/api/drop`."""
    routes, store = APIRouter(tags=["images"]), studio.store

    def decoded(text: str) -> Upload:
        return decode_upload(bytes_of_text(text, "image"), "image", studio.config.limits.upload_pixels)

    def kept(image: InputImage) -> dict[str, Any]:
        pixels = image.pixels
        size = {"width": pixels.width, "height": pixels.height}
        return {"id": store_input(store, image), **size, "sha256": image.sha256, "has_alpha": image.has_alpha}

    @routes.post("/api/inputs")
    def add_input(body: ImageBody) -> Response:
        return SafeJSONResponse(kept(decoded(body.image).image))

    @routes.get("/api/inputs/{input_id}")
    def input_file(input_id: Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]) -> Response:
        path = store.path("inputs", input_id)
        if not path.is_file():
            raise not_found("input", input_id)
        return Response(path.read_bytes(), media_type="image/png", headers={"Cache-Control": "private, max-age=31536000, immutable"})

    @routes.post("/api/maps")
    def condition_map(body: MapBody) -> Response:
        source = flatten_input(open_stored(store, body.id))
        return SafeJSONResponse(kept(InputImage.from_any(preprocess(source, body.preprocessor))))

    @routes.post("/api/drop")
    def drop(body: ImageBody) -> Response:
        upload = decoded(body.image)
        report = report_metadata(studio, upload.texts)
        return SafeJSONResponse({"input": kept(upload.image), **report.to_json(), "parameters": upload.texts.get(TEXT)})

    return routes


def report_metadata(studio: Studio, texts: Mapping[str, str]) -> DropReport:
    """The request in the texts of an image, ours or another program's."""
    if (data := daguerre_json(texts)) is not None:
        if (grid := grid_of_data(data)) is not None:
            report = _own_report(studio, grid[0])
            return replace(report, grid={"request": report.request, **grid[1]})
        try:
            return _own_report(studio, Provenance.from_json(data))
        except DaguerreError as error:
            return DropReport("daguerre", warnings=(for_callers(error),))
    foreign = read_foreign(texts)
    if foreign is None:
        return DropReport()
    request = {name: value for name, value in foreign.request.items() if value is not None}
    return DropReport(foreign.software, request, foreign.model, _is_known(studio, foreign.model), unread=foreign.unused)


def _own_report(studio: Studio, provenance: Provenance) -> DropReport:
    request, index = provenance.request, provenance.index
    single = request if index is None else request.split()[index]
    missing = []
    maps = {f"control image {number}": image for number, image in enumerate(single.control_images, 1)}
    for name, image in {**single.task.input_images, **maps}.items():
        try:
            open_stored(studio.store, image.sha256[:32])
        except ApiError:
            missing.append(name)
    absent = [record for record in single.adapters if record.name not in studio.adapters.files(record.kind)]
    facts = studio.models.facts(provenance.model)
    known = _is_known(studio, provenance.model)
    same = known and (facts is None or facts.hash is None or facts.hash == provenance.model_hash)
    warnings = [f"The {record.kind} {record.name} is not here." for record in absent]
    if known and not same:
        warnings.append("The model of this name has other weights here, so the image may come out differently.")
    return DropReport(
        "daguerre",
        public_request(single),
        provenance.model,
        known,
        same and not missing and not absent,
        missing_inputs=tuple(missing),
        warnings=tuple(warnings),
    )


def _is_known(studio: Studio, model: str | None) -> bool:
    try:
        return model is not None and bool(studio.models.find(model))
    except ApiError:
        return False
