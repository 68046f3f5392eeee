"""`daguerre models`: list the models, samplers and spacings to choose from, and the words that a model knows."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from daguerre.cli.parsing import parse_options, usage_errors
from daguerre.errors import DaguerreError
from daguerre.weights import catalog
from daguerre.weights.catalog import INDEX, embedded, find
from daguerre.weights.vocabulary import FILE_NAME, Vocabulary, words_in

CONFIG = "config.json"
WIDTH = 100  # columns of wrapped text


@dataclass(frozen=True)
class ModelsOptions:
    """List the models inside the package; with --samplers, the samplers and spacings; with --vocabulary, what a model knows."""

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")] = None
    """With --vocabulary: name or folder of a model. Default: the embedded model."""
    samplers: bool = False
    """List samplers and spacings."""
    vocabulary: bool = False
    """List the names of what a small model generates and the other words of its training captions."""

    def __post_init__(self) -> None:
        if self.samplers and self.vocabulary:
            raise DaguerreError("Give either --samplers or --vocabulary.")
        if self.model is not None and not self.vocabulary:
            raise DaguerreError(f"With the model {self.model!r} give --vocabulary, or use `daguerre inspect` for its networks.")


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(ModelsOptions, arguments, "models")
    if options.vocabulary:
        with usage_errors():
            folder = find(options.model)
        list_vocabulary(folder)
    elif options.samplers:
        list_samplers()
    else:
        list_models()


def list_models() -> None:
    """Print one model per line: name, kind, image size, size on disk, folder; then what else --model takes."""
    rows = [("model", "kind", "images", "on disk", "folder")]
    for entry in embedded():
        name = f"{entry.name} (default)" if entry.name == catalog.DEFAULT else entry.name
        kind = _read(entry.folder / INDEX).get("_class_name", "")
        rows.append((name, kind, _image_size(entry.folder), f"{entry.size / 2**20:.1f} MiB", str(entry.folder)))
    _print_table(rows if len(rows) > 1 else [("This installation contains no models.",)])
    print("\n--model also takes a folder, a checkpoint file, or OWNER/NAME on the hub.")


def _image_size(folder: Path) -> str:
    """Width and height in pixels that a latent diffusion model was trained on; "" if its configs do not state it."""
    latent, channels = _read(folder / "unet" / CONFIG).get("sample_size"), _read(folder / "vae" / CONFIG).get("block_out_channels")
    if not (folder / "vae").is_dir():
        channels = [1]  # a model of pixels
    if not isinstance(latent, int) or not isinstance(channels, list):
        return ""
    side = latent << (len(channels) - 1)
    return f"{side}x{side}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def list_vocabulary(folder: Path) -> None:
    """Print one name per line, then the words that no name has. Raises DaguerreError if the model has no vocabulary."""
    vocabulary = Vocabulary.read(folder)
    if vocabulary is None:
        raise DaguerreError(f"'{folder}' has no file {FILE_NAME}: the words that this model knows are not listed.")
    print("\n".join(sorted(vocabulary.names, key=str.casefold)))
    others = sorted(vocabulary.words - {word for name in vocabulary.names for word in words_in(name)})
    print(textwrap.fill(f"other words: {', '.join(others)}", WIDTH))


def list_samplers() -> None:
    """Print one sampler per line with its order, evaluations per step, noise and other names; then the spacings."""
    from daguerre.diffusion import SPACINGS, sampler_table

    _print_table(sampler_table())
    print()
    _print_table([("spacing", "noise levels"), *((name, (f.__doc__ or "").strip().splitlines()[0]) for name, f in SPACINGS.items())])


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    for row in rows:
        print("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
