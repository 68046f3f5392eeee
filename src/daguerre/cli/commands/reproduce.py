"""`daguerre reproduce PICTURE`: the picture's request, walked again, and the two compared."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from daguerre.cli.generation import check_outputs, generate_with_progress
from daguerre.cli.image_inputs import reopen_inputs
from daguerre.cli.model_loading import open_any
from daguerre.cli.options import OptionalPath, OptionalText
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.output import GeneratedImage
from daguerre.pipelines.metadata.write import Provenance, read_provenance, write_image_with_metadata
from daguerre.progress import spinner
from daguerre.weights.catalog import local

if TYPE_CHECKING:
    from PIL import Image

MAX_STEPS, MAX_PICTURES = 10_000, 1024


@dataclass(frozen=True)
class ReproduceOptions:
    """Make a saved picture again from the request inside it, and say whether it is the same."""

    image: tyro.conf.Positional[Path]
    """A picture that daguerre saved."""
    input: OptionalPath = None
    """The picture that it was made of, if that has moved."""
    mask: OptionalPath = None
    """The mask that it was made with, if that has moved."""
    depth: OptionalPath = None
    """The map of depth that it was made with, if that has moved."""
    map: OptionalPath = None
    """The map that a completed picture was made with, if that has moved."""
    model: OptionalText = None
    """Where the model is, if it is not inside the package or has moved."""
    vae: OptionalText = None
    """The autoencoder, if the picture was made with another than the model's own."""
    refiner: OptionalText = None
    """The refiner, if one walked the last steps."""
    out: OptionalPath = None
    """Also write the new picture here."""
    device: OptionalText = None
    """cpu or cuda; the one that the picture was made on if not given."""
    offline: bool = False
    """Of the hub, look only at what was fetched before."""


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(tyro.cli(Annotated[ReproduceOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre reproduce"))


def run(options: ReproduceOptions) -> None:
    """Make it again and print "identical".

    Raises:
        DaguerreError: the pictures differ; says by how much, and what of their origins differs.
    """
    image, origin = read_provenance(options.image)
    check_sizes(image, origin)
    named = {"image": options.input, "mask": options.mask, "depth": options.depth, "map": options.map}
    request = reopen_inputs(origin.request, options.image, {name: path for name, path in named.items() if path is not None})
    if options.out is not None and options.out.resolve() == options.image.resolve():
        raise DaguerreError(f"--out '{options.out}' is the picture itself, which the new one is compared with; write to another file.")
    check_outputs({"--out": options.out}, replace(request, prompt="", num_images=1))
    source = options.model or find_model(options.image, origin)
    with spinner("opening the model"):
        device = options.device or origin.device
        model = open_any(source, options.vae, device, origin.dtype, offline=options.offline, refiner=options.refiner)

    pictures = generate_with_progress(model, request)
    again = pictures.grid() if origin.index is None else pictures[origin.index]
    if options.out is not None:
        print(again.save(options.out))
    if difference := pixel_difference(image, again, options.image.suffix.lower()):
        raise DaguerreError(f"'{options.image}' came out differently ({difference}); {describe_changes(origin, again.provenance)}.")
    print("identical")


def check_sizes(image: "Image.Image", origin: Provenance) -> None:
    """Raise DaguerreError for a request that cannot be of this picture, or would keep a machine busy for days: files say anything."""
    request = origin.request
    count = len(request.prompts) * request.num_images
    if request.steps > MAX_STEPS or count > MAX_PICTURES:
        raise DaguerreError(
            f"The request inside asks for {count} pictures of {request.steps} steps; up to {MAX_PICTURES} of {MAX_STEPS} are made again."
        )
    if (request.width or 0) > image.width or (request.height or 0) > image.height:
        raise DaguerreError(
            f"The picture has {image.width}×{image.height} pixels and its request asks for {request.width}×{request.height}: "
            "one of the two was changed since."
        )


def find_model(picture: Path, origin: Provenance) -> str:
    """Where the model that a picture was made with is now.

    Raises:
        DaguerreError: it is in none of the places that are known. A file's word is not enough to ask the hub for a model.
    """
    if origin.model_path is not None and Path(origin.model_path).exists():
        return origin.model_path
    if local(origin.model) is not None:
        return origin.model
    place = f" from '{origin.model_path}'" if origin.model_path else ""
    hashed = f", of hash {origin.model_hash[:10]}" if origin.model_hash else ""
    raise DaguerreError(
        f"'{picture}' was made with the model {origin.model!r}{place}{hashed}, which is not here; give --model with the place where it is, "
        "--vae where the picture was made with another autoencoder, and --refiner where one finished it."
    )


def pixel_difference(image: "Image.Image", again: GeneratedImage, suffix: str) -> str:
    """How a saved picture and a new one differ when saved in the same format, "" where every pixel agrees."""
    if image.size != again.image.size:
        return f"{image.width}×{image.height} pixels before, {again.image.width}×{again.image.height} now"
    from PIL import Image, ImageChops

    file = BytesIO()
    write_image_with_metadata(file, again.image, suffix, again.provenance)
    difference = ImageChops.difference(image.convert("RGB"), Image.open(file).convert("RGB"))
    largest = max(difference.tobytes())
    return f"by up to {largest}/255" if largest else ""


def describe_changes(before: Provenance, now: Provenance) -> str:
    """What differs between two origins, in words."""
    names = ("model", "model_hash", "version", "torch", "device", "dtype")
    both = ((name.replace("_", " "), getattr(before, name), getattr(now, name)) for name in names)
    changed = [f"{name} was {then} and is {here}" for name, then, here in both if then != here and then is not None]
    others = "" if before.model_hash else ", or the model's weights have changed"
    same = f"model, version, torch, device and precision are the same, so it is another machine or another number of threads{others}"
    return ", ".join(changed) or same
