"""`daguerre batch TABLE --out FOLDER`: one image, or several, for each row of a table of prompts; prints the path of the index.

What belongs to a row has a name that depends only on the row, its request and the model. So files that exist are skipped, any share of the
rows can be generated anywhere, and a run that was killed ends with the same files when it is started again.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.atomic_io import check_writable
from daguerre.cli.options import (
    AdapterOptions,
    NegativePrompt,
    OptionalInt,
    PipelineOptions,
    SamplingOptions,
    SizedImageOptions,
    build_request,
    with_preset,
)
from daguerre.cli.parsing import parse_options, usage_errors
from daguerre.cli.rows import Table, read_table
from daguerre.errors import DaguerreError, join_names
from daguerre.pipelines.request import Request
from daguerre.share import parse_shard


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Generate images for each row of a table of prompts; see docs/scale.md.

    Columns have the names of the options: prompt, negative_prompt, seed, steps, sampler, guidance_scale, width, height, ... A cell that is
    empty has the value of the option. The column id names a row.
    """

    table: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """The table: .csv, .jsonl or .parquet."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for the images and their index. Files that exist are skipped."""
    negative_prompt: NegativePrompt = Request.negative_prompt
    shard: Annotated[str | None, tyro.conf.arg(metavar="INDEX/COUNT", help_behavior_hint="")] = None
    """Generate only this share of the rows: 0/4, 1/4, 2/4 or 3/4 on four machines. Default: all rows."""
    executor: Literal["local", "ray"] = "local"
    """What runs the rows: local, this process; or ray, the actors of a Ray cluster, of RAY_ADDRESS or on this machine."""
    actors: OptionalInt = None
    """Number of actors with --executor ray. Default: one for each GPU, else as many as have CPUs for their threads."""
    image_options: Annotated[SizedImageOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="image", help="")] = field(
        default_factory=SizedImageOptions
    )
    sampling: Annotated[SamplingOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(help="")] = field(default_factory=SamplingOptions)
    loading: Annotated[PipelineOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="model", help="")] = field(
        default_factory=PipelineOptions
    )
    adapters: Annotated[AdapterOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="adapter", help="")] = field(
        default_factory=AdapterOptions
    )

    def defaults(self, table: Table) -> Request:
        """The request of a row whose cells are empty, with the adapters that the options and the prompts of the whole table name."""
        from daguerre.cli.adapters import adapter_records

        if self.sampling.seed < 0:
            raise DaguerreError(f"--seed is {self.sampling.seed}; a table needs a seed, so that it gives the same images again.")
        groups = self.image_options, self.sampling, self.loading
        defaults = build_request([""], None, *groups, negative_prompt=self.negative_prompt)
        prompts = dict.fromkeys(str(row.values["prompt"]) for row in table.rows if "prompt" in row.values)
        if self.adapters != AdapterOptions() or any("<" in prompt for prompt in prompts):
            defaults = replace(defaults, adapters=adapter_records(self.adapters, replace(defaults, prompt=tuple(prompts) or "")))
        return with_preset(defaults, self.sampling, self.loading.model)


def main(arguments: Sequence[str]) -> None:
    """Parse, generate what is missing, write the index and the list of failed rows, and print the path of the index."""
    options = parse_options(BatchOptions, arguments, "batch")
    with usage_errors():
        shard = parse_shard(options.shard)
        if options.actors is not None and options.actors < 1:
            raise DaguerreError(f"--actors is {options.actors}; it must be 1 or more.")
        if options.actors is not None and options.executor == "local":
            raise DaguerreError("--actors belongs to --executor ray; give both.")
        if options.out.is_file():
            raise DaguerreError(f"--out '{options.out}' is a file; name a folder.")
        check_writable(options.out / "index.jsonl")
        table = read_table(options.table)
        defaults = options.defaults(table)
    if table.unused:
        print(f"daguerre: columns that are not used: {join_names(table.unused)}.", file=sys.stderr)
    from daguerre.cli.fleet import Fleet, run_shard
    from daguerre.cli.ray_fleet import on_ray

    fleet = Fleet(options.loading, defaults, options.out)
    with on_ray(fleet, options.actors) if options.executor == "ray" else nullcontext(fleet) as running:
        report = run_shard(running, table.rows, shard)
    print(report.index)
    print(f"daguerre: {report.generated} rows generated, {report.present} were there.", file=sys.stderr)
    if report.failed:
        raise DaguerreError(
            f"{len(report.failed)} of {report.rows} rows failed; '{report.failures}' says why. The same command tries them once more."
        )
