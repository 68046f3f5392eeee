"""`daguerre inspect FILE`: what a picture says of how it was made, what is in a checkpoint, or how a prompt is read."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.options import OptionalText
from daguerre.errors import DaguerreError
from daguerre.pipelines.metadata.readers import read_foreign
from daguerre.pipelines.metadata.write import TEXT, daguerre_json, read_image_texts
from daguerre.pipelines.request import Request
from daguerre.weights.catalog import find

IMAGE_SUFFIXES = b"\x89PNG", b"\xff\xd8\xff", b"RIFF"  # the first bytes of PNG, JPEG and WebP


@dataclass(frozen=True)
class InspectOptions:
    """Tell what a picture says of itself, what a checkpoint holds, or how a prompt is read; of a checkpoint only the header is read."""

    file: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A picture (.png, .webp, .jpg), a checkpoint's file or its folder."""
    prompt: OptionalText = None
    """Instead of a file: print this prompt's syntax tree, what it says at every step, and its tokens."""
    steps: int = Request.steps
    """Of the run that the prompt is for."""
    model: OptionalText = None
    """Whose tokenizer reads the prompt: a name from `daguerre models`, a folder or a file; the embedded model's if not given."""
    json: bool = False
    """Print one JSON object."""
    hash: bool = False
    """Also give the SHA-256 of each file of a checkpoint, for which all of it is read."""


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[InspectOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre inspect")
    if options.prompt is not None and options.file is None:
        inspect_prompt(options.prompt, options.steps, options.model, as_json=options.json)
        return
    if options.file is None or options.prompt is not None:
        raise DaguerreError("Give either a picture or a checkpoint, or --prompt with a text.")
    if is_image(options.file):
        inspect_image(options.file, as_json=options.json)
        return
    from daguerre.weights.inspect import inspect

    report = inspect(options.file, hashed=options.hash)
    print(report.json() if options.json else "\n".join(report.lines()))


def is_image(path: Path) -> bool:
    """Whether a file begins as pictures do; a folder is none.

    Raises:
        DaguerreError: there is nothing at `path`, or it cannot be read.
    """
    if path.is_dir():
        return False
    try:
        with path.open("rb") as file:
            return file.read(4).startswith(IMAGE_SUFFIXES)
    except OSError as error:
        raise DaguerreError(f"Cannot read '{path}': {error.strerror or error}.") from error


def inspect_prompt(prompt: str, steps: int, model: str | None, *, as_json: bool) -> None:
    """Print how a prompt is read.

    Raises:
        DaguerreError: it has no meaning, or there is no such model.
    """
    folder = find(model) / "tokenizer"
    if steps < 1:
        raise DaguerreError(f"steps is {steps}; it must be 1 or more.")

    from daguerre.conditioning import Tokenizer
    from daguerre.conditioning.explain import explain

    told = explain(prompt, steps, Tokenizer.from_folder(folder) if folder.is_dir() else Tokenizer.clip())  # a file brings none of its own
    print(json.dumps(told.json(), indent=2, ensure_ascii=False) if as_json else told.text())


def inspect_image(path: Path, *, as_json: bool) -> None:
    """Print the size, the `parameters` text and our own request, or what another program says of its picture, as a command."""
    image, texts = read_image_texts(path)
    ours = daguerre_json(texts)
    foreign = None if ours else read_foreign(texts)
    if as_json:
        told = {"width": image.width, "height": image.height, "parameters": texts.get(TEXT), "daguerre": ours}
        print(json.dumps({**told, "foreign": None if foreign is None else asdict(foreign)}, indent=2, ensure_ascii=False))
        return
    print(f"{path}: {image.width}×{image.height} pixels")
    if foreign is None:
        print(texts.get(TEXT, "It carries no generation parameters."))
    if ours:
        print(json.dumps(ours, indent=2, ensure_ascii=False))
    if foreign:
        print(f"made by {foreign.software}{f' with the model {foreign.model}' if foreign.model else ''}")
        print(f"  {foreign.command()}")
        if foreign.unused:
            print("has no place in a request here:")
            print("\n".join(f"  {name}: {value}" for name, value in foreign.unused.items()))
