"""`daguerre preprocess NAME IMAGE`: compute the condition map of an image for a ControlNet; prints its path."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.atomic_io import check_writable, free_path
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import ImagePath, Out
from daguerre.cli.parsing import parse_options, usage_errors
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.output import check_suffix, write_image
from daguerre.pipelines.metadata.write import OUTPUT_FORMATS

Preprocessor = Literal["canny", "lines", "softedge", "scribble", "tile", "grey", "blur", "colours"]


@dataclass(frozen=True)
class PreprocessOptions:
    """Compute the condition map of an image for a ControlNet, without a model."""

    name: Annotated[Preprocessor, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """canny, lines, softedge, scribble, tile, grey, blur or colours."""
    image: ImagePath
    """The input image."""
    out: Out = None


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(PreprocessOptions, arguments, "preprocess")
    with usage_errors():
        image = read_input(options.image)
        out = check_suffix(options.out or free_path(Path(f"{options.image.stem}-{options.name}.png")), OUTPUT_FORMATS)
        check_writable(out)
        if out.exists() and out.samefile(options.image):
            raise DaguerreError(f"--out '{out}' is the input image; give another file.")
    from daguerre.pipelines.images.preprocess import flatten_input
    from daguerre.pipelines.images.preprocessors import preprocess

    write_image(out, preprocess(flatten_input(image), options.name))
    print(out)
