"""The gallery: list, search, show, delete and restore images; their steps and their attention maps."""

import json
import threading
from dataclasses import replace
from io import BytesIO
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from PIL import Image
from pydantic import Field
from safetensors import safe_open
from starlette.responses import Response

from daguerre.data.images import to_image
from daguerre.pipelines.decode import LatentDecoder
from daguerre.pipelines.metadata.write import Provenance, read_provenance, write_image_with_metadata
from daguerre.server.api.jobs import StrictBody
from daguerre.server.errors import ApiError, SafeJSONResponse, not_found
from daguerre.server.jobs.job import Job
from daguerre.server.jobs.results import encode_image, thumbnail_of
from daguerre.server.storage.image_records import ImageRecord
from daguerre.server.studio import Studio

ImageId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}-\d{1,4}$")]
ImageFormat = Literal["png", "webp", "jpeg"]
FORMAT_SUFFIX = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}
NOT_COMPUTED = "The attention of this image has not been computed yet; POST to the same address computes it."


class IdsBody(StrictBody):
    """Ids of images."""

    ids: list[Annotated[str, Field(max_length=40)]] = Field(max_length=10_000)


class FavouriteBody(StrictBody):
    """Whether an image is marked."""

    favourite: bool


def image_routes(studio: Studio) -> APIRouter:
    """The routes of `/api/images`."""
    routes, store, decoding = APIRouter(tags=["images"]), studio.store, threading.Lock()

    def record_or_404(image_id: str) -> ImageRecord:
        record = store.image(image_id)
        if record is None:
            raise not_found("image", image_id)
        return record

    def shown(record: ImageRecord) -> dict[str, Any]:
        steps = record.step_count if store.path("steps", record.id).exists() else 0
        return record.to_json(steps_kept=steps, has_attention=store.path("attention", record.id).exists())

    @routes.get("/api/images")
    def listing(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int | None, Query(ge=0, le=2**53)] = None,
        search: Annotated[str, Query(max_length=1000)] = "",
        model: Annotated[str | None, Query(max_length=300)] = None,
        task: Annotated[str | None, Query(max_length=40)] = None,
        favourite: bool = False,
        deleted: bool = False,
    ) -> Response:
        images, after, total = store.images(
            limit=limit, before=before, search=search, model=model, task=task, favourite=favourite, deleted=deleted
        )
        return SafeJSONResponse({"images": [shown(image) for image in images], "next": after, "total": total})

    @routes.post("/api/images/delete")
    def delete(body: IdsBody) -> Response:
        changed = store.set_deleted(body.ids, True)
        studio.events.publish("images", None, deleted=changed, restored=[])
        return SafeJSONResponse({"deleted": changed})

    @routes.post("/api/images/restore")
    def restore(body: IdsBody) -> Response:
        changed = store.set_deleted(body.ids, False)
        studio.events.publish("images", None, deleted=[], restored=changed)
        return SafeJSONResponse({"restored": changed})

    @routes.get("/api/images/{image_id}")
    def file(image_id: ImageId, format: ImageFormat = "png", download: bool = False) -> Response:
        record_or_404(image_id)
        path = store.path("images", image_id)
        data = path.read_bytes() if format == "png" else converted(*read_provenance(path), format)
        name = {"Content-Disposition": f'attachment; filename="{image_id}{FORMAT_SUFFIX[format]}"'} if download else {}
        return Response(data, media_type=f"image/{format}", headers={**FOR_EVER, **name})

    @routes.get("/api/images/{image_id}/info")
    def info(image_id: ImageId) -> Response:
        return SafeJSONResponse(shown(record_or_404(image_id)))

    @routes.get("/api/images/{image_id}/thumbnail")
    def thumbnail(image_id: ImageId) -> Response:
        record_or_404(image_id)
        return Response(thumbnail_of(store, image_id), media_type="image/webp", headers=FOR_EVER)

    @routes.post("/api/images/{image_id}/favourite")
    def favourite(image_id: ImageId, body: FavouriteBody) -> Response:
        record_or_404(image_id)
        store.set_favourite(image_id, body.favourite)
        return SafeJSONResponse(shown(record_or_404(image_id)))

    @routes.get("/api/images/{image_id}/steps")
    def steps(image_id: ImageId) -> Response:
        record = record_or_404(image_id)
        with kept_steps(image_id) as file:
            sigmas = file.get_tensor("sigmas").tolist()
        frames = [{"index": i, "sigma": round(sigma, 5)} for i, sigma in enumerate(sigmas)]
        return SafeJSONResponse({"steps": frames, "width": record.width, "height": record.height})

    @routes.get("/api/images/{image_id}/steps/{index}")
    def step(image_id: ImageId, index: Annotated[int, Path(ge=0, le=10_000)]) -> Response:
        record = record_or_404(image_id)
        with kept_steps(image_id) as file:
            if f"x0.{index}" not in file.keys():  # noqa: SIM118 (it is no mapping)
                raise not_found("step", str(index))
            latent = file.get_tensor(f"x0.{index}")
        model = studio.model_in_memory(record.model)
        if model is None:
            raise ApiError(409, f"The model {record.model} is not loaded; select it, then generate an image.", code="model_not_loaded")
        with decoding:
            frame = to_image(LatentDecoder(model).decode(latent[None].float())[0])
        return Response(encode_image(frame, "WEBP", quality=90), media_type="image/webp", headers=FOR_EVER)

    @routes.get("/api/images/{image_id}/attention")
    def attention(image_id: ImageId) -> Response:
        record_or_404(image_id)
        path = store.path("attention", image_id)
        if not path.exists():
            raise ApiError(404, NOT_COMPUTED, code="attention_not_computed")
        return SafeJSONResponse(json.loads(path.read_text()))

    @routes.post("/api/images/{image_id}/attention", status_code=202)
    def compute_attention(image_id: ImageId) -> Response:
        record = record_or_404(image_id)
        request = studio.read_request(record.request)

        def edit(job: Job) -> Job:
            return replace(job, kind="attention", image=image_id)

        job, _ = studio.submit(request, model=record.model, edit=edit)
        return SafeJSONResponse(studio.queue.to_json(job), 202)

    def kept_steps(image_id: str) -> Any:
        """The file of the latents (Z, h, w) predicted in each step of an image, x0.0, x0.1, …, and the noise levels after them, sigmas."""
        path = store.path("steps", image_id)
        if not path.exists():
            raise ApiError(404, "The steps of this image are not kept; generate it again to see them.", code="steps_not_kept")
        return safe_open(path, "pt")

    return routes


def converted(image: Image.Image, provenance: Provenance, kind: str) -> bytes:
    """An image of the gallery in another format, with its metadata."""
    file = BytesIO()
    write_image_with_metadata(file, image.convert("RGB"), FORMAT_SUFFIX[kind], provenance)
    return file.getvalue()
