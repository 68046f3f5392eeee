"""`daguerre convert SOURCE TARGET`: write a checkpoint or a LoRA in another format; merge LoRAs, extract one, change its rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.cli.adapters import lora_record
from daguerre.cli.model_loading import check_model_name
from daguerre.cli.options import (
    PREDICTIONS_BY_FLAG,
    DtypeName,
    OptionalInt,
    OptionalPath,
    OptionalText,
    PredictionFlag,
    dtype_by_name,
)
from daguerre.cli.parsing import UsageError, parse_options, usage_errors
from daguerre.errors import DaguerreError
from daguerre.progress import spinner
from daguerre.weights.catalog import find, local

DEFAULT_RANK = 32  # of an extracted LoRA


@dataclass(frozen=True)
class ConvertOptions:
    """Write a checkpoint in another format: one file or a folder, another precision, with or without EMA weights, without pickle.

    --lora merges LoRAs into the checkpoint; --base extracts a LoRA from the difference of two checkpoints. A LoRA as SOURCE is written with
    other names or another rank.
    """

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
    lora: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE[:SCALE]", help_behavior_hint="")] = ()
    """Merge this LoRA into the checkpoint, with its strength. Repeat it for several."""
    base: OptionalPath = None
    """Write a LoRA with the difference of SOURCE from this checkpoint, of the rank --rank."""
    rank: OptionalInt = None
    """Rank of the LoRA that is written. Default: 32 with --base, else unchanged."""
    naming: Literal["kohya", "peft"] = "kohya"
    """Names in the LoRA that is written: kohya's for web UIs and ComfyUI, or PEFT's for diffusers."""
    variant: OptionalText = None
    """Variant of a folder's files, such as fp16."""


def main(arguments: Sequence[str]) -> None:
    """Parse, convert, and print the path of the result."""
    options = parse_options(ConvertOptions, arguments, "convert")
    if options.ema and options.no_ema:
        raise UsageError("--ema and --no-ema exclude each other; give one of them.")
    with usage_errors():
        check_model_name(options.source)
        if options.rank is not None and options.rank < 1:
            raise DaguerreError(f"--rank is {options.rank}; it is 1 or more, such as 32.")
        if options.base is not None and not options.base.exists():
            raise DaguerreError(f"There is no checkpoint '{options.base}'; check the path.")
        if options.base is not None and options.lora:
            raise DaguerreError("--lora merges and --base extracts; give one of the two.")
        records = [lora_record(text, None) for text in options.lora]
    if options.base is not None or is_lora(options.source):
        if options.lora:
            raise UsageError(f"'{options.source}' is a LoRA; --lora merges into a checkpoint.")
        with spinner("converting"):
            print(_write_lora(options))
        return
    from daguerre.adapters.load import load_adapter
    from daguerre.adapters.lora.lora import Lora
    from daguerre.adapters.lora.merge import merge_loras
    from daguerre.weights.convert import convert

    loras = [lora for record in records if isinstance(lora := load_adapter(record), Lora)]

    with spinner("converting"):
        written = convert(
            options.source,
            options.target,
            dtype=None if options.dtype == "same" else dtype_by_name(options.dtype),
            ema=True if options.ema else False if options.no_ema else None,
            prediction=PREDICTIONS_BY_FLAG[options.prediction_type],
            variant=options.variant,
            drop_unknown=options.drop_unknown,
            edit=partial(merge_loras, loras=loras) if loras else None,
        )
    print(written)


def is_lora(source: str) -> bool:
    """Whether a path is the file or folder of a LoRA."""
    from daguerre.adapters.lora.read import FOLDER_FILES_OF_LORA
    from daguerre.weights.original.detect import attachment_kind
    from daguerre.weights.tensors.reader import open_tensors

    path = local(source)
    if path is None or path.is_dir():
        return path is not None and any((path / name).is_file() for name in FOLDER_FILES_OF_LORA)
    return attachment_kind(open_tensors(path).shapes) == "lora"


def _write_lora(options: ConvertOptions) -> Path:
    """Write the LoRA of a file, or the difference of two checkpoints."""
    from daguerre.adapters.describe import networks_of_family
    from daguerre.adapters.lora.merge import extract_lora
    from daguerre.adapters.lora.read import load_lora
    from daguerre.adapters.lora.write import resize_lora, save_lora

    if options.target.suffix != ".safetensors":
        raise UsageError(f"A LoRA is one file; give a target that ends in .safetensors, not '{options.target}'.")
    if options.target.exists():
        raise UsageError(f"'{options.target}' exists already; name another file.")
    if options.base is not None:
        lora, networks = extract_lora(find(options.source), options.base, options.rank or DEFAULT_RANK)
    else:
        lora = load_lora(options.source)
        networks = networks_of_family(lora)
        lora = lora if options.rank is None else resize_lora(lora, options.rank)
    dtype = None if options.dtype == "same" else dtype_by_name(options.dtype)
    return save_lora(lora, options.target, networks, naming=options.naming, dtype=dtype)
