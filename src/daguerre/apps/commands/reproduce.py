"""`daguerre reproduce PICTURE`: the picture's request, walked again, and the two compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from daguerre.apps.commands.txt2img import OptionalPath, OptionalText, open_any
from daguerre.errors import DaguerreError
from daguerre.files import check_writable
from daguerre.pipelines.metadata import FORMATS, Origin, read_origin, write_picture
from daguerre.pipelines.picture import Picture, Pictures, check_suffix
from daguerre.progress import busy, track

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Reproduce:
    """Make a saved picture again from the request inside it, and say whether it is the same."""

    picture: tyro.conf.Positional[Path]
    """A picture that daguerre saved."""
    model: OptionalText = None
    """Where the model is, if it is not inside the package or has moved."""
    vae: OptionalText = None
    """The autoencoder, if the picture was made with another than the model's own."""
    out: OptionalPath = None
    """Also write the new picture here."""
    device: OptionalText = None
    """cpu or cuda; the one that the picture was made on if not given."""
    offline: bool = False
    """Of the hub, look only at what was fetched before."""


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(tyro.cli(Annotated[Reproduce, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre reproduce"))


def run(options: Reproduce) -> None:
    """Make it again and print "identical".

    Raises:
        DaguerreError: the pictures differ; says by how much, and what of their origins differs.
    """
    image, origin = read_origin(options.picture)
    if options.out is not None:
        check_writable(check_suffix(options.out, FORMATS))
    with busy("opening the model"):
        model = open_any(
            options.model or origin.model, options.vae, options.device or origin.device, origin.dtype, offline=options.offline
        )

    from daguerre.pipelines import steps

    pictures = Pictures()
    for step in track(steps(model, origin.request), "making", origin.request.steps):
        pictures = step.pictures or pictures
    again = pictures.grid() if origin.picture is None else pictures[origin.picture]
    if options.out is not None:
        print(again.save(options.out))
    if difference := differ(image, again, options.picture.suffix.lower()):
        raise DaguerreError(f"'{options.picture}' came out differently ({difference}); {changes(origin, again.origin)}.")
    print("identical")


def differ(image: "Image.Image", again: Picture, suffix: str) -> str:
    """How a saved picture and a new one differ when saved in the same format, "" where every pixel agrees."""
    if image.size != again.image.size:
        return f"{image.width}×{image.height} pixels before, {again.image.width}×{again.image.height} now"
    from PIL import Image, ImageChops

    file = BytesIO()
    write_picture(file, again.image, suffix, again.origin)
    difference = ImageChops.difference(image.convert("RGB"), Image.open(file).convert("RGB"))
    largest = max(difference.tobytes())
    return f"by up to {largest}/255" if largest else ""


def changes(before: Origin, now: Origin) -> str:
    """What differs between two origins, in words."""
    names = ("model", "version", "torch", "device", "dtype")
    changed = [
        f"{name} was {getattr(before, name)} and is {getattr(now, name)}" for name in names if getattr(before, name) != getattr(now, name)
    ]
    return (
        ", ".join(changed)
        or "version, torch, device and precision are the same, so it is another machine or the model's weights have changed"
    )
