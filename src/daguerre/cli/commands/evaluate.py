"""`daguerre evaluate`: how well a model answers its prompts, by a judge that is itself measured."""

from collections.abc import Sequence

import tyro

from daguerre.evaluation.config import EvaluateConfig


def main(arguments: Sequence[str]) -> None:
    """Measure a model, print the tables of its card and where the whole report lies."""
    config = tyro.cli(EvaluateConfig, args=arguments, prog="daguerre evaluate")

    from daguerre.evaluation.evaluate import run

    print(run(config).markdown())
    print(config.out)
