"""`daguerre convert SOURCE TARGET`: write a checkpoint in another format, tensor by tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.cli.model_loading import check_model_name
from daguerre.cli.options import PREDICTIONS_BY_FLAG, DtypeName, OptionalText, PredictionFlag, dtype_by_name
from daguerre.cli.parsing import UsageError, parse_options
from daguerre.progress import spinner


@dataclass(frozen=True)
class ConvertOptions:
    """Write a checkpoint in another format: one file or a folder, another precision, with or without EMA weights, without pickle."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A checkpoint file, the index of its shards, a folder, a name that `daguerre models` lists, or a Hub id."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """A name that ends in .safetensors gives one file, any other name a folder."""
    dtype: Literal["same", DtypeName] = "same"
    """Precision of the written tensors."""
    ema: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Write the EMA weights instead of the plain weights. Default: what the source has, and the plain weights into a folder."""
    no_ema: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Write the plain weights without the EMA weights."""
    drop_unknown: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Leave out tensors that no network of the model has."""
    prediction_type: PredictionFlag = "auto"
    """What the network predicts, if the source does not state it."""
    variant: OptionalText = None
    """Variant of a folder's files, such as fp16."""


def main(arguments: Sequence[str]) -> None:
    """Parse, convert, and print the path of the result."""
    options = parse_options(ConvertOptions, arguments, "convert")
    if options.ema and options.no_ema:
        raise UsageError("--ema and --no-ema exclude each other; give one of them.")
    check_model_name(options.source)
    from daguerre.weights.convert import convert

    with spinner("converting"):
        written = convert(
            options.source,
            options.target,
            dtype=None if options.dtype == "same" else dtype_by_name(options.dtype),
            ema=True if options.ema else False if options.no_ema else None,
            prediction=PREDICTIONS_BY_FLAG[options.prediction_type],
            variant=options.variant,
            drop_unknown=options.drop_unknown,
        )
    print(written)
