"""`daguerre evaluate`: measure how well a model follows its prompts."""

from collections.abc import Sequence

from daguerre.cli.model_loading import check_model_name
from daguerre.cli.parsing import parse_options
from daguerre.evaluation.config import EvaluateConfig


def main(arguments: Sequence[str]) -> None:
    """Measure a model; print the tables of its model card and the path of the full report."""
    config = parse_options(EvaluateConfig, arguments, "evaluate")
    check_model_name(config.model)

    from daguerre.evaluation.evaluate import run

    print(run(config).markdown())
    print(config.out)
