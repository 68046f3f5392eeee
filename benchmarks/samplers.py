"""Error of every sampler against evaluations of the network: on a problem with a known solution, and on a model.

    python -m benchmarks.samplers                     # a mixture of Gaussians: benchmarks/samplers/analytic.md and .png
    python -m benchmarks.samplers --model             # the embedded model (or a folder): benchmarks/samplers/model.md and .png

The mixture of two Gaussians (`daguerre.diffusion.two_gaussians`) has an exact denoiser and exact trajectories. Deterministic samplers are
measured by the distance of their end points from the exact ones, stochastic samplers by the distance of their distribution from the
mixture. On a model the reference is its own solution with many steps; the embedded model takes some minutes on one CPU core.
"""

import argparse
import math
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from daguerre.diffusion import (
    SAMPLERS,
    Conditioning,
    Denoise,
    Denoiser,
    SamplerConfig,
    Schedule,
    ScheduleConfig,
    classifier_free_guidance,
    generators,
    get_sigmas,
    randn_per_image,
    scale_initial_noise,
    two_gaussians,
)
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.weights.hashing import identity

BUDGETS = (5, 8, 10, 15, 20, 30, 50, 100, 200)  # evaluations of the analytic page
POINTS = 20_000  # for stochastic samplers
SAMPLING_ERROR = 0.006  # of as many exact samples
DEFAULTS = (5, 10, 20, 40)  # evaluations for which a default is chosen
SPACED: dict[str, tuple[str, tuple[str, ...]]] = {
    "in t": ("#1f6fd0", ("trailing", "linspace", "sgm_uniform", "beta")),
    "in σ": ("#d2691e", ("karras", "exponential", "kl_optimal")),
}
PROMPTS = (
    "a red apple",
    "a blue cat",
    "a pizza",
    "a green heart on a yellow background",
    "a dog to the left of a tree",
    "a smiling face",
    "an orange car",
    "a purple flower on a white background",
)

# One colour per family, one dash per member.
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "single-step": ("#444444", ("euler", "heun", "dpm2")),
    "single-step DPM-Solver": ("#2a9d4a", ("dpm_solver_2s", "dpm_solver_3s", "dpmpp_2s", "dpmpp_3s")),
    "multistep in x0": ("#1f6fd0", ("dpmpp_2m", "dpmpp_3m", "unipc", "unipc_bh1")),
    "multistep in ε": ("#d2691e", ("lms", "deis", "plms", "pndm_prk", "ipndm")),
}
NOISY_FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "first order": ("#444444", ("euler_a", "ddpm", "ddpm_large")),
    "two evaluations per step": ("#2a9d4a", ("dpm2_a", "dpmpp_2s_a", "dpmpp_sde")),
    "multistep SDE": ("#1f6fd0", ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")),
}
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 3)))
MARKERS = "osD^v"


def steps_for(name: str, evaluations: int, *, to_zero: bool = False) -> int | None:
    """The number of steps for this many evaluations, None if impossible. Samplers with two evaluations per step use one in a step to 0;
    with an even number of evaluations one is then unused."""
    sampler = SAMPLERS[name]
    left = evaluations - {"plms": 1, "pndm_prk": 9}.get(name, 0)
    steps, rest = divmod(left + (sampler.evaluations - 1 if to_zero else 0), sampler.evaluations)
    return steps if steps >= sampler.min_steps and (to_zero or not rest) else None


# On the mixture ---------------------------------------------------------------------------------------------------------------------------


