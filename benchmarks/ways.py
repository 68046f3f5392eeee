"""Do the layers of Stable Diffusion 1.5 go the quickest ways that are known here, on this processor? Each layer by each way, in turns.

    OMP_NUM_THREADS=1 python -m benchmarks.ways [--dtypes bfloat16 float32] [--kinds attention …] [--tries 5] > benchmarks/ways.md

Which way a layer goes is a rule of its shape, its dtype and what the processor can (`nn.attention`, `nn.products`, `nn.winograd`,
`nn.doubling`), found on one or two processors. "Taken" is the layer as a run computes it, rule and all; "of the quickest" is its time over
that of the quickest way beside it: 1 is right, and all above it is what a better rule would gain. Times are of the clock, the least of all
tries, so that another program disturbs little.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import noise, row
from daguerre.nn import torch_private
from daguerre.nn.attention import attention
from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu import upsample_conv, winograd
from daguerre.nn.cpu.attention import chunked_attention, onednn_attention
from daguerre.nn.cpu.prepack import prepack
from daguerre.nn.resample import Upsample

Ways = Mapping[str, Callable[[], Tensor]]  # by name; "taken" is the one to judge
QUERIES = (4096, 40), (1024, 80), (256, 160), (64, 160)  # of the UNet's levels, and the width of a head; 2 pictures, 8 heads
PRODUCTS = (8192, 320, 320), (2048, 640, 640), (512, 1280, 1280), (128, 1280, 1280), (8192, 1280, 320)  # rows, channels in and out
CONVOLUTIONS = (320, 320, 64), (960, 320, 64), (640, 640, 32), (1280, 1280, 16), (1280, 1280, 8), (2560, 1280, 8)  # in, out, side
ENLARGEMENTS = (1280, 8), (1280, 16), (640, 32)


def attentions(dtype: torch.dtype) -> Iterator[tuple[str, Ways]]:
    for L, d in QUERIES:
        for M in (L, 77):
            q, k, v = (noise(2, length, 8, d, dtype=dtype).transpose(1, 2) for length in (L, M, M))  # as the projections leave them
            yield (
                f"{L} queries, {M} keys, heads of {d}",
                {
                    "PyTorch's, fused": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v),
                    "the formula in parts": lambda q=q, k=k, v=v: chunked_attention(q, k, v),
                    "the same by oneDNN": lambda q=q, k=k, v=v: onednn_attention(q, k, v),
                    "taken": lambda q=q, k=k, v=v: attention(q, k, v),
                },
            )


def linear(dtype: torch.dtype) -> Iterator[tuple[str, Ways]]:
    for rows, C, N in PRODUCTS:
        x, layer = noise(rows, C, dtype=dtype), nn.Linear(C, N).to(dtype)
        taken = prepack(layer, copies=False)
        yield (
            f"{rows} × {C} × {N}",
            {
                "PyTorch's": lambda x=x, layer=layer: layer(x),
                "oneDNN": lambda x=x, layer=layer: torch_private.onednn_linear(x, layer.weight, layer.bias),
                "taken": lambda x=x, taken=taken: taken(x),
            },
        )


def convolutions(dtype: torch.dtype) -> Iterator[tuple[str, Ways]]:
    for C, N, side in CONVOLUTIONS:
        x = noise(2, C, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        layer = nn.Conv2d(C, N, 3, padding=1).to(dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        taken = prepack(layer, copies=False)
        ways = {
            "oneDNN": lambda x=x, layer=layer: layer(x),
            "one product": lambda x=x, layer=layer: cpu_linear.im2col_conv2d(x, layer.weight, layer.bias, (1, 1), (1, 1)),
            "taken": lambda x=x, taken=taken: taken(x),
        }
        if dtype == torch.float32:  # in half precision its differences lose too many digits
            ways["Winograd's"] = lambda x=x, layer=layer: winograd.winograd_conv2d(x, layer.weight, layer.bias)
        yield f"{C} to {N} channels, {side}×{side}", ways


def enlargements(dtype: torch.dtype) -> Iterator[tuple[str, Ways]]:
    for C, side in ENLARGEMENTS:
        x = noise(2, C, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        layer = Upsample(C).to(dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        taken = prepack(layer, copies=False)
        ways = {
            "enlarged, then oneDNN": lambda x=x, layer=layer: layer.conv(F.interpolate(x, scale_factor=2)),
            "the layer as it is": lambda x=x, layer=layer: layer(x),
            "taken": lambda x=x, taken=taken: taken(x),
        }
        if dtype == torch.float32:
            ways["nine products"] = lambda x=x, layer=layer: upsample_conv.upsample_conv2d(x, layer.conv.weight, layer.conv.bias)
        yield f"{C} channels, {side}×{side}", ways


KINDS: Mapping[str, Callable[[torch.dtype], Iterator[tuple[str, Ways]]]] = {
    "attention": attentions,
    "linear": linear,
    "convolutions": convolutions,
    "enlargements": enlargements,
}


def timed(ways: Ways, tries: int) -> dict[str, float]:
    """Milliseconds of each way, the least of so many tries in turns, after one to warm up."""
    least = dict.fromkeys(ways, float("inf"))
    for turn in range(tries + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                least[name] = min(least[name], 1000 * (time.perf_counter() - start))
    return least


def table(kind: str, dtype: str, tries: int) -> list[str]:
    """A line for each layer, with the milliseconds of each way, below a line of heads."""
    found = {what: timed(ways, tries) for what, ways in KINDS[kind](getattr(torch, dtype))}
    names = [name for name in next(iter(found.values())) if name != "taken"]
    heads = f"{kind}, {dtype}", *names, "taken", "of the quickest"
    lines = ["", row(heads), row("---" for _ in heads)]
    for what, times in found.items():
        beside, taken = [times[name] for name in names], times["taken"]
        lines.append(row([what, *beside, taken, f"{taken / min(beside):.2f}"]))
    return lines


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtypes", nargs="*", choices=("bfloat16", "float32"), default=("bfloat16", "float32"))
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tries", type=int, default=5)
    options = parser.parse_args()
    can = torch.backends.cpu.get_cpu_capability()
    print("# The layers of Stable Diffusion 1.5 by every way, `python -m benchmarks.ways`\n")
    print(f"{torch.get_num_threads()} threads, {can}, torch {torch.__version__}; milliseconds.")
    for dtype in options.dtypes:
        if not cpu_linear.supports(getattr(torch, dtype)):
            print(f"\n{dtype} is left out: PyTorch has no products in it here.")
            continue
        for kind in options.kinds:
            print(*table(kind, dtype, options.tries), sep="\n", flush=True)


if __name__ == "__main__":
    main()
