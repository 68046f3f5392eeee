"""`daguerre reconstruct DATA --model M`: measure what an autoencoder preserves, against JPEG and WebP files of the same size."""

from collections.abc import Sequence

from daguerre.cli.model_loading import check_model_name
from daguerre.cli.parsing import parse_options
from daguerre.evaluation.config import ReconstructConfig


def main(arguments: Sequence[str]) -> None:
    """Measure; print the table and the path of the full report."""
    config = parse_options(ReconstructConfig, arguments, "reconstruct")
    check_model_name(config.model)
    from daguerre.evaluation.reconstruct import run

    print(run(config).markdown())
    print(config.out)
