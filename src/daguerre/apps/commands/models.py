"""`daguerre models`: what there is to choose from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from daguerre.weights.catalog import DEFAULT, embedded


@dataclass(frozen=True)
class Models:
    """List the models inside the package, or with --samplers the samplers and spacings."""

    samplers: bool = False
    """List samplers and spacings."""


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[Models, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre models")
    list_samplers() if options.samplers else list_models()


def list_models() -> None:
    """A model a line: name, size on disk, folder."""
    entries = embedded()
    for entry in entries:
        print(f"{entry.name:<12} {entry.size / 2**20:6.1f} MiB  {entry.folder}{'  (default)' if entry.name == DEFAULT else ''}")
    if not entries:
        print("There are no models inside this installation; give a folder with --model.")


def list_samplers() -> None:
    """A sampler a line with its order, evaluations a step, use of noise and other names, then the spacings."""
    from daguerre.diffusion import SPACINGS, sampler_rows

    rows = sampler_rows()
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    for row in rows:
        print("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nspacing             noise levels")
    for name, spacing in SPACINGS.items():
        print(f"{name:<20}{(spacing.__doc__ or '').strip().splitlines()[0]}")
