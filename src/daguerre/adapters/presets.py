"""Few-step files, distilled LoRAs and checkpoints, with the sampler, spacing, steps and guidance that they were trained for.

LCM: Luo et al. 2023, arXiv:2311.05556. TCD: Zheng et al. 2024, arXiv:2402.19159. Hyper-SD: Ren et al. 2024, arXiv:2404.13686.
SDXL-Lightning: Lin et al. 2024, arXiv:2402.13929. DMD2: Yin et al. 2024, arXiv:2405.14867.

`generate(model, "a cat", **STEP_PRESETS["lightning-4"].fields)`
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daguerre.errors import DaguerreError, nearest

UNNAMED_FILES = ("pytorch_lora_weights", "adapter_model", "diffusion_pytorch_model", "model")  # the folder has the name
PRESET_KEY = "daguerre.preset"  # of a header: the name of the preset
TITLE_KEYS = ("modelspec.title", "ss_output_name", "ss_sd_model_name", "name")  # of a file, in which trainers write its name


@dataclass(frozen=True)
class Preset:
    """Settings of a few-step file.

    steps: what it was distilled for; a file for any number of steps has the usual one. max_guidance: beyond it images are overexposed; 1
    forbids guidance.
    """

    name: str
    sampler: str
    spacing: str
    steps: int
    guidance_scale: float = 1.0
    max_guidance: float = 1.0

    @property
    def fields(self) -> dict[str, Any]:
        """As fields of a `Request`."""
        return {"sampler": self.sampler, "spacing": self.spacing, "steps": self.steps, "guidance_scale": self.guidance_scale}

    def fields_without(self, given: Collection[str]) -> dict[str, Any]:
        """The fields that are not given; the name of a sampler may include its spacing, so that is left out with it."""
        given = {*given, "spacing"} if "sampler" in given else given
        return {name: value for name, value in self.fields.items() if name not in given}

    def guidance_problem(self, scale: float | None) -> str | None:
        """What is wrong with a guidance scale that the file does not support; None if it is supported."""
        if scale is None or 0 <= scale <= self.max_guidance:
            return None
        allowed = "1, without guidance" if self.max_guidance == 1 else f"a guidance scale up to {self.max_guidance:g}"
        return f"Files of the preset {self.name} need {allowed}, and it is {scale:g}"


STEP_PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("lcm", "lcm", "lcm", 4, max_guidance=2.0),
        Preset("tcd", "tcd", "lcm", 4, max_guidance=2.0),
        Preset("hyper-1", "tcd", "trailing", 1),
        *(Preset(f"hyper-{steps}", "euler", "trailing", steps) for steps in (2, 4, 8)),
        *(Preset(f"hyper-{steps}-cfg", "euler", "trailing", steps, 5.0, 8.0) for steps in (8, 12)),
        *(Preset(f"lightning-{steps}", "euler", "trailing", steps) for steps in (2, 4, 8)),
        Preset("dmd2", "lcm", "trailing", 4),  # t = 999, 749, 499, 249
    )
}
# What names contain, and the start of the preset; the number of steps follows it if the preset has one.
STEP_FAMILIES = (
    (r"(?<![a-z])hyper(?=.*sd|.*\d ?steps?)", "hyper"),
    (r"lightning(?=.*(xl|\d ?steps?))|xl.*lightning", "lightning"),
    (r"(?<![a-z])dmd2", "dmd2"),
    (r"(?<![a-z])tcd(?![a-z])", "tcd"),
    (r"(?<![a-z])lcm(?![a-z])", "lcm"),
)


def find_preset(name: str) -> Preset:
    """The preset of a name. Raises DaguerreError if there is none; suggests the nearest."""
    if name not in STEP_PRESETS:
        raise DaguerreError(f"There is no preset {name!r}; use one of {', '.join(STEP_PRESETS)}, or none.{nearest(name, STEP_PRESETS)}")
    return STEP_PRESETS[name]


def possible_presets(name: str) -> list[Preset]:
    """The presets that the name of a file, a folder or a hub repository allows; several if it lacks the number of steps."""
    text = re.sub(r"[\W_]+", " ", name.lower())
    family = next((family for pattern, family in STEP_FAMILIES if re.search(pattern, text)), None)
    if family is None:
        return []
    found = [preset for preset in STEP_PRESETS.values() if preset.name.split("-")[0] == family]
    if len(found) == 1:
        return found
    steps = re.search(r"(\d+) ?steps?", text)
    if steps is None:
        return found
    cfg = bool(re.search(r"(?<![a-z])cfg", text))
    both = [preset for preset in found if preset.steps == int(steps[1])]
    return [preset for preset in both if preset.name.endswith("-cfg") == cfg] or both


def presets_of_file(path: Path) -> list[Preset]:
    """The presets that a file allows: by its name or that of its folder, by the preset or the name in its header, or by its shapes.

    Raises:
        DaguerreError: the file cannot be read.
    """
    if found := possible_presets(path.parent.name if path.stem in UNNAMED_FILES else path.name):
        return found
    if path.suffix != ".safetensors" or not path.is_file():
        return []
    from daguerre.weights.tensors.reader import open_tensors  # imported here, because it imports torch

    file = open_tensors(path)
    if (named := file.metadata.get(PRESET_KEY, "")) in STEP_PRESETS:
        return [STEP_PRESETS[named]]
    for key in TITLE_KEYS:
        if found := possible_presets(file.metadata.get(key, "")):
            return found
    return (
        [preset for preset in STEP_PRESETS.values() if preset.name.startswith("lightning")]
        if _has_lightning_shapes(file.shapes, file.tensor)
        else []
    )


def choose_preset(paths: Sequence[Path], remedy: str) -> tuple[Preset, Path] | None:
    """The preset of the few-step file among the files of a run, and that file; None if there is none.

    Args:
        remedy: what to do if the files leave it open, for the message.

    Raises:
        DaguerreError: a file fits several presets, or two files have different ones; lists them.
    """
    found = [(path, presets) for path in paths if (presets := presets_of_file(path))]
    names = list(dict.fromkeys(preset.name for _, presets in found for preset in presets))
    if len(names) > 1:
        files = " and ".join(f"'{path.name}'" for path, _ in found)
        raise DaguerreError(f"{files} may be for {', '.join(names)}; {remedy}.")
    return (found[0][1][0], found[0][0]) if found else None


def _has_lightning_shapes(shapes: Mapping[str, Any], tensor: Any) -> bool:
    """Whether a LoRA has rank 64 and alpha 8 in linear layers and convolutions of the UNet alone, as those of SDXL-Lightning."""
    downs = [(name, shape.shape) for name, shape in shapes.items() if name.endswith("lora_down.weight")]
    alphas = [name for name in shapes if name.endswith(".alpha")]
    if not downs or not alphas or not all(name.startswith("lora_unet") for name, _ in downs):
        return False
    has_convs = any(len(shape) == 4 and shape[-1] == 3 for _, shape in downs)
    return has_convs and {shape[0] for _, shape in downs} == {64} and float(tensor(alphas[0])) == 8
