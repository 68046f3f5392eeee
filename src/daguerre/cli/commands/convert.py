"""`daguerre convert SOURCE TARGET`: a checkpoint in another form, tensor by tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.cli.options import PREDICTIONS_BY_FLAG, DtypeName, PredictionFlag, dtype_by_name
from daguerre.progress import spinner


@dataclass(frozen=True)
class ConvertOptions:
    """Write a checkpoint in another form: one file or a folder, another precision, without the running average, out of pickle."""

    source: tyro.conf.Positional[Path]
    """A checkpoint's file, the index of its shards, or a folder."""
    target: tyro.conf.Positional[Path]
    """A name that ends in .safetensors makes one file, any other a folder."""
    dtype: Literal["same", DtypeName] = "same"
    """Precision of the written tensors."""
    weights: Literal["all", "plain", "average"] = "all"
    """Of a checkpoint with both: the weights alone, their running average in their place, or as the source has them."""
    prediction_type: PredictionFlag = "auto"
    """What the network predicts, where the source does not say."""
    variant: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """Of a folder's files, such as fp16."""


def main(arguments: Sequence[str]) -> None:
    """Parse, convert, and print where the result is."""
    options = tyro.cli(ConvertOptions, args=arguments, prog="daguerre convert")
    from daguerre.weights.convert import convert

    with spinner("converting"):
        written = convert(
            options.source,
            options.target,
            dtype=None if options.dtype == "same" else dtype_by_name(options.dtype),
            ema={"all": None, "plain": False, "average": True}[options.weights],
            prediction=PREDICTIONS_BY_FLAG[options.prediction_type],
            variant=options.variant,
        )
    print(written)
