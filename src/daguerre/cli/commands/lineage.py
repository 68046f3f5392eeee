"""`daguerre lineage`: one sheet and one page of every generation of model from the autoencoder to Stable Diffusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.model_loading import choose_threads
from daguerre.cli.options import Seed, Threads
from daguerre.cli.parsing import parse_options, usage_errors
from daguerre.errors import DaguerreError


@dataclass(frozen=True)
class LineageOptions:
    """Show every generation on one sheet: what each reconstructs and generates, what it costs, and what it added.

    Uses the shipped models, in about two minutes of two cores. With --retrain all of them are trained again first, which takes many hours;
    the same command resumes an interrupted training.
    """

    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("lineage")
    """Folder for sheet.png, index.html and report.json."""
    seed: Seed = 0
    retrain: bool = False
    """Train every model by its recorded commands, in --runs, and show these."""
    runs: Path = Path("runs/lineage")
    """With --retrain: folder of the trainings."""
    threads: Threads = None


def main(arguments: Sequence[str]) -> None:
    """Parse and run; print the paths of the sheet and of the page."""
    options = parse_options(LineageOptions, arguments, "lineage")
    with usage_errors():
        if options.seed < 0:
            raise DaguerreError(f"seed is {options.seed}; it must be 0 or more.")
    choose_threads(options.threads)

    from daguerre.evaluation.lineage.sheet import show, train_all

    if options.retrain:
        train_all(options.runs)
    for path in show(options.out, options.seed, options.runs if options.retrain else None):
        print(path)
