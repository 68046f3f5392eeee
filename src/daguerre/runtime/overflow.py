"""Overflow guard: a network whose result is not finite in half precision computes in float32 from then on.

float16 ends at 65504. The autoencoder of SDXL exceeds that, and so do UNets with unusual weights.
"""

import logging
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor, nn

from daguerre.diffusion import Conditioning

P = ParamSpec("P")

log = logging.getLogger(__name__)


def retry_in_float32(module: object, call: Callable[P, Tensor], name: str) -> Callable[P, Tensor]:
    """Wrap `call`, which computes with `module`: after an overflow, convert the module to float32 for good and call it again.

    name: of the module, for the log.
    """
    if not isinstance(module, nn.Module):
        return call

    def call_float32(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return call(*map(_to_float32, args), **{key: _to_float32(value) for key, value in kwargs.items()})  # type: ignore[arg-type]

    def guarded(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if any(parameter.dtype == torch.float32 for parameter in module.parameters()):
            return call_float32(*args, **kwargs)
        result = call(*args, **kwargs)
        if result.dtype not in (torch.float16, torch.bfloat16) or bool(result.isfinite().all()):
            return result
        log.warning("The %s overflowed in %s; it computes in float32 from now on.", name, str(result.dtype).removeprefix("torch."))
        module.float()
        return call_float32(*args, **kwargs)

    return guarded


def _to_float32(value: object) -> object:
    if isinstance(value, Conditioning):
        return value.to(dtype=torch.float32)
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
