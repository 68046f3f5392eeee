"""`daguerre reconstruct FOLDER --model M`: what a first stage keeps of pictures, beside JPEG and WebP of the same size."""

from collections.abc import Sequence

import tyro


def main(arguments: Sequence[str]) -> None:
    """Measure, print the table and where the whole report lies."""
    from daguerre.evaluation.reconstruct import ReconstructConfig, run

    config = tyro.cli(ReconstructConfig, args=arguments, prog="daguerre reconstruct")
    print(run(config).markdown())
    print(config.out)
