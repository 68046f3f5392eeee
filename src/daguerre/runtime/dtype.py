"""The dtype to compute in where none is asked for: half precision where this machine is quicker with it."""

import time
from functools import cache

import torch
import torch.nn.functional as F

TRIES = 4  # of which the quickest counts, as other programs only ever slow one down
CHANNELS, SIDE = 128, 32  # of the convolution that is tried: three milliseconds of one core in float32


def default_dtype(device: torch.device) -> torch.dtype:
    """float16 on a GPU; on a CPU bfloat16 where it multiplies that natively and is measured to be quicker with it, else float32."""
    if device.type == "cpu":
        return torch.bfloat16 if has_native_bfloat16() and _quicker_in_bfloat16() else torch.float32
    return torch.float16


def has_native_bfloat16() -> bool:
    """Whether there are instructions for it; without them trying it alone takes long."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
@torch.no_grad()
def _quicker_in_bfloat16() -> bool:
    """Whether a convolution of the networks' kind is, tried in turns once a process."""
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    x, weight = torch.ones(1, CHANNELS, SIDE, SIDE), torch.ones(CHANNELS, CHANNELS, 3, 3)
    cases = {dtype: tuple(y.to(dtype, memory_format=torch.channels_last) for y in (x, weight)) for dtype in best}
    for _ in range(TRIES):
        for dtype, (states, kernel) in cases.items():
            start = time.perf_counter()
            F.conv2d(states, kernel, padding=1)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.bfloat16] < best[torch.float32]
