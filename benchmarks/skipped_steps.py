"""Skipped steps: quality against evaluations of the UNet, against the same run with every step computed.

    python -m benchmarks.skipped_steps [--images 8] [--out benchmarks/skipped_steps]

A method that skips steps has to be better than the obvious one, to take fewer steps: the page has the PSNR of both at the same number of
evaluations, for `daguerre txt2img --fast` and for what else was tried. DeepCache runs its cheap passes at the share of a full pass
that is measured here; its evaluations count that share.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.samplers import PROMPTS
from daguerre.data.images import to_tensor
from daguerre.diffusion import Conditioning, computed_steps
from daguerre.metrics import psnr
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.nn.attention import repeat_to_batch
from daguerre.nn.cpu.prepack import shallow_copy
from daguerre.pipelines import Request, generate, generation
from daguerre.weights import load

EVERY = (2, 3, 4)


@dataclass(frozen=True)
class Row:
    """One run: its method, the evaluations that it took, and its PSNR to the run with every step."""

    method: str
    sampler: str
    steps: int
    evaluations: float
    value: float


class Counted(torch.nn.Module):
    """Counts the calls of a UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0.0

    def around(self, unet: UNet) -> UNet:
        counted = shallow_copy(unet, lambda _: None)

        def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
            self.calls += 1
            return unet(*args, **kwargs)

        counted.forward = forward
        return counted


class DeepCache:
    """A UNet that computes in full at every N-th step, and only its outermost level in the others (Ma et al. 2024, arXiv:2312.00858)."""

    def __init__(self, unet: UNet, full: Sequence[bool], cheap: float) -> None:
        self.unet, self.full, self.cheap = unet, full, cheap
        self.step, self.calls = -1, 0.0
        self.inner = torch.empty(0)

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning | None = None, *, control: Sequence[Tensor] | None = None) -> Tensor:
        unet, batch = self.unet, len(x)
        cond = Conditioning() if cond is None else cond
        self.step += 1
        full = self.full[self.step]
        self.calls += 1 if full else self.cheap
        emb = unet._embed(t.expand(batch), cond, x.dtype)
        h = unet.conv_in(x)
        skips = [h]
        for block in unet.down_blocks if full else unet.down_blocks[:1]:
            h = block(h, emb, cond.context, skips)
        if full:
            h = unet.mid_block(h, emb, cond.context)
            for block in unet.up_blocks[:-1]:
                h = block(h, emb, cond.context, skips)
            self.inner = h
        skips = skips[: unet.config.blocks + 1]
        h = unet.up_blocks[-1](self.inner, emb, cond.context, skips)
        return repeat_to_batch(unet.conv_out(unet.conv_norm_out(h)), batch)


def images_of(model: LatentDiffusion, request: Request) -> Tensor:
    """(B, 3, H, W) in [−1, 1]."""
    return torch.stack([to_tensor(image.image) for image in generate(model, request)])


def count(model: LatentDiffusion, request: Request) -> tuple[Tensor, float]:
    """The images of a request, and the evaluations of the UNet that it took."""
    counter = Counted()
    images = images_of(replace(model, unet=counter.around(model.unet)), request)
    return images, counter.calls


def deep_cached(model: LatentDiffusion, request: Request, every: int, cheap: float) -> tuple[Tensor, float]:
    """The same with DeepCache, whose full passes are the steps that a forecast computes."""
    cached = DeepCache(model.unet, computed_steps(request.steps, every), cheap)
    unet = shallow_copy(model.unet, lambda _: None)
    unet.forward = cached.__call__
    return images_of(replace(model, unet=unet), request), cached.calls


