"""The samplers by name, and the one place where what they are given is checked."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from daguerre.diffusion.denoiser import Denoise
from daguerre.diffusion.noise import NoiseSampler, brownian_noise, gaussian_noise
from daguerre.diffusion.samplers import consistency, dpmpp_multistep, euler_heun, linear_multistep
from daguerre.diffusion.samplers.dpm_solver import dpm_solver
from daguerre.diffusion.samplers.euler_heun import SamplerSteps
from daguerre.errors import DaguerreError, nearest


@dataclass(frozen=True)
class Sampler:
    """A sampler function under the name people give it.

    order: of its error on a smooth grid, for multistep methods once their history is full. Begun with a first-order step, as they are here,
        those of order 3 and 4 come down to 2 in very long runs.
    evaluations: of the network for each step of the grid.
    options: the keywords that make this sampler of its function.
    minimum: the fewest steps it can take.
    upwards: whether it goes from the last σ of the grid to the first.
    apart: whether it weighs ε at two levels within a step, which from the capped σ of zero terminal SNR (4096) to the next magnifies every
        error of the network; its first step should then be taken apart (`spaced`, terminal).
    brownian: whether its noise is that of a Brownian path, so that more steps make the same picture, better.
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

    def noise(self, sources: Sequence[torch.Generator]) -> NoiseSampler:
        """The noise that suits this sampler, one source for each picture: a Brownian path for those that solve an SDE."""
        return (brownian_noise if self.brownian else gaussian_noise)(sources)

    def accepts(self, option: str) -> bool:
        """Whether the sampler's function has this keyword: "eta", "noise", "order", …"""
        return option in inspect.signature(self.run).parameters

    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: NoiseSampler | None = None, **options: Any) -> SamplerSteps:
        """Yield (x, x0) after every step, from x at sigmas[0] to the last σ.

        Args:
            x: (B, *), of the size x0 + sigmas[0]·ε; where sigmas[0] is inf, ε itself. That first step is then taken apart (Lin et al. 2023,
                arXiv:2305.08891, section 3.3): x0 = D(ε, inf), x = x0 + sigmas[1]·ε, with fresh noise in stochastic samplers.
            sigmas: (N + 1,) strictly descending, the last 0 or more.
            noise: what stochastic samplers draw from; the others leave it alone.
            options: keywords of the sampler's function.

        Raises:
            DaguerreError: the grid does not descend or is too short; noise is missing; an option is unknown; x is no longer finite.
        """
        options = {**self.options, **options}
        if unknown := [name for name in options if not self.accepts(name)]:
            keywords = list(inspect.signature(self.run).parameters)[3:]
            raise DaguerreError(f"The sampler {self.name!r} has no option {unknown[0]!r}.{nearest(unknown[0], keywords)}")
        if self.accepts("noise"):
            if noise is None and (self.stochastic or options.get("eta", 0) > 0):
                raise DaguerreError(
                    f"The sampler {self.name!r} draws noise; give it noise, or take a deterministic one such as 'dpmpp_2m'."
                )
            options["noise"] = noise
        sigmas = check_grid(sigmas, self)
        return _finite(self, _exact_first_step(self, denoise, x, sigmas, options), sigmas)


def check_grid(sigmas: Tensor, sampler: Sampler) -> Tensor:
    """The grid as float64 on the CPU, where asking for its values makes no accelerator wait.

    Raises:
        DaguerreError: it does not strictly descend to 0 or more, or has fewer steps than the sampler needs.
    """
    sigmas = sigmas.detach().to("cpu", torch.float64)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise DaguerreError(f"A grid needs at least two σ, the start and the end, and this has {sigmas.numel()}; make it with spaced().")
    wrong = (~(sigmas[1:] < sigmas[:-1])).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise DaguerreError(f"The grid must descend, and σ[{i}] = {sigmas[i]:g} is followed by σ[{i + 1}] = {sigmas[i + 1]:g}.")
    if sigmas[-1] < 0:
        raise DaguerreError(f"The grid ends at σ = {sigmas[-1]:g}; it must end at 0 or above.")
    if sigmas[0].isinf() and sampler.inversion:
        raise DaguerreError(
            f"The sampler {sampler.name!r} ends at the first σ, which must be finite; make the grid with terminal='capped'."
        )
    steps = len(sigmas) - 1 - int(sigmas[0].isinf())  # a step from inf is taken apart
    if steps < sampler.min_steps and not (steps == 0 and sampler.min_steps == 1):
        raise DaguerreError(f"The sampler {sampler.name!r} needs at least {sampler.min_steps} steps, and {steps} were given.")
    return sigmas


def _exact_first_step(sampler: Sampler, denoise: Denoise, x: Tensor, sigmas: Tensor, options: Mapping[str, Any]) -> SamplerSteps:
    """The sampler, after a first step of its own where the grid begins at inf: the limit of `euler` with the same share of fresh noise."""
    if sigmas[0].isinf():
        x0 = denoise(x, sigmas[0])
        eta = options.get("eta", 1.0 if sampler.stochastic else 0.0)
        noise = (1 - eta**2) ** 0.5 * x
        if eta > 0 and sigmas[1] > 0:
            noise = noise + eta * options["noise"](x, sigmas[0], sigmas[1])
        x = x0 + sigmas[1] * noise
        yield x, x0
        sigmas = sigmas[1:]
        options = {name: value[1:] if isinstance(value, Tensor) else value for name, value in options.items()}  # one for each step
    if len(sigmas) > 1:
        yield from sampler.run(denoise, x, sigmas, **options)


