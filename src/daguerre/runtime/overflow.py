"""Half precision watched: what a network answers is finite, or it is asked again in float32.

float16 ends at 65504; the decoder of SDXL and UNets under unusual weights pass it. Weights go to float32 and back unchanged.
"""

import logging
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor, nn

from daguerre.diffusion import Conditioning

P = ParamSpec("P")

log = logging.getLogger(__name__)


def retry_in_float32(module: object, call: Callable[P, Tensor], what: str) -> Callable[P, Tensor]:
    """`call`, which computes with `module`, done again in float32 where half precision overflows; `what` names the module in the log."""

    def watched(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        answer = call(*args, **kwargs)
        dtype = answer.dtype
        if not isinstance(module, nn.Module) or dtype not in (torch.float16, torch.bfloat16) or bool(answer.isfinite().all()):
            return answer
        log.warning("The %s overflowed in %s; this call is done again in float32.", what, str(dtype).removeprefix("torch."))
        module.float()
        try:
            return call(*map(_to_float32, args), **{name: _to_float32(value) for name, value in kwargs.items()})  # type: ignore[arg-type]
        finally:
            module.to(dtype)

    return watched


def _to_float32(value: object) -> object:
    if isinstance(value, Conditioning):
        return value.to(dtype=torch.float32)
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
