"""`daguerre shard FOLDER --out DIR`: write the images of a folder as webdataset shards; prints the path of their index."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.atomic_io import check_writable
from daguerre.cli.parsing import is_image_source, parse_options, usage_errors
from daguerre.errors import DaguerreError


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Write the images of a folder, with captions and classes, as webdataset shards for training; see docs/scale.md.

    The image files stay as they are. A run that was killed continues when the same command is run again.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A folder of images, or shards to write in other sizes."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for the shards."""
    shard_size: Annotated[float, tyro.conf.arg(metavar="MB")] = 500
    """Largest size of a shard, in millions of bytes."""
    samples: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Largest number of images in a shard. Default: only the size counts."""
    skip_bad: bool = False
    """Leave out unreadable images instead of stopping."""


def main(arguments: Sequence[str]) -> None:
    """Parse, write what is missing, and print what was found and the path of the index."""
    options = parse_options(ShardOptions, arguments, "shard")
    with usage_errors():
        if not is_image_source(options.folder):
            raise DaguerreError(f"There is no directory '{options.folder}'; give a directory of images, or shards or their address.")
        if options.out.is_file():
            raise DaguerreError(f"--out '{options.out}' is a file; name a folder.")
        check_writable(options.out / "index.json")
        from daguerre.data.catalog import open_image_files
        from daguerre.data.shards.write import ShardLimits, write_shards

        limits = ShardLimits(options.shard_size, options.samples)
    source = open_image_files(options.folder, 1, crop="center", skip_bad=options.skip_bad)
    for line in [*(f"skipped: {problem}" for _, problem in source.skipped), *source.summary[:-1]]:  # the last one is about crops
        print(line, file=sys.stderr)
    print(write_shards(source, options.out, limits))
    print(f"Try it: daguerre train ddpm --data {options.out}", file=sys.stderr)