def _finite(sampler: Sampler, steps: Iterator[tuple[Tensor, Tensor]], sigmas: Tensor) -> SamplerSteps:
    """Stop at the first step that is not finite: nothing after it can be right."""
    along = sigmas.flip(0) if sampler.inversion else sigmas
    for index, (x, x0) in enumerate(steps):
        if not x.isfinite().all():
            raise DaguerreError(
                f"The picture was no longer finite after step {index + 1} of {len(sigmas) - 1} of {sampler.name!r}, from σ = "
                f"{along[index]:.4g}: the network returned NaN or inf. Compute in float32 or bfloat16 instead of float16."
            )
        yield x, x0


_SDE = {"eta": 1.0}

_ROWS = (
    Sampler("euler", euler_heun.euler, 1, aliases=("Euler", "DDIM", "DPM-Solver-1")),
    Sampler("euler_a", euler_heun.euler, 1, stochastic=True, options=_SDE, aliases=("Euler a", "euler_ancestral")),
    Sampler("ddpm", euler_heun.ddpm, 1, stochastic=True, aliases=("DDPM",)),
    Sampler("ddpm_large", euler_heun.ddpm, 1, stochastic=True, options={"variance": "large"}),
    Sampler("heun", euler_heun.heun, 2, evaluations=2, aliases=("Heun",), exact_first_step=True),
    Sampler("dpm2", euler_heun.dpm2, 2, evaluations=2, aliases=("DPM2", "dpm_2"), exact_first_step=True),
    Sampler(
        "dpm2_a",
        euler_heun.dpm2,
        1,
        evaluations=2,
        stochastic=True,
        options=_SDE,
        aliases=("DPM2 a", "dpm_2_ancestral"),
        exact_first_step=True,
    ),
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
        "dpmpp_3s",
        dpm_solver,
        3,
        options={"order": 3, "prediction": "x0", "solver": "heun"},
        min_steps=3,
        aliases=("DPM-Solver++(3S)",),
    ),
    Sampler(
        "dpmpp_2s_a", euler_heun.dpmpp_2s_a, 1, evaluations=2, stochastic=True, options=_SDE, aliases=("DPM++ 2S a", "dpmpp_2s_ancestral")
    ),
    Sampler("dpmpp_2m", dpmpp_multistep.dpmpp_2m, 2, aliases=("DPM++ 2M", "DPM-Solver++(2M)", "DPM-Solver++")),
    Sampler("dpmpp_3m", dpmpp_multistep.dpmpp_3m, 2, aliases=("DPM++ 3M", "DPM-Solver++(3M)")),
    Sampler("dpmpp_sde", euler_heun.dpmpp_sde, 1, evaluations=2, stochastic=True, aliases=("DPM++ SDE",), brownian=True),
    Sampler("dpmpp_2m_sde", dpmpp_multistep.dpmpp_2m, 1, stochastic=True, options=_SDE, aliases=("DPM++ 2M SDE",), brownian=True),
    Sampler(
        "dpmpp_2m_sde_heun",
        dpmpp_multistep.dpmpp_2m,
        1,
        stochastic=True,
        options={**_SDE, "solver": "heun"},
        aliases=("DPM++ 2M SDE Heun",),
        brownian=True,
    ),
    Sampler("dpmpp_3m_sde", dpmpp_multistep.dpmpp_3m, 1, stochastic=True, options=_SDE, aliases=("DPM++ 3M SDE",), brownian=True),
    Sampler("unipc", dpmpp_multistep.unipc, 3, aliases=("UniPC", "uni_pc_bh2")),
    Sampler("unipc_bh1", dpmpp_multistep.unipc, 3, options={"variant": "bh1"}, aliases=("uni_pc_bh1",)),
    Sampler("lms", linear_multistep.lms, 4, aliases=("LMS",)),
    Sampler("deis", linear_multistep.deis, 3, aliases=("DEIS",)),
    Sampler("plms", linear_multistep.plms, 2, min_steps=2, aliases=("PLMS",), exact_first_step=True),
    Sampler("pndm_prk", linear_multistep.pndm, 2, min_steps=4, exact_first_step=True),
    Sampler("ipndm", linear_multistep.ipndm, 2),
    Sampler("lcm", consistency.lcm, 1, stochastic=True, aliases=("LCM",)),
    Sampler("tcd", consistency.tcd, 1, stochastic=True, aliases=("TCD",)),
    Sampler("ddim_inversion", euler_heun.ddim_inversion, 1, aliases=("DDIM inversion", "ddim_inverse"), inversion=True),
)

SAMPLERS: dict[str, Sampler] = {sampler.name: sampler for sampler in _ROWS}
