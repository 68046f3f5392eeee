"""The table of samplers, and the checks of their inputs."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from daguerre.diffusion.denoiser import Denoise
from daguerre.diffusion.noise import NoiseSampler, brownian_noise, gaussian_noise
from daguerre.diffusion.samplers.consistency import lcm, tcd
from daguerre.diffusion.samplers.dpm_solver import dpm_solver
from daguerre.diffusion.samplers.dpmpp_multistep import dpmpp_2m, dpmpp_3m, unipc
from daguerre.diffusion.samplers.euler_heun import SamplerSteps, ddim_inversion, ddpm, dpm2, dpmpp_2s_a, dpmpp_sde, euler, heun
from daguerre.diffusion.samplers.linear_multistep import deis, ipndm, lms, plms, pndm
from daguerre.errors import DaguerreError, nearest


@dataclass(frozen=True)
class Sampler:
    """A named sampler: a sampler function with fixed options, and its properties.

    order: of the error on smooth noise levels, for multistep methods with a full history. They start with a first-order step, so those of
        order 3 and 4 fall to order 2 in very long runs.
    evaluations: of the network per step.
    stochastic: whether it adds noise by default.
    options: the keyword arguments of `run` that define this sampler.
    min_steps: the minimum number of steps.
    brownian: whether it needs the noise of a Brownian path; runs with more steps then converge to the same image.
    inversion: whether it runs in reverse, from the last σ (an image) up to the first (its noise). It finds the noise of an image and cannot
        generate images, so it must not be used for text-to-image and the like.
    exact_first_step: whether it combines ε at two noise levels within a step. From the capped σ of pure noise (4096) to the next, this
        amplifies the network's errors, so such samplers should start at σ = inf (`get_sigmas` with terminal="exact").
    """

    name: str
    run: Callable[..., SamplerSteps]
    order: int
    evaluations: int = 1
    stochastic: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    min_steps: int = 1
    aliases: tuple[str, ...] = ()
    brownian: bool = False
    inversion: bool = False
    exact_first_step: bool = False

    def noise(self, generators: Sequence[torch.Generator]) -> NoiseSampler:
        """The kind of noise this sampler needs, with one generator per image."""
        return (brownian_noise if self.brownian else gaussian_noise)(generators)

    def accepts(self, option: str) -> bool:
        """Whether the sampler has this option, such as "eta", "noise" or "order"."""
        return option in inspect.signature(self.run).parameters

    def can_run(self, sigmas: Tensor) -> bool:
        """Whether these noise levels (N + 1,) are at least one step and enough for the sampler."""
        return len(sigmas) > 1 and (self.min_steps == 1 or _count_steps(sigmas) >= self.min_steps)

    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: NoiseSampler | None = None, **options: Any) -> SamplerSteps:
        """Yield (x, x0) after every step, from x at sigmas[0] to the last σ.

        Args:
            x: (B, *), x0 + sigmas[0]·ε; if sigmas[0] is inf, ε itself. The first step is then computed separately (Lin et al. 2023,
                arXiv:2305.08891, section 3.3): x0 = D(ε, inf), x = x0 + sigmas[1]·ε, with new noise in stochastic samplers.
            sigmas: (N + 1,) strictly descending, the last 0 or more.
            noise: the noise of stochastic samplers; the others ignore it.
            options: options of the sampler.

        Raises:
            DaguerreError: the noise levels do not descend or are too few; noise is missing; an option is unknown; x is not finite.
        """
        options = {**self.options, **options}
        if unknown := [name for name in options if not self.accepts(name)]:
            keywords = list(inspect.signature(self.run).parameters)[3:]
            raise DaguerreError(f"The sampler {self.name!r} has no option {unknown[0]!r}.{nearest(unknown[0], keywords)}")
        if self.accepts("noise"):
            if noise is None and (self.stochastic or options.get("eta", 0) > 0):
                raise DaguerreError(f"The sampler {self.name!r} needs noise; pass `noise`, or use a deterministic one such as 'dpmpp_2m'.")
            options["noise"] = noise
        sigmas = check_sigmas(sigmas, self)
        return _check_finite(self, _exact_first_step(self, denoise, x, sigmas, options), sigmas)


def check_sigmas(sigmas: Tensor, sampler: Sampler) -> Tensor:
    """The noise levels as float64 on the CPU, where reading single values needs no synchronisation with an accelerator.

    Raises:
        DaguerreError: they do not strictly descend to 0 or more, or are fewer than the sampler needs.
    """
    sigmas = sigmas.detach().to("cpu", torch.float64)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise DaguerreError(f"sigmas has {sigmas.numel()} values; it needs at least two, the first and the last σ (see get_sigmas).")
    wrong = (~(sigmas[1:] < sigmas[:-1])).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise DaguerreError(f"sigmas must descend, but σ[{i}] = {sigmas[i]:g} is followed by σ[{i + 1}] = {sigmas[i + 1]:g}.")
    if sigmas[-1] < 0:
        raise DaguerreError(f"sigmas ends at {sigmas[-1]:g}; it must end at 0 or above.")
    if sigmas[0].isinf() and sampler.inversion:
        raise DaguerreError(
            f"The sampler {sampler.name!r} ends at the first σ, which must be finite; use get_sigmas with terminal='capped'."
        )
    if not sampler.can_run(sigmas):
        first = " after the one from σ = inf" if sigmas[0].isinf() else ""
        raise DaguerreError(f"The sampler {sampler.name!r} needs at least {sampler.min_steps} steps{first}, not {_count_steps(sigmas)}.")
    return sigmas


def _count_steps(sigmas: Tensor) -> int:
    """The steps that a sampler runs; the step from inf is computed separately."""
    return len(sigmas) - 1 - int(sigmas[0].isinf())


def _exact_first_step(sampler: Sampler, denoise: Denoise, x: Tensor, sigmas: Tensor, options: Mapping[str, Any]) -> SamplerSteps:
    """Run the sampler. If the noise levels start at inf, first take one step that is the limit of `euler` with the same η."""
    if sigmas[0].isinf():
        x0 = denoise(x, sigmas[0])
        eta = options.get("eta", 1.0 if sampler.stochastic else 0.0)
        noise = (1 - eta**2) ** 0.5 * x
        if eta > 0 and sigmas[1] > 0:
            noise = noise + eta * options["noise"](x, sigmas[0], sigmas[1])
        x = x0 + sigmas[1] * noise
        yield x, x0
        sigmas = sigmas[1:]
        # Tensors hold one value per step.
        options = {name: value[1:] if isinstance(value, Tensor) else value for name, value in options.items()}
    if len(sigmas) > 1:
        yield from sampler.run(denoise, x, sigmas, **options)


def _check_finite(sampler: Sampler, steps: Iterator[tuple[Tensor, Tensor]], sigmas: Tensor) -> SamplerSteps:
    """Raise DaguerreError at the first step whose x is not finite."""
    levels = sigmas.flip(0) if sampler.inversion else sigmas
    for index, (x, x0) in enumerate(steps):
        if not x.isfinite().all():
            raise DaguerreError(
                f"The image is not finite after step {index + 1} of {len(sigmas) - 1} of {sampler.name!r}, from σ = "
                f"{levels[index]:.4g}: the network returned NaN or inf. Use float32 or bfloat16 instead of float16."
            )
        yield x, x0


_SDE = {"eta": 1.0}

_SAMPLERS = (
    Sampler("euler", euler, 1, aliases=("Euler", "DDIM", "DPM-Solver-1")),
    Sampler("euler_a", euler, 1, stochastic=True, options=_SDE, aliases=("Euler a", "euler_ancestral")),
    Sampler("ddpm", ddpm, 1, stochastic=True, aliases=("DDPM",)),
    Sampler("ddpm_large", ddpm, 1, stochastic=True, options={"variance": "large"}),
    Sampler("heun", heun, 2, evaluations=2, aliases=("Heun",), exact_first_step=True),
    Sampler("dpm2", dpm2, 2, evaluations=2, aliases=("DPM2", "dpm_2"), exact_first_step=True),
    Sampler("dpm2_a", dpm2, 1, evaluations=2, stochastic=True, options=_SDE, aliases=("DPM2 a", "dpm_2_ancestral"), exact_first_step=True),
    Sampler("dpm_solver_2s", dpm_solver, 2, min_steps=2, aliases=("DPM-Solver-2",), exact_first_step=True),
    Sampler(
        "dpm_solver_3s",
        dpm_solver,
        3,
        options={"order": 3, "solver": "heun"},
        min_steps=3,
        aliases=("DPM-Solver-3",),
        exact_first_step=True,
    ),
    Sampler("dpmpp_2s", dpm_solver, 2, options={"prediction": "x0"}, min_steps=2, aliases=("DPM-Solver++(2S)",)),
    Sampler(
        "dpmpp_3s", dpm_solver, 3, options={"order": 3, "prediction": "x0", "solver": "heun"}, min_steps=3, aliases=("DPM-Solver++(3S)",)
    ),
    Sampler("dpmpp_2s_a", dpmpp_2s_a, 1, evaluations=2, stochastic=True, options=_SDE, aliases=("DPM++ 2S a", "dpmpp_2s_ancestral")),
    Sampler("dpmpp_2m", dpmpp_2m, 2, aliases=("DPM++ 2M", "DPM-Solver++(2M)", "DPM-Solver++")),
    Sampler("dpmpp_3m", dpmpp_3m, 2, aliases=("DPM++ 3M", "DPM-Solver++(3M)")),
    Sampler("dpmpp_sde", dpmpp_sde, 1, evaluations=2, stochastic=True, aliases=("DPM++ SDE",), brownian=True),
    Sampler("dpmpp_2m_sde", dpmpp_2m, 1, stochastic=True, options=_SDE, aliases=("DPM++ 2M SDE",), brownian=True),
    Sampler(
        "dpmpp_2m_sde_heun", dpmpp_2m, 1, stochastic=True, options={**_SDE, "solver": "heun"}, aliases=("DPM++ 2M SDE Heun",), brownian=True
    ),
    Sampler("dpmpp_3m_sde", dpmpp_3m, 1, stochastic=True, options=_SDE, aliases=("DPM++ 3M SDE",), brownian=True),
    Sampler("unipc", unipc, 3, aliases=("UniPC", "uni_pc_bh2")),
    Sampler("unipc_bh1", unipc, 3, options={"variant": "bh1"}, aliases=("uni_pc_bh1",)),
    Sampler("lms", lms, 4, aliases=("LMS",)),
    Sampler("deis", deis, 3, aliases=("DEIS",)),
    Sampler("plms", plms, 2, min_steps=2, aliases=("PLMS",), exact_first_step=True),
    Sampler("pndm_prk", pndm, 2, min_steps=4, exact_first_step=True),
    Sampler("ipndm", ipndm, 2),
    Sampler("lcm", lcm, 1, stochastic=True, aliases=("LCM",)),
    Sampler("tcd", tcd, 1, stochastic=True, aliases=("TCD",)),
    Sampler("ddim_inversion", ddim_inversion, 1, aliases=("DDIM inversion", "ddim_inverse"), inversion=True),
)

SAMPLERS: dict[str, Sampler] = {sampler.name: sampler for sampler in _SAMPLERS}