def analytic(out: Path) -> None:
    """Print and plot error against evaluations on the mixture."""
    deterministic = {name: path_errors(name) for _, members in FAMILIES.values() for name in members}
    noisy = {name: cloud_errors(name) for _, members in NOISY_FAMILIES.values() for name in members}
    lines = [
        "Distance of the end points from the exact ones (root mean square), deterministic samplers:",
        "",
        *table(
            ["sampler", "order", *map(str, BUDGETS), "measured slope"],
            [row(name, deterministic[name], slope=True) for name in deterministic],
        ),
        "",
        "Distance from the distribution (largest error of a weight, mean or covariance), stochastic samplers:",
        "",
        *table(["sampler", *map(str, BUDGETS)], [row(name, noisy[name], slope=False) for name in noisy]),
        "",
    ]
    write(out / "analytic.md", lines)
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 7.5), width_ratios=[1.35, 1])
    draw_lines(left, deterministic, FAMILIES)
    left.set(title="Deterministic samplers: distance of the end points from the exact ones", ylabel="root mean square error")
    draw_lines(right, noisy, NOISY_FAMILIES)
    right.set(title="Stochastic samplers: distance from the distribution", ylabel="largest error of a weight, mean or covariance")
    right.axhline(SAMPLING_ERROR, color="#999999", linewidth=1, linestyle=":")
    right.annotate(
        "sampling error of 20,000 points",
        (BUDGETS[0], SAMPLING_ERROR),
        xytext=(0, 4),
        textcoords="offset points",
        color="#777777",
        fontsize=9,
    )
    figure.suptitle("Error against evaluations of the network, on a mixture of two Gaussians (karras spacing, σ from 14.6 to 0.029)")
    save(figure, out / "analytic.png")


def path_errors(name: str) -> dict[int, float]:
    """The error of a deterministic sampler for each budget."""
    x, reference = exact_ends()
    errors = {}
    for budget in BUDGETS:
        if (steps := steps_for(name, budget)) is not None:
            *_, (end, _x0) = SAMPLERS[name](two_gaussians().denoise, x, karras(steps))
            errors[budget] = (end - reference).square().sum(1).mean().sqrt().item()
    return errors


def karras(steps: int) -> Tensor:
    """The noise levels (steps + 1,), from 14.6 to 0.029; they end above 0, because a step to 0 is equal for all samplers."""
    return get_sigmas(Schedule(ScheduleConfig()), steps + 1, "karras", final="sigma_min")


@cache
def exact_ends() -> tuple[Tensor, Tensor]:
    """Points at the first σ, and the ends of their trajectories at the last."""
    grid = karras(1)
    x = scale_initial_noise(torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), grid[0])
    return x, two_gaussians().trajectory(x, grid, substeps=1000)[-1]


def cloud_errors(name: str) -> dict[int, float]:
    """The error of a stochastic sampler's distribution for each budget, down to the sampling error."""
    errors = {}
    for budget in BUDGETS:
        if (steps := steps_for(name, budget)) is None:
            continue
        grid, source = karras(steps), torch.Generator().manual_seed(0)

        def fresh(*_: Tensor, source: torch.Generator = source) -> Tensor:
            return torch.randn(POINTS, 2, generator=source, dtype=torch.float64)

        *_, (x, _x0) = SAMPLERS[name](two_gaussians().denoise, scale_initial_noise(fresh(), grid[0]), grid, noise=fresh)
        errors[budget] = distance_to_mixture(x, grid[-1])
    return errors


def distance_to_mixture(x: Tensor, sigma: Tensor) -> float:
    """The largest error of any component's weight, mean or covariance, for points x (N, 2) with noise of σ."""
    mixture = two_gaussians()
    variances = mixture.stds**2 + sigma**2
    offset = x[:, None] - mixture.means
    r = (mixture.weights.log() - variances.log() - offset.square().sum(-1) / (2 * variances)).softmax(-1)  # (N, K)
    weight = r.mean(0)
    mean = torch.einsum("nk,nd->kd", r, x) / (len(x) * weight[:, None])
    centred = x[:, None] - mean
    covariance = torch.einsum("nk,nkd,nke->kde", r, centred, centred) / (len(x) * weight[:, None, None])
    found, true = (weight, mean, covariance), (mixture.weights, mixture.means, variances[:, None, None] * torch.eye(2))
    return max((a - b).abs().max().item() for a, b in zip(found, true, strict=True))


