"""What is known about an image of the gallery, and how it follows from the metadata in its file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from daguerre.adapters.record import AdapterRecord
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.metadata.write import Provenance, daguerre_json, parameters, read_image_texts
from daguerre.pipelines.request import Request

ID_LENGTH = 32  # hex digits of an input image's id: the start of the SHA-256 of its pixels


@dataclass(frozen=True)
class ImageRecord:
    """One image.

    request: of this image alone, as JSON with input images by id. parameters: the text that other programs read.
    created: seconds since 1970. step_count: the steps whose latents were stored. deleted: when it was deleted, or None.
    """

    id: str
    job: str | None
    created: float
    width: int
    height: int
    model: str
    model_hash: str | None
    request: Mapping[str, Any]
    parameters: str
    step_count: int = 0
    favourite: bool = False
    deleted: float | None = None

    @property
    def task(self) -> str:
        return self.request["task"]["name"]

    @property
    def words(self) -> str:
        """What a search looks through."""
        request = self.request
        return "\n".join(map(str, (request["prompt"], request["negative_prompt"], self.model, request["seed"]))).lower()

    def stored(self) -> dict[str, Any]:
        """What the database keeps as JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("favourite", "deleted")}

    def to_json(self, *, steps_kept: int = 0, has_attention: bool = False) -> dict[str, Any]:
        """What callers see."""
        address = f"/api/images/{self.id}"
        return {
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "prompt": self.request["prompt"],
            "negative_prompt": self.request["negative_prompt"],
            "seed": self.request["seed"],
            "task": self.task,
            "steps_kept": steps_kept,
            "has_attention": has_attention,
            "url": address,
            "thumbnail": f"{address}/thumbnail",
        }


def record_of(image_id: str, job: str | None, created: float, size: tuple[int, int], provenance: Provenance) -> ImageRecord:
    """The record of an image with its provenance; `size` is (width, height) in pixels."""
    index, request = provenance.index, provenance.request
    single = request if index is None else request.split()[index]
    values = public_request(single)
    return ImageRecord(image_id, job, created, *size, provenance.model, provenance.model_hash, values, parameters(provenance, size))


def record_of_file(path: Path) -> ImageRecord | None:
    """The record of an image file of the gallery, also of a grid; None if it is not one of ours."""
    try:
        image, texts = read_image_texts(path)
        data = daguerre_json(texts) or {}
        grid = grid_of_data(data)
        provenance = grid[0] if grid else Provenance.from_json(data)
    except DaguerreError:
        return None
    job = path.stem.partition("-")[0] if "-" in path.stem else None
    return record_of(path.stem, job, path.stat().st_mtime, image.size, provenance)


def public_request(request: Request) -> dict[str, Any]:
    """A request as JSON for callers: input images by id, no path of this machine."""
    values = replace(request, adapters=_without_files(request.adapters)).to_json()
    for name, image in request.task.input_images.items():
        values["task"][name] = {"id": input_id(image), "sha256": image.sha256}
    values["control_images"] = [{"id": input_id(image), "sha256": image.sha256} for image in request.control_images]
    return values


def _without_files(records: Sequence[AdapterRecord]) -> tuple[AdapterRecord, ...]:
    return tuple(replace(record, path=None, encoder=None) for record in records)


def input_id(image: InputImage) -> str:
    """The id under which an input image is stored."""
    return image.sha256[:ID_LENGTH]


def without_paths(provenance: Provenance) -> Provenance:
    """A provenance that names no file of this machine; its input images are found by their hash."""
    task = provenance.request.task
    images = {name: replace(image, path=None) for name, image in task.input_images.items()}
    adapters = _without_files(provenance.request.adapters)
    maps = tuple(replace(image, path=None) for image in provenance.request.control_images)
    request = replace(
        provenance.request,
        adapters=adapters,
        control_images=maps,
        **({"task": task.with_input_images(images)} if images else {}),
    )
    return replace(provenance, request=request, model_path=None)


def grid_of_data(data: Mapping[str, Any]) -> tuple[Provenance, dict[str, Any]] | None:
    """The provenance of the first cell of a saved grid and its axes as JSON; None if the data is no grid's."""
    try:
        cells = [[Provenance.from_json({k: v for k, v in cell.items() if k != "box"}) for cell in row] for row in data["cells"]]
        fields = {name: axis and axis["field"] for name, axis in data["comparison"].items()}
        singles = [[cell.request.split()[cell.index or 0].to_json() for cell in row] for row in cells]
        axes = {
            "x": {"field": fields["columns"], "values": [_value(single, fields["columns"]) for single in singles[0]]},
            "y": fields["rows"] and {"field": fields["rows"], "values": [_value(row[0], fields["rows"]) for row in singles]},
        }
        return first_cell(cells[0][0]), axes
    except (DaguerreError, KeyError, TypeError, AttributeError, IndexError, ValueError):
        return None


def first_cell(provenance: Provenance) -> Provenance:
    """The provenance of one cell alone."""
    return replace(provenance, request=provenance.request.split()[provenance.index or 0], index=0)


def _value(request: Mapping[str, Any], field: str) -> Any:
    return request["task"][field] if field == "strength" else request[field]
