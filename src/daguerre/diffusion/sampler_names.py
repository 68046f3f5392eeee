"""The names people give to samplers and spacings, joined or foreign, and what they mean here.

"DPM++ 2M Karras", "k_euler_a", "PNDM", "Euler a", "dpmpp_2m_sde_exponential" are a sampler and perhaps a spacing in one word.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from daguerre.diffusion.samplers.registry import SAMPLERS, Sampler
from daguerre.diffusion.spacing import SPACINGS
from daguerre.errors import DaguerreError, nearest

# Spacings as other programs name them, the way `folded` leaves their names.
SPACING_ALIASES: Mapping[str, str] = {
    "ka": "karras",
    "exp": "exponential",
    "lu": "exponential",
    "poly": "polyexponential",
    "normal": "linspace",
    "uniform": "linspace",
    "sgm": "sgm_uniform",
    "ddimuniform": "leading",
    "ays": "align_your_steps",
}

# Samplers that other programs always run on one spacing, by the name they have there.
FIXED_SCHEDULE: Mapping[str, tuple[str, str]] = {
    "pndm": ("plms", "leading"),  # as Stable Diffusion's own configuration has it, without Runge–Kutta steps
    "plms": ("plms", "leading"),
    "ddim": ("euler", "leading"),
    "lcm": ("lcm", "lcm"),
    "tcd": ("tcd", "lcm"),
}


@dataclass(frozen=True)
class SamplerChoice:
    """What a name says: the sampler, and the spacing where the name holds one."""

    sampler: Sampler
    spacing: str | None


def normalize_name(name: str) -> str:
    """A name without what people write in different ways: case, blanks, dashes, "++", "ancestral"."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp"))
    return plain.replace("ancestral", "a").replace("dpmsolverpp", "dpmpp")


def parse_sampler_name(name: str) -> SamplerChoice:
    """The sampler and spacing of a name that may join them, in any of the usual spellings.

    Raises:
        DaguerreError: no sampler has this name; the nearest is told.
    """
    plain = normalize_name(name)
    if plain in FIXED_SCHEDULE:
        sampler, spacing = FIXED_SCHEDULE[plain]
        return SamplerChoice(SAMPLERS[sampler], spacing)
    if found := _find(plain):
        return SamplerChoice(found, None)
    spacings = {**{normalize_name(spacing): spacing for spacing in SPACINGS}, **SPACING_ALIASES}
    for ending in sorted(spacings, key=len, reverse=True):
        if plain.endswith(ending) and (found := _find(plain.removesuffix(ending))):
            return SamplerChoice(found, spacings[ending])
    raise DaguerreError(f"There is no sampler {name!r}; there are {', '.join(SAMPLERS)}.{_near(name)}")


def parse_spacing_name(name: str) -> str:
    """The spacing of this name, as we or as others write it.

    Raises:
        DaguerreError: there is none; the nearest name is told.
    """
    spacings = {**{normalize_name(spacing): spacing for spacing in SPACINGS}, **SPACING_ALIASES}
    if normalize_name(name) in spacings:
        return spacings[normalize_name(name)]
    raise DaguerreError(f"There is no spacing {name!r}; there are {', '.join(SPACINGS)}.{nearest(name, SPACINGS)}")


def sampler_table() -> list[tuple[str, ...]]:
    """The table of all samplers, first its head: name, order, evaluations per step, stochastic, fewest steps, other names."""
    rows: list[tuple[str, ...]] = [("sampler", "order", "evaluations per step", "stochastic", "fewest steps", "also known as")]
    for sampler in SAMPLERS.values():
        counts = str(sampler.order), str(sampler.evaluations), "yes" if sampler.stochastic else "no", str(sampler.min_steps)
        rows.append((sampler.name, *counts, ", ".join(sampler.aliases)))
    return rows


def _find(plain: str) -> Sampler | None:
    """The sampler of a folded name, with or without k-diffusion's "k" before it and the "gpu" behind it that tells where noise is drawn."""
    names = {normalize_name(known): sampler for sampler in SAMPLERS.values() for known in (sampler.name, *sampler.aliases)}
    plain = plain.removesuffix("gpu")
    return names.get(plain) or names.get(plain.removeprefix("k"))


def _near(name: str) -> str:
    return nearest(name, [*SAMPLERS, *(alias for sampler in SAMPLERS.values() for alias in sampler.aliases)])
