"""`daguerre reproduce IMAGE`: generate a saved image again from its metadata and compare the two."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from PIL.Image import Resampling

from daguerre.cli.generation import check_outputs, generate_with_progress
from daguerre.cli.image_inputs import reopen_inputs
from daguerre.cli.model_loading import open_any
from daguerre.cli.options import Device, ImagePath, ModelName, Offline, OptionalPath, OptionalText, Out
from daguerre.cli.parsing import parse_options, usage_errors
from daguerre.cpu_threads import set_threads
from daguerre.errors import DaguerreError
from daguerre.pipelines.comparison import read_comparison
from daguerre.pipelines.images.output import GeneratedImage
from daguerre.pipelines.metadata.write import Provenance, daguerre_json, read_image_texts, read_provenance, write_image_with_metadata
from daguerre.progress import spinner
from daguerre.weights.catalog import local

if TYPE_CHECKING:
    from PIL import Image

MAX_STEPS, MAX_IMAGES = 10_000, 1024


@dataclass(frozen=True)
class ReproduceOptions:
    """Generate a saved image again from the request in its metadata, and check that it is the same."""

    image: ImagePath
    """An image saved by daguerre."""
    input: OptionalPath = None
    """The input image, if it has moved."""
    mask: OptionalPath = None
    """The mask, if it has moved."""
    depth: OptionalPath = None
    """The depth map, if it has moved."""
    map: OptionalPath = None
    """The map of a completed image, if it has moved."""
    model: ModelName = None
    vae: OptionalText = None
    """The autoencoder, if the image was generated with one other than the model's own."""
    refiner: OptionalText = None
    """The refiner, if the image was generated with one."""
    cell: Annotated[str | None, tyro.conf.arg(metavar="ROW,COLUMN", help_behavior_hint="")] = None
    """Of a table that `daguerre compare` saved: which image to generate again, counted from 1."""
    adapters: OptionalPath = None
    """Folder of its LoRAs and other adapters and of their condition maps, if they have moved."""
    out: Out = None
    device: Device = None
    threads: Annotated[int | None, tyro.conf.arg(help="Number of CPU threads. Default: that of the image.", help_behavior_hint="")] = None
    offline: Offline = False


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(parse_options(ReproduceOptions, arguments, "reproduce"))


def run(options: ReproduceOptions) -> None:
    """Generate the image again and print "identical".

    Raises:
        DaguerreError: the two images differ; states by how much, and what else has changed.
    """
    with usage_errors():
        image, provenance = read_provenance(options.image) if options.cell is None else read_cell(options.image, options.cell)
        check_limits(image, provenance)
        inputs = {
            "image": options.input,
            "mask": options.mask,
            "depth": options.depth,
            "map": options.map,
            "control_images": options.adapters,
        }
        request = reopen_inputs(provenance.request, options.image, {name: path for name, path in inputs.items() if path is not None})
        if options.out is not None and os.path.realpath(options.out) == os.path.realpath(options.image):
            raise DaguerreError(f"--out '{options.out}' is the image to compare with; write to another file.")
        check_outputs({"--out": options.out}, replace(request, prompt="", num_images=1))
        source = options.model or find_model(options.image, provenance)
        threads = set_threads(options.threads, provenance.threads)
    if options.threads is not None and provenance.threads not in (None, threads):
        print(f"daguerre: {threads} threads instead of the image's {provenance.threads}", file=sys.stderr)
    with spinner("opening the model"):
        device = options.device or provenance.device
        model = open_any(
            source,
            options.vae,
            device,
            provenance.dtype,
            offline=options.offline,
            refiner=options.refiner,
            adapters=request.adapters,
            engine=provenance.engine,
            adapter_folders=[folder for folder in (options.adapters, options.image.parent) if folder is not None],
        )

    images = generate_with_progress(model, request)
    again = images.grid() if provenance.index is None else images[provenance.index]
    if options.out is not None:
        print(again.save(options.out))
    if options.cell is not None and again.image.size != image.size:
        again = replace(again, image=again.image.resize(image.size, Resampling.LANCZOS))  # as the table shows it
    if difference := pixel_difference(image, again, options.image.suffix.lower()):
        raise DaguerreError(f"'{options.image}' came out differently ({difference}); {describe_changes(provenance, again.provenance)}.")
    print("identical")


