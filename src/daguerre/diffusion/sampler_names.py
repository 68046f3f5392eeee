"""Parse the names of samplers and spacings as other programs write them.

"DPM++ 2M Karras", "k_euler_a", "PNDM", "Euler a" and "dpmpp_2m_sde_exponential" name a sampler and in some cases also a spacing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from daguerre.diffusion.samplers.registry import SAMPLERS, Sampler
from daguerre.diffusion.spacing import SPACINGS
from daguerre.errors import DaguerreError, nearest

# Names of spacings in other programs, as `normalize_name` returns them.
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

# Names of samplers that other programs always run with one spacing, with our sampler and that spacing.
FIXED_SCHEDULE: Mapping[str, tuple[str, str]] = {
    "pndm": ("plms", "leading"),  # as in Stable Diffusion 1's scheduler configuration, without Runge–Kutta steps
    "plms": ("plms", "leading"),
    "ddim": ("euler", "leading"),
    "lcm": ("lcm", "lcm"),
    "tcd": ("tcd", "lcm"),
}


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler, and the spacing if the name includes one."""

    sampler: Sampler
    spacing: str | None


def normalize_name(name: str) -> str:
    """A name in a canonical spelling: no case, blanks or dashes, "pp" for "++", "a" for "ancestral"."""
    normalized = re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp"))
    return normalized.replace("ancestral", "a").replace("dpmsolverpp", "dpmpp")


def parse_sampler_name(name: str) -> SamplerChoice:
    """The sampler and, if included, the spacing of a name in any of the usual spellings.

    Raises:
        DaguerreError: there is no such sampler; the message suggests the nearest name.
    """
    normalized = normalize_name(name)
    if normalized in FIXED_SCHEDULE:
        sampler, spacing = FIXED_SCHEDULE[normalized]
        return SamplerChoice(SAMPLERS[sampler], spacing)
    if found := _find_sampler(normalized):
        return SamplerChoice(found, None)
    spacings = _spacing_names()
    for ending in sorted(spacings, key=len, reverse=True):
        if normalized.endswith(ending) and (found := _find_sampler(normalized.removesuffix(ending))):
            return SamplerChoice(found, spacings[ending])
    known = [*SAMPLERS, *(alias for sampler in SAMPLERS.values() for alias in sampler.aliases)]
    raise DaguerreError(f"Unknown sampler {name!r}; use one of {', '.join(SAMPLERS)}.{nearest(name, known)}")


def parse_spacing_name(name: str) -> str:
    """The spacing of a name in any of the usual spellings.

    Raises:
        DaguerreError: there is no such spacing; the message suggests the nearest name.
    """
    if found := _spacing_names().get(normalize_name(name)):
        return found
    raise DaguerreError(f"Unknown spacing {name!r}; use one of {', '.join(SPACINGS)}.{nearest(name, SPACINGS)}")


def sampler_table() -> list[tuple[str, ...]]:
    """A table of all samplers, header first: name, order, evaluations per step, stochastic, minimum number of steps, other names."""
    rows: list[tuple[str, ...]] = [("sampler", "order", "evaluations per step", "stochastic", "minimum steps", "other names")]
    for sampler in SAMPLERS.values():
        counts = str(sampler.order), str(sampler.evaluations), "yes" if sampler.stochastic else "no", str(sampler.min_steps)
        rows.append((sampler.name, *counts, ", ".join(sampler.aliases)))
    return rows


def _spacing_names() -> dict[str, str]:
    """The spacing of each normalized name."""
    return {**{normalize_name(spacing): spacing for spacing in SPACINGS}, **SPACING_ALIASES}


def _find_sampler(normalized: str) -> Sampler | None:
    """The sampler of a normalized name, with or without k-diffusion's prefix "k" and ComfyUI's suffix "gpu"."""
    names = {normalize_name(known): sampler for sampler in SAMPLERS.values() for known in (sampler.name, *sampler.aliases)}
    normalized = normalized.removesuffix("gpu")
    return names.get(normalized) or names.get(normalized.removeprefix("k"))
