"""The default dtype of computation: half precision if this machine is faster with it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F

from daguerre.nn.torch_private import cpu_has

ATTEMPTS = 4  # the fastest counts, because other programs only slow one down
CHANNELS, SIDE = 128, 32  # of the timed convolution: three milliseconds of one core in float32


def default_dtype(device: torch.device) -> torch.dtype:
    """float16 on a GPU. On a CPU, bfloat16 if it has instructions for it and a measurement shows that they are faster, else float32."""
    if device.type == "cpu":
        return torch.bfloat16 if has_native_bfloat16() and _bfloat16_is_faster() else torch.float32
    return torch.float16


@contextmanager
def without_autocast() -> Iterator[None]:
    """Disable an autocast that the caller has entered: a model computes in its own dtype. Also a decorator."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def has_native_bfloat16() -> bool:
    """True if the CPU has instructions for bfloat16. Without them, even the measurement would take long."""
    return cpu_has("avx512_bf16") or cpu_has("amx_tile")


@cache
@torch.no_grad()
def _bfloat16_is_faster() -> bool:
    """Time a typical convolution in both dtypes, alternately, once per process."""
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    x, weight = torch.ones(1, CHANNELS, SIDE, SIDE), torch.ones(CHANNELS, CHANNELS, 3, 3)
    inputs = {dtype: tuple(y.to(dtype, memory_format=torch.channels_last) for y in (x, weight)) for dtype in best}
    for _ in range(ATTEMPTS):
        for dtype, (features, kernel) in inputs.items():
            start = time.perf_counter()
            F.conv2d(features, kernel, padding=1)
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.bfloat16] < best[torch.float32]