def read_cell(path: Path, cell: str) -> tuple["Image.Image", Provenance]:
    """The pixels and the provenance of one image of a saved comparison; `cell` is ROW,COLUMN from 1.

    Raises:
        DaguerreError: the file is no comparison, a JPEG, or has no such cell.
    """
    table, texts = read_image_texts(path)
    data = daguerre_json(texts)
    if data is None or "cells" not in data:
        raise DaguerreError(f"'{path}' is no table of `daguerre compare`; remove --cell.")
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise DaguerreError(f"'{path}' is a JPEG, which changes pixels across images; compare with a table saved as .png or .webp.")
    cells = read_comparison(path, table, data)
    match = re.fullmatch(r"(\d{1,4}),(\d{1,4})", cell.replace(" ", ""))
    row, column = (int(match[1]) - 1, int(match[2]) - 1) if match else (-1, -1)
    if not (0 <= row < len(cells) and 0 <= column < len(cells[row])):
        size = f"{len(cells)} {'row' if len(cells) == 1 else 'rows'} and {len(cells[0])} columns"
        raise DaguerreError(f"--cell is {cell!r}; it is ROW,COLUMN, and the table has {size}.")
    return cells[row][column].image, cells[row][column].provenance


def check_limits(image: "Image.Image", provenance: Provenance) -> None:
    """Check that a request fits its image and does not run for days; a file can contain any numbers.

    Raises:
        DaguerreError: it does not.
    """
    request = provenance.request
    count = len(request.prompts) * request.num_images
    if request.steps > MAX_STEPS or count > MAX_IMAGES:
        raise DaguerreError(
            f"The saved request asks for {count} images of {request.steps} steps; the limit is {MAX_IMAGES} images of {MAX_STEPS} steps."
        )
    if (request.width or 0) > image.width or (request.height or 0) > image.height:
        raise DaguerreError(
            f"The image has {image.width}×{image.height} pixels but its request asks for {request.width}×{request.height}: "
            "one of the two was changed later."
        )


def find_model(image: Path, provenance: Provenance) -> str:
    """The source of the model that generated an image. A file alone is no reason to download a model, so the hub is not searched.

    Raises:
        DaguerreError: the model is not on this machine.
    """
    if provenance.model_path is not None and Path(provenance.model_path).exists():
        return provenance.model_path
    if local(provenance.model) is not None:
        return provenance.model
    path = f" from '{provenance.model_path}'" if provenance.model_path else ""
    hashed = f", hash {provenance.model_hash[:10]}" if provenance.model_hash else ""
    raise DaguerreError(
        f"'{image}' was generated with the model {provenance.model!r}{path}{hashed}, which is not on this machine. Give its path with "
        "--model; also --vae if it used another autoencoder, and --refiner if it used a refiner."
    )


def pixel_difference(image: "Image.Image", again: GeneratedImage, suffix: str) -> str:
    """How a saved image differs from a new one saved in the same format; "" if every pixel is equal."""
    if image.size != again.image.size:
        return f"{image.width}×{image.height} pixels before, {again.image.width}×{again.image.height} now"
    from PIL import Image, ImageChops

    file = BytesIO()
    write_image_with_metadata(file, again.image, suffix, again.provenance)
    difference = ImageChops.difference(image.convert("RGB"), Image.open(file).convert("RGB"))
    largest = max(difference.tobytes())
    return f"by up to {largest}/255" if largest else ""


def describe_changes(before: Provenance, now: Provenance) -> str:
    """What differs between two provenances, in words."""
    names = ("model", "model_hash", "version", "torch", "device", "dtype", "threads")
    pairs = ((name.replace("_", " "), getattr(before, name), getattr(now, name)) for name in names)
    changed = [f"{name} was {old} and is {new}" for name, old, new in pairs if old != new and old is not None]
    weights = "" if before.model_hash else ", or the model's weights have changed"
    return ", ".join(changed) or (
        "model, version, torch, device and precision are the same, so the processor"
        f"{' or the number of threads' if before.threads is None else ''} differs{weights}"
    )