# On a model ------------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def on_model(model: LatentDiffusion, out: Path, *, guidance: float, prompts: Sequence[str], reference_steps: int) -> None:
    """Print and plot the distance to the model's own solution with many steps, for every deterministic sampler and every spacing."""
    denoise, noise = build_denoiser(model, prompts, guidance)
    reference = sample(model, denoise, noise, "dpmpp_2m", "trailing", reference_steps)
    check = sample(model, denoise, noise, "deis", "karras", reference_steps // 2)

    def errors(name: str, spacing: str) -> dict[int, float]:
        """For each possible budget, without runs that diverge."""
        steps = {budget: steps_for(name, budget, to_zero=True) for budget in DEFAULTS}
        found = {b: relative(sample(model, denoise, noise, name, spacing, n), reference) for b, n in steps.items() if n is not None}
        return {budget: error for budget, error in found.items() if not math.isnan(error)}

    samplers = {name: errors(name, "trailing") for _, members in FAMILIES.values() for name in members}
    spacings = {spacing: errors("dpmpp_2m", spacing) for _, members in SPACED.values() for spacing in members}
    outside, inside = overhead(model, noise)
    lines = [
        f"Model: {model.name}, sha256 {identity(model)[:16]}…. Guidance {guidance:g}, {len(prompts)} prompts, each with its own seed. "
        f"Distance of the latents from those of dpmpp_2m at {reference_steps} steps, relative to their size; deis at "
        f"{reference_steps // 2} steps of another spacing differs from it by {relative(check, reference):.4f}, so "
        "smaller differences are not significant.",
        "",
        f"A step of dpmpp_2m takes {outside * 1000:.2f} ms outside the network and {inside * 1000:.1f} ms in it, with guidance.",
        "",
        "The best at each number of evaluations:",
        "",
        *table(["evaluations", "first", "second", "third"], [best_row(samplers, budget) for budget in DEFAULTS]),
        "",
        "Every sampler, with the spacing trailing (–: not possible with this number of evaluations, or diverged):",
        "",
        *table(["sampler", *map(str, DEFAULTS)], [[name, *cells(found, DEFAULTS)] for name, found in samplers.items()]),
        "",
        "Every spacing, with the sampler dpmpp_2m:",
        "",
        *table(["spacing", *map(str, DEFAULTS)], [[name, *cells(found, DEFAULTS)] for name, found in spacings.items()]),
        "",
    ]
    write(out / "model.md", lines)
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 7.5))
    draw_lines(left, samplers, FAMILIES)
    left.set(title="Every sampler, with the spacing trailing", ylabel="distance of the latents from the solution, relative")
    draw_lines(right, spacings, SPACED)
    right.set(title="Every spacing, with the sampler dpmpp_2m", ylabel="distance of the latents from the solution, relative")
    figure.suptitle(
        f"Distance to the solution of {reference_steps} steps against evaluations of the network: {model.name}, guidance {guidance:g}"
    )
    save(figure, out / "model.png")


def build_denoiser(model: LatentDiffusion, prompts: Sequence[str], guidance: float) -> tuple[Denoise, Tensor]:
    """The guided denoiser, and the noise of the images (B, Z, h, w)."""
    B, side = len(prompts), model.sample_size // model.autoencoder.downsample_factor
    cond = model.conditioner([*prompts, *[""] * B])
    denoiser = Denoiser(model.unet, model.schedule, model.prediction, model.dtype)
    denoise = classifier_free_guidance(denoiser, [cond[:B], cond[B:]], [guidance, 1 - guidance])
    noise = randn_per_image(generators(range(B)), (model.unet.config.out_channels, side, side))
    return denoise, noise.to(model.device)


def sample(model: LatentDiffusion, denoise: Denoise, noise: Tensor, name: str, spacing: str, steps: int) -> Tensor:
    """The final latents of a sampler, with an exact first step if requests use one; nan if it diverged."""
    sampler = SAMPLERS[name]
    sampling = SamplerConfig(sampler, spacing=spacing, spacing_options={"terminal": "exact" if sampler.exact_first_step else "capped"})
    grid = sampling.sigmas(model.schedule, steps)
    options = sampling.sampler_options(model.schedule, grid)
    try:
        *_, (x, _x0) = sampler(denoise, scale_initial_noise(noise, grid[0]), grid, **options)
    except DaguerreError:
        return torch.full_like(noise, math.nan)
    return x


