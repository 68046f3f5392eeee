"""`daguerre evaluate`: measure how well a model follows its prompts, its loss on a directory of images, or two directories of images."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from daguerre.atomic_io import expand_user, is_address
from daguerre.cli.model_loading import check_model_name, choose_threads
from daguerre.cli.parsing import UsageError, is_image_source, parse_options
from daguerre.evaluation.config import RENDERED, RENDERED_IMAGES, EvaluateConfig


def main(arguments: Sequence[str]) -> None:
    """Measure; print the tables of the report and the path of the full report."""
    config = parse_options(EvaluateConfig, arguments, "evaluate")
    check_model_name(config.model)
    rendered = RENDERED_IMAGES if config.bits_per_dim else RENDERED
    folders = [folder for folder in (config.images, None if config.data in rendered else config.data) if folder is not None]
    for folder in folders:
        if config.images is not None and str(folder).endswith(".npz") and expand_user(folder).is_file():
            continue
        if not is_image_source(folder):
            raise UsageError(f"There is no directory '{folder}'; give a directory of images{'' if config.images else ', emoji or shapes'}.")
    if config.data is not None and config.data not in rendered and not is_address(config.data):
        config = replace(config, data=str(expand_user(config.data)))
    choose_threads(config.threads)

    if config.bits_per_dim:
        from daguerre.evaluation.likelihood import run
    elif config.images is not None:
        from daguerre.evaluation.folders import run_folders as run
    elif folders:
        from daguerre.evaluation.held_out import run_held_out as run
    else:
        from daguerre.evaluation.evaluate import run

    report = run(config)
    if report is None:
        print("daguerre: this share is computed; the process that finishes last writes the report.", file=sys.stderr)
        return
    print(report.markdown())
    print(config.out)
