"""Compares all algorithms for the layers of Stable Diffusion 1.5 on this CPU with the one that Daguerre selects.

    OMP_NUM_THREADS=1 python -m benchmarks.layer_algorithms [--dtypes …] [--kinds …] [--tries 5] > benchmarks/layer_algorithms.md

Rules on shape, dtype and CPU features select the algorithm of a layer (`nn.attention`, `nn.cpu`). "Selected" is the layer as in a run, "of
the fastest" its time divided by that of the fastest algorithm: 1 is optimal, more is what a better rule would gain. Times are wall-clock
minima over all tries.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.processes import noise, row
from daguerre.nn import torch_private
from daguerre.nn.attention import attention
from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu import upsample_conv, winograd
from daguerre.nn.cpu.attention import chunked_attention, onednn_attention
from daguerre.nn.cpu.prepack import prepack
from daguerre.nn.resample import Upsample

Algorithms = Mapping[str, Callable[[], Tensor]]  # by name; "selected" is Daguerre's choice
QUERIES = (4096, 40), (1024, 80), (256, 160), (64, 160)  # tokens of the UNet's levels and head width; 2 images, 8 heads
LINEARS = (8192, 320, 320), (2048, 640, 640), (512, 1280, 1280), (128, 1280, 1280), (8192, 1280, 320)  # rows, channels in and out
CONVOLUTIONS = (320, 320, 64), (960, 320, 64), (640, 640, 32), (1280, 1280, 16), (1280, 1280, 8), (2560, 1280, 8)  # in, out, side
UPSAMPLES = (1280, 8), (1280, 16), (640, 32)


def attentions(dtype: torch.dtype) -> Iterator[tuple[str, Algorithms]]:
    for L, d in QUERIES:
        for M in (L, 77):
            q, k, v = (
                noise(2, length, 8, d, dtype=dtype).transpose(1, 2) for length in (L, M, M)
            )  # in the memory layout of the projections
            yield (
                f"{L} queries, {M} keys, heads of {d}",
                {
                    "PyTorch's, fused": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v),
                    "the formula in chunks": lambda q=q, k=k, v=v: chunked_attention(q, k, v),
                    "the formula in chunks, oneDNN": lambda q=q, k=k, v=v: onednn_attention(q, k, v),
                    "selected": lambda q=q, k=k, v=v: attention(q, k, v),
                },
            )


def linear(dtype: torch.dtype) -> Iterator[tuple[str, Algorithms]]:
    for rows, C, N in LINEARS:
        x, layer = noise(rows, C, dtype=dtype), nn.Linear(C, N).to(dtype)
        selected = prepack(layer, copies=False)
        yield (
            f"{rows} × {C} × {N}",
            {
                "PyTorch's": lambda x=x, layer=layer: layer(x),
                "oneDNN": lambda x=x, layer=layer: torch_private.onednn_linear(x, layer.weight, layer.bias),
                "selected": lambda x=x, selected=selected: selected(x),
            },
        )


def convolutions(dtype: torch.dtype) -> Iterator[tuple[str, Algorithms]]:
    for C, N, side in CONVOLUTIONS:
        x = noise(2, C, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        layer = nn.Conv2d(C, N, 3, padding=1).to(dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        selected = prepack(layer, copies=False)
        algorithms = {
            "oneDNN": lambda x=x, layer=layer: layer(x),
            "im2col": lambda x=x, layer=layer: cpu_linear.im2col_conv2d(x, layer.weight, layer.bias, (1, 1), (1, 1)),
            "selected": lambda x=x, selected=selected: selected(x),
        }
        if dtype == torch.float32:  # too inaccurate in half precision
            algorithms["Winograd"] = lambda x=x, layer=layer: winograd.winograd_conv2d(x, layer.weight, layer.bias)
        yield f"{C} to {N} channels, {side}×{side}", algorithms


def upsamples(dtype: torch.dtype) -> Iterator[tuple[str, Algorithms]]:
    for C, side in UPSAMPLES:
        x = noise(2, C, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        layer = Upsample(C).to(dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        selected = prepack(layer, copies=False)
        algorithms = {
            "upsampled, then oneDNN": lambda x=x, layer=layer: layer.conv(F.interpolate(x, scale_factor=2)),
            "the plain layer": lambda x=x, layer=layer: layer(x),
            "selected": lambda x=x, selected=selected: selected(x),
        }
        if dtype == torch.float32:
            algorithms["fused upsample and convolution"] = lambda x=x, layer=layer: upsample_conv.upsample_conv2d(
                x, layer.conv.weight, layer.conv.bias
            )
        yield f"{C} channels, {side}×{side}", algorithms


KINDS: Mapping[str, Callable[[torch.dtype], Iterator[tuple[str, Algorithms]]]] = {
    "attention": attentions,
    "linear": linear,
    "convolutions": convolutions,
    "upsamples": upsamples,
}


def timed(algorithms: Algorithms, tries: int) -> dict[str, float]:
    """Milliseconds of each algorithm: the minimum over alternating tries after a warm-up."""
    fastest = dict.fromkeys(algorithms, float("inf"))
    for turn in range(tries + 1):
        for name, algorithm in algorithms.items():
            start = time.perf_counter()
            algorithm()
            if turn:
                fastest[name] = min(fastest[name], 1000 * (time.perf_counter() - start))
    return fastest


def table(kind: str, dtype: str, tries: int) -> list[str]:
    """A Markdown table with a row per layer and the milliseconds of each algorithm."""
    results = {what: timed(algorithms, tries) for what, algorithms in KINDS[kind](getattr(torch, dtype))}
    names = [name for name in next(iter(results.values())) if name != "selected"]
    heads = f"{kind}, {dtype}", *names, "selected", "of the fastest"
    lines = ["", row(heads), row("---" for _ in heads)]
    for what, times in results.items():
        others, selected = [times[name] for name in names], times["selected"]
        lines.append(row([what, *others, selected, f"{selected / min(others):.2f}"]))
    return lines


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtypes", nargs="*", choices=("bfloat16", "float32"), default=("bfloat16", "float32"))
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tries", type=int, default=5)
    options = parser.parse_args()
    can = torch.backends.cpu.get_cpu_capability()
    print("# Algorithms for the layers of Stable Diffusion 1.5, `python -m benchmarks.layer_algorithms`\n")
    print(f"{torch.get_num_threads()} threads, {can}, torch {torch.__version__}; milliseconds.")
    for dtype in options.dtypes:
        if not cpu_linear.supports(getattr(torch, dtype)):
            print(f"\n{dtype} is left out: PyTorch does not support matrix products in it on this CPU.")
            continue
        for kind in options.kinds:
            print(*table(kind, dtype, options.tries), sep="\n", flush=True)


if __name__ == "__main__":
    main()