def overhead(model: LatentDiffusion, noise: Tensor, steps: int = 20) -> tuple[float, float]:
    """Seconds of a step outside and inside the network, for one image: CPU time on a CPU, otherwise wall-clock time."""
    now = time.perf_counter if noise.is_cuda else time.process_time
    inside = 0.0

    def timed(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        nonlocal inside
        begun = now()
        answer = model.unet(x, t, cond)
        if x.is_cuda:
            torch.cuda.synchronize()
        inside += now() - begun
        return answer

    cond = model.conditioner(["a red apple", ""])
    denoise = classifier_free_guidance(Denoiser(timed, model.schedule, model.prediction, model.dtype), [cond[:1], cond[1:]], [5.0, -4.0])
    sample(model, denoise, noise[:1], "dpmpp_2m", "trailing", 5)
    inside, begun = 0.0, now()
    sample(model, denoise, noise[:1], "dpmpp_2m", "trailing", steps)
    return (now() - begun - inside) / steps, inside / steps


def relative(x: Tensor, reference: Tensor) -> float:
    """Root mean square distance over root mean square size, averaged over the images."""
    return ((x - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).mean().item()


def best_row(errors: dict[str, dict[int, float]], budget: int) -> list[str]:
    ranked = sorted((found[budget], name) for name, found in errors.items() if budget in found)
    return [str(budget), *(f"{name} ({error:.2g})" for error, name in ranked[:3])]


# Tables and plots -------------------------------------------------------------------------------------------------------------------------


def cells(errors: dict[int, float], budgets: Sequence[int]) -> list[str]:
    return [f"{errors[budget]:.2g}" if budget in errors else "–" for budget in budgets]


def row(name: str, errors: dict[int, float], *, slope: bool) -> list[str]:
    if not slope:
        return [name, *cells(errors, BUDGETS)]
    (few, before), (many, after) = list(errors.items())[-2:]
    return [name, str(SAMPLERS[name].order), *cells(errors, BUDGETS), f"{math.log(before / after) / math.log(many / few):.2f}"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with columns of even width."""
    widths = [max(len(each[i]) for each in (head, *rows)) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(each, widths, strict=True)) + " |" for each in (head, *rows)]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def draw_lines(axes: Axes, errors: dict[str, dict[int, float]], families: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    """Error against evaluations, both logarithmic, with a label at the end of every line."""
    ends = []
    for colour, members in families.values():
        for name, dash, marker in zip(members, DASHES * 3, MARKERS * 3, strict=False):
            if not (points := errors[name]):
                continue
            style: dict[str, Any] = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4, "linewidth": 1.4}
            axes.plot(list(points), list(points.values()), **style)
            ends.append((math.log10(list(points.values())[-1]), list(points)[-1], name, colour))
    axes.set(xscale="log", yscale="log", xlabel="evaluations of the network")
    budgets = sorted({budget for found in errors.values() for budget in found})
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.minorticks_off()
    axes.grid(visible=True, which="major", color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)
    low, high = (math.log10(bound) for bound in axes.get_ylim())
    ends.sort()
    for (level, budget, name, colour), position in zip(ends, spread_labels([end[0] for end in ends], (high - low) / 36, low), strict=True):
        axes.annotate(
            name,
            (budget, 10**level),
            xytext=(budgets[-1] * 1.12, 10**position),
            color=colour,
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 3},
        )
    axes.set_xlim(budgets[0] * 0.92, budgets[-1] * 1.06)
    for label, (colour, _) in families.items():
        axes.plot([], [], color=colour, label=label)
    axes.legend(loc="upper right", frameon=False, fontsize=9)


def spread_labels(positions: Sequence[float], gap: float, lowest: float) -> list[float]:
    """Ascending positions moved until neighbours have a distance of `gap`, none below `lowest`."""
    moved = list(positions)
    for _ in range(500):
        moved[0] = max(moved[0], lowest)
        for i in range(len(moved) - 1):
            push = max(0.0, gap - (moved[i + 1] - moved[i])) / 2
            moved[i], moved[i + 1] = moved[i] - push, moved[i + 1] + push
    return moved


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


def write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    print(*lines, path, sep="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="?", const="", help="measure on a model: the embedded one, or a folder")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--images", type=int, choices=range(1, len(PROMPTS) + 1), default=2, help="number of prompts")
    parser.add_argument("--reference-steps", type=int, default=500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "samplers")
    given = parser.parse_args(arguments)
    if given.model is None:
        analytic(given.out)
        return
    import daguerre

    model = daguerre.load(given.model or None, device=given.device, dtype=torch.float32)
    assert isinstance(model, LatentDiffusion), "autoregressive priors have no samplers"
    on_model(model, given.out, guidance=given.guidance, prompts=PROMPTS[: given.images], reference_steps=given.reference_steps)


if __name__ == "__main__":
    main()
