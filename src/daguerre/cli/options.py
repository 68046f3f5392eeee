"""Options that several commands share, and what their texts mean."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.pipelines.request import Variation

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from daguerre.diffusion.denoiser import Prediction

DtypeName = Literal["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
Dtype = Literal["auto", DtypeName]
PredictionFlag = Literal["auto", "epsilon", "v_prediction", "sample"]
PREDICTIONS_BY_FLAG: "Mapping[str, Prediction | None]" = {"auto": None, "epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # as the names of files have it
OptionalText = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
OptionalNumber = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
ImagePath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
Prompts = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT [PROMPT ...]", help_behavior_hint="")]


def dtype_by_name(name: str) -> "torch.dtype":
    """The dtype of a `DtypeName`: torch.float16 of "float16" and of "fp16"."""
    import torch  # not sooner, as it takes a second

    return getattr(torch, SHORT.get(name, name))


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """(width, height) of "64" or "96x64", (None, None) of nothing.

    Raises:
        DaguerreError: it is neither.
    """
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", size.strip().lower())
    if match is None:
        raise DaguerreError(f"The size {size!r} is neither one side, such as 64, nor WIDTHxHEIGHT, such as 96x64.")
    return int(match[1]), int(match[2] or match[1])


def parse_variation(variation: str | None) -> Variation | None:
    """The variation of "8:0.3", seed and weight; None of nothing.

    Raises:
        DaguerreError: it is neither.
    """
    if variation is None:
        return None
    match = re.fullmatch(r"(\d+):(\d*\.?\d+)", variation.strip())
    if match is None:
        raise DaguerreError(f"The variation {variation!r} is not SEED:WEIGHT, such as 8:0.3.")
    return Variation(int(match[1]), float(match[2]))


def slug(prompt: str) -> str:
    """A short file name of a prompt: its letters and digits, "picture" where it has none."""
    return "-".join(re.findall(r"\w+", prompt.lower()))[:40].strip("-") or "picture"
