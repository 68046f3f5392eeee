"""`daguerre inspect FILE`: what a picture says of how it was made, or what is in a checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.errors import DaguerreError
from daguerre.pipelines.metadata import JSON, TEXT, read_picture

PICTURES = b"\x89PNG", b"\xff\xd8\xff", b"RIFF"  # the first bytes of PNG, JPEG and WebP


@dataclass(frozen=True)
class Inspect:
    """Tell what a picture says of itself, or what a checkpoint holds; of a checkpoint only the header is read."""

    file: tyro.conf.Positional[Path]
    """A picture (.png, .webp, .jpg), a checkpoint's file or its folder."""
    json: bool = False
    """Print one JSON object."""
    hash: bool = False
    """Also give the SHA-256 of each file of a checkpoint, for which all of it is read."""


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[Inspect, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre inspect")
    if is_picture(options.file):
        inspect_picture(options.file, as_json=options.json)
        return
    from daguerre.weights.inspect import inspect

    report = inspect(options.file, hashed=options.hash)
    print(report.json() if options.json else "\n".join(report.lines()))


def is_picture(path: Path) -> bool:
    """Whether a file begins as pictures do; a folder is none.

    Raises:
        DaguerreError: there is nothing at `path`, or it cannot be read.
    """
    if path.is_dir():
        return False
    try:
        with path.open("rb") as file:
            return file.read(4).startswith(PICTURES)
    except OSError as error:
        raise DaguerreError(f"Cannot read '{path}': {error.strerror or error}.") from error


def inspect_picture(path: Path, *, as_json: bool) -> None:
    """Print the size, the `parameters` text and our own request."""
    image, texts = read_picture(path)
    ours = json.loads(texts[JSON]) if JSON in texts else None
    if as_json:
        told = {"width": image.width, "height": image.height, "parameters": texts.get(TEXT), "daguerre": ours}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    print(f"{path}: {image.width}×{image.height} pixels")
    print(texts.get(TEXT, "It carries no generation parameters."))
    if ours:
        print(json.dumps(ours, indent=2, ensure_ascii=False))