def cheap_share(model: LatentDiffusion) -> float:
    """The time of a cheap pass of DeepCache over that of a full one."""
    cond = model.conditioner(["a red apple", "a cat"])
    f = model.autoencoder.downsample_factor
    x, t = torch.randn(2, model.latent_channels, model.sample_size // f, model.sample_size // f), torch.full((2,), 500.0)
    cached, seconds = DeepCache(model.unet, [True, *[i % 2 == 0 for i in range(20)]], 0), [0.0, 0.0]
    with torch.no_grad():
        cached(x, t, cond)
        for i in range(20):
            start = time.process_time()
            cached(x, t, cond)
            seconds[i % 2] += time.process_time() - start
    return seconds[1] / seconds[0]


def every_variant(every: int, hold: bool) -> Callable[..., Tensor]:
    """A stand-in for `forecast_x0` with another interval, which holds the last x0 instead of forecasting it if `hold`."""

    def build(denoise: Callable, sigmas: Tensor, computed: Sequence[bool]) -> Callable:
        chosen = computed_steps(len(computed), every)
        if not hold:
            return generation_forecast(denoise, sigmas, chosen)
        grid, kept = sigmas[:-1].tolist(), [torch.empty(0)]

        def held(x: Tensor, sigma: Tensor) -> Tensor:
            if chosen[grid.index(sigma.item())]:
                kept[0] = denoise(x, sigma)
            return kept[0]

        return held

    return build


generation_forecast = generation.forecast_x0


def measure(model: LatentDiffusion, steps: int, sampler: str, prompts: Sequence[str], cheap: float | None) -> list[Row]:
    """All methods for one sampler and number of steps. cheap: the share of a cheap pass of DeepCache; None leaves it out."""
    request = Request(tuple(prompts), steps=steps, sampler=sampler, seed=7)
    reference = images_of(model, request)
    rows = []

    def add(method: str, found: tuple[Tensor, float]) -> None:
        rows.append(Row(method, sampler, steps, found[1], psnr(reference, found[0]).mean().item()))
        row = rows[-1]
        print(f"{row.sampler:<10} {row.steps:>3} {row.method:<22} {row.evaluations:>6.1f} {row.value:>6.1f} dB", flush=True)

    for every in EVERY:
        for hold in (False, True):
            generation.forecast_x0 = every_variant(every, hold)
            add(f"{'hold' if hold else 'forecast'}, every {every}", count(model, replace(request, fast=True)))
        generation.forecast_x0 = generation_forecast
        add(f"plain, as every {every}", count(model, replace(request, steps=sum(computed_steps(steps, every)))))
        if cheap is not None:
            found = deep_cached(model, request, every, cheap)
            add(f"DeepCache, every {every}", found)
            add(f"plain, as DeepCache {every}", count(model, replace(request, steps=round(found[1]))))
    if cheap is not None:
        for low, high in ((0.1, 0.8), (0.0, 0.7)):
            images = images_of(model, replace(request, guidance_interval=(low, high)))
            share = (1 + high - low) / 2
            add(f"guidance {low:g}:{high:g}", (images, steps * share))
            add(f"plain, as guidance {low:g}:{high:g}", count(model, replace(request, steps=round(steps * share))))
    return rows


def plot(rows: Sequence[Row], path: Path) -> None:
    """PSNR against evaluations of one sampler: the methods that skip steps, and plain runs."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for method, colour in (
        ("forecast", "#1f6fd0"),
        ("hold", "#2a9d4a"),
        ("DeepCache", "#d2691e"),
        ("guidance", "#8a4fbf"),
        ("plain", "#444444"),
    ):
        for steps, dash in zip(sorted({row.steps for row in rows}), ("-", "--", ":"), strict=False):
            points = sorted((row.evaluations, row.value) for row in rows if row.method.startswith(method) and row.steps == steps)
            if points:
                axes.plot(*zip(*points, strict=True), dash, marker="o", markersize=3, color=colour, label=f"{method}, {steps} steps")
    axes.set(xlabel="evaluations of the UNet", ylabel="PSNR to the full run, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def page(rows: Sequence[Row], images: int, cheap: float) -> str:
    """The table in Markdown: each method with the plain run of as many evaluations."""
    lines = [
        "# Skipped steps\n",
        f"`python -m benchmarks.skipped_steps`: the embedded model, {images} images, PSNR to the run with every step computed. A method "
        f"has to be 6 dB better than a plain run of as many evaluations. A cheap pass of DeepCache takes {cheap:.0%} of a full one here.\n",
        "| sampler | steps | method | evaluations | dB | plain run, dB | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.method.startswith("plain"):
            continue
        name, _, every = row.method.replace(", every", "").rpartition(" ")
        key = f"plain, as every {every}" if name in ("forecast", "hold") else f"plain, as {name} {every}"
        plain = next(other.value for other in rows if (other.method, other.sampler, other.steps) == (key, row.sampler, row.steps))
        cells = (
            row.sampler,
            row.steps,
            row.method,
            f"{row.evaluations:.1f}",
            f"{row.value:.1f}",
            f"{plain:.1f}",
            f"{row.value - plain:+.1f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n\n![PSNR against evaluations](skipped_steps.png)\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 30, 50])
    parser.add_argument("--samplers", nargs="+", default=["dpmpp_2m", "euler", "unipc", "dpmpp_3m", "deis"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/skipped_steps"))
    options = parser.parse_args()
    model, prompts = load(), [PROMPTS[i % len(PROMPTS)] for i in range(options.images)]
    cheap, rows = cheap_share(model), []
    print(f"a cheap pass of DeepCache takes {cheap:.0%} of a full one")
    for sampler in options.samplers:
        first = sampler == options.samplers[0]  # the others show only whether they can forecast
        for steps in options.steps if first else options.steps[:1]:
            rows += measure(model, steps, sampler, prompts, cheap if first else None)
    options.out.with_suffix(".md").write_text(page(rows, options.images, cheap))
    plot([row for row in rows if row.sampler == options.samplers[0]], options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
