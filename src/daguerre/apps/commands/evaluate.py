"""`daguerre evaluate`: how well a model answers its prompts, by a judge that is itself measured."""

from collections.abc import Sequence

import tyro


def main(arguments: Sequence[str]) -> None:
    """Measure a model, print the tables of its card and where the whole report lies."""
    from daguerre.training.evaluate import EvaluateConfig, run

    config = tyro.cli(EvaluateConfig, args=arguments, prog="daguerre evaluate")
    print(run(config).markdown())
    print(config.out)
