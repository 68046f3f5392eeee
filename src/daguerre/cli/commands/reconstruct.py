"""`daguerre reconstruct DATA --model M…`: measure what autoencoders preserve of an image or of many; prints the table and its folder."""

from collections.abc import Sequence

from daguerre.atomic_io import expand_user
from daguerre.cli.model_loading import check_model_name, choose_threads
from daguerre.cli.parsing import UsageError, parse_options
from daguerre.evaluation.config import ReconstructConfig

BUILT_IN = ("shapes", "emoji", "emoji-faces")  # as in `data.catalog`, which imports numpy


def main(arguments: Sequence[str]) -> None:
    """Measure; print the table and the path of the full report.

    One model and a dataset are compared with JPEG and WebP of the same size; one image, or several models, give a table of images.
    The options that explore the latent space replace both.
    """
    config = parse_options(ReconstructConfig, arguments, "reconstruct")
    for model in config.model:
        check_model_name(model)
    path = expand_user(config.data)
    if config.data not in BUILT_IN and not path.exists():
        raise UsageError(f"There is no image or folder '{config.data}'; give one, or {' or '.join(BUILT_IN)}.")
    if config.interpolate_to is not None and not (path.is_file() and expand_user(config.interpolate_to).is_file()):
        raise UsageError(f"--interpolate-to needs two image files, not '{config.data}' and '{config.interpolate_to}'.")
    if config.unseen is not None and config.unseen not in BUILT_IN and not expand_user(config.unseen).is_dir():
        raise UsageError(f"There is no folder '{config.unseen}' for --unseen; give one, or {' or '.join(BUILT_IN)}.")
    choose_threads(config.threads)
    if config.explores:
        from daguerre.evaluation.latent_space import explore

        print(explore(config).markdown())
        print(config.out)
        return
    if path.is_file() or len(config.model) > 1 or config.latent is not None:
        from daguerre.evaluation.reconstruct_models import run_models

        print(run_models(config).markdown())
    else:
        from daguerre.evaluation.reconstruct import run

        print(run(config).markdown())
    print(config.out)
