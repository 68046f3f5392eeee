"""`daguerre img2img PICTURE PROMPT…`: pictures drawn over by words, one or a whole folder of them; prints a path a line."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.apps.inputs import read_given
from daguerre.apps.making import Making, check_places, made, make, open_for
from daguerre.apps.options import PictureFile, Prompts
from daguerre.errors import DaguerreError
from daguerre.files import check_writable
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Fit, ImageToImage, Latent


@dataclass(frozen=True)
class Img2Img(Making):
    """Draw over a picture: noise is added to it, as much as --strength says, and taken away by the words.

    Of a folder every picture is drawn over with the same options; the results go to the folder --out under their old names.
    """

    picture: PictureFile
    """The picture, or a folder of pictures."""
    prompt: Prompts
    """What it shall become; quote each prompt."""
    strength: float = ImageToImage.strength
    """How much is drawn anew: 0 is the picture as the autoencoder keeps it, 1 is nothing of it."""
    fit: Fit = ImageToImage.fit
    """How the picture takes the shape of --size: its middle, all of it with its edges drawn out, or stretched."""
    latent: Latent = ImageToImage.latent
    """What of the autoencoder's encoding is taken: its mean, or a sample as other programs take it."""

    def request(self, picture: Path) -> Request:
        """The request that these options are, for one picture."""
        return self.request_for(self.prompt, ImageToImage(read_given(picture), self.strength, self.fit, self.latent))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[Img2Img, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre img2img")
    if options.picture.is_dir():
        make_all(options)
    else:
        make(options, options.request(options.picture))


def make_all(options: Img2Img) -> None:
    """Draw over every picture of a folder; one that cannot be read is told, and the others are made.

    Raises:
        DaguerreError: there is no picture, the options want one file, or some pictures could not be made.
    """
    from daguerre.data.pictures import SUFFIXES

    folder, out = options.picture, options.out or options.picture.with_name(f"{options.picture.name}-img2img")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise DaguerreError(f"There is no picture in '{folder}'; files ending in {', '.join(sorted(SUFFIXES))} are looked for.")
    if options.film or options.preview:
        raise DaguerreError("--film and --preview show one picture, and a folder was given; leave them out.")
    if out.resolve() == folder.resolve() or out.suffix:
        raise DaguerreError(f"--out '{out}' must be a folder for the results, another than that of the pictures.")
    names = [path.stem if len({other for other in pictures if other.stem == path.stem}) == 1 else path.name for path in pictures]
    check_writable(out / "one.png")
    model, failed = open_for(options), []
    for path, name in zip(pictures, names, strict=True):
        try:
            request = options.request(path)
            place = out / f"{name}.png"
            check_places(options, place, request)
            for written in made(model, options, request, place):
                print(written)
        except DaguerreError as error:
            print(f"daguerre: {error}", file=sys.stderr)
            failed.append(path.name)
    if failed:
        raise DaguerreError(f"{len(failed)} of {len(pictures)} pictures could not be made: {', '.join(failed)}; the others are in '{out}'.")
