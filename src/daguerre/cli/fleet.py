"""Generate the rows of a table into a folder, by any number of processes that need not know of each other.

    FOLDER/ab/ab12….png    an image; its name is a hash of the row's id, its request, the model, and the precision
    FOLDER/index.jsonl     one line for each image that exists, in the order of the rows
    FOLDER/failed.jsonl    the rows that failed, with the reason (of a share, failed-INDEX-of-COUNT.jsonl); absent if there are none

Every file is complete or does not exist, and its content depends only on the table and the model. So each row is generated once, whatever
is killed and started again. Every process writes the index when it is done, from what it finds, until the index is what it finds: the last
one to finish writes all of it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from daguerre.atomic_io import atomic_write, numbered_paths
from daguerre.cli.generation import open_pipeline
from daguerre.cli.options import PipelineOptions
from daguerre.cli.rows import TableRow, row_request
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.pipelines import Request, generate
from daguerre.pipelines.context import resolve_adapters
from daguerre.progress import track
from daguerre.share import in_shard
from daguerre.weights.hashing import identity

NAME_LENGTH = 32  # hex digits: 128 bits
INDEX_FILE = "index.jsonl"


@dataclass(frozen=True)
class Outcome:
    """What became of a row. error: why it failed, else None."""

    row: TableRow
    error: str | None = None


@dataclass(frozen=True)
class Report:
    """What a process did: the numbers of its rows, of those it generated, and of those that were there; the rows that failed."""

    index: Path
    failures: Path
    rows: int
    generated: int
    present: int
    failed: Sequence[Outcome]


@dataclass(frozen=True)
class Fleet:
    """What all processes of a fleet have in common: the options of the model, the request of an empty row, and the folder."""

    loading: PipelineOptions
    defaults: Request
    out: Path

    @cached_property
    def model(self) -> LatentDiffusion | LatentPrior:
        """The model, opened once in each process. Its number of threads does not depend on what else runs, so that a row has the same
        bytes when it is generated once more."""
        threads = torch.get_num_threads() if self.loading.threads is None else self.loading.threads
        return open_pipeline(replace(self.loading, threads=threads), replace(self.defaults, adapters=()), self.defaults.adapters)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What the bytes of an image depend on apart from its request: the weights, the precision and the adapters."""
        model = self.model
        diffusion = isinstance(model, LatentDiffusion)
        adapters = resolve_adapters(model, replace(self.defaults, adapters=())) if diffusion else ()
        return {
            "model": identity(model),
            "dtype": str(model.dtype),
            "prediction": model.prediction if diffusion else None,
            "adapters": [{**record.to_json(), "path": None} for record in adapters],  # the same file elsewhere is the same
        }

    def request(self, row: TableRow) -> Request:
        """The request of a row. Raises DaguerreError if a value is wrong."""
        return replace(row_request(row, self.defaults), adapters=())

    def files(self, row: TableRow, request: Request) -> list[Path]:
        """The files of a row, one for each image, relative to the folder."""
        described = json.dumps([row.id, request.to_json(), self.identity], sort_keys=True)
        name = hashlib.sha256(described.encode()).hexdigest()[:NAME_LENGTH]
        return numbered_paths(Path(name[:2], f"{name}.png"), len(request.items))

    def generate(self, row: TableRow) -> Outcome:
        """Generate the images of a row, unless all of them exist, and write those that do not.

        Raises:
            DaguerreError: a file cannot be written, or the model cannot be opened. What is wrong with the row is a part of the outcome.
        """
        model = self.model
        try:
            request = self.request(row)
            files = [self.out / file for file in self.files(row, request)]
            if all(file.exists() for file in files):
                return Outcome(row)
            images = generate(model, request)
        except (DaguerreError, RuntimeError) as error:  # PyTorch raises RuntimeError if memory or a kernel does not suffice
            return Outcome(row, (str(error).strip() or type(error).__name__).splitlines()[0])
        for image, file in zip(images, files, strict=True):
            if not file.exists():
                image.save(file)
        return Outcome(row)

    def outcomes(self, rows: Sequence[TableRow]) -> Iterator[Outcome]:
        """Generate rows, in any order. Raises DaguerreError as `generate` does."""
        yield from map(self.generate, rows)


def run_shard(fleet: Fleet, rows: Sequence[TableRow], shard: tuple[int, int]) -> Report:
    """Generate the rows of a share that lack an image; then write the list of failed rows and the index.

    Raises:
        DaguerreError: the model cannot be opened, or a file cannot be written.
    """
    _ = fleet.identity  # what is wrong with the model must not count as what is wrong with each row
    existing = _existing(fleet.out)
    mine = [row for row in rows if in_shard(row.number - 1, shard)]
    missing = [row for row in mine if (files := _files(fleet, row)) is None or not existing.issuperset(files)]
    outcomes = track(fleet.outcomes(missing), "rows", len(missing))
    failed = sorted((outcome for outcome in outcomes if outcome.error is not None), key=lambda outcome: outcome.row.number)
    index, count = shard
    failures = fleet.out / ("failed.jsonl" if count == 1 else f"failed-{index}-of-{count}.jsonl")
    if failed:
        _write_lines(failures, ({"row": each.row.number, "id": each.row.id, "error": each.error} for each in failed))
    else:
        failures.unlink(missing_ok=True)
    written = None
    while (found := list(_index_lines(fleet, rows))) != written:
        _write_lines(fleet.out / INDEX_FILE, found)
        written = found
    return Report(fleet.out / INDEX_FILE, failures, len(mine), len(missing) - len(failed), len(mine) - len(missing), failed)


def _index_lines(fleet: Fleet, rows: Iterable[TableRow]) -> Iterator[dict[str, Any]]:
    """A line for each image that exists, in the order of the rows."""
    existing = _existing(fleet.out)
    for row in rows:
        for number, file in enumerate(_files(fleet, row) or ()):
            if file in existing:
                prompt, seed = fleet.request(row).items[number]
                yield {"row": row.number, "id": row.id, "file": file, "prompt": prompt, "seed": seed}


def _files(fleet: Fleet, row: TableRow) -> list[str] | None:
    """The names of a row's files; None if its request is wrong."""
    try:
        return [file.as_posix() for file in fleet.files(row, fleet.request(row))]
    except DaguerreError:
        return None


def _existing(out: Path) -> set[str]:
    return {file.relative_to(out).as_posix() for file in out.glob("??/*.png")}


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with atomic_write(path) as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
