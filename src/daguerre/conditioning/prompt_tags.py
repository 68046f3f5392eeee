"""Tags in prompts that are not text: `<lora:NAME:SCALE>`, as in the Stable Diffusion web UI.

    <lora:ink>  <lora:ink:0.8>  <lora:ink:TEXT:UNET>  <lora:ink:te=0.5:unet=0.8:dyn=4>

Tags are cut out of a prompt before it is parsed; negative prompts have none.
"""

import re
from dataclasses import dataclass

from daguerre.errors import DaguerreError

TAG = re.compile(r"<(\w+):([^<>]+)>")


@dataclass(frozen=True)
class PromptTag:
    """A tag of a prompt: its kind, such as "lora", and its arguments, split at the colons."""

    kind: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class LoraTag:
    """A LoRA that a prompt names. scale: for the UNet. text_scale: for the text encoders. rank: use only its first ranks, None for all."""

    name: str
    scale: float = 1.0
    text_scale: float = 1.0
    rank: int | None = None


def split_tags(prompt: str) -> tuple[str, tuple[PromptTag, ...]]:
    """The prompt without its tags, and the tags in order."""
    tags = tuple(PromptTag(found[1], tuple(part.strip() for part in found[2].split(":"))) for found in TAG.finditer(prompt))
    return TAG.sub("", prompt), tags


def lora_of_tag(tag: PromptTag) -> LoraTag:
    """The LoRA of a tag of the kind "lora" or "lyco".

    Raises:
        DaguerreError: a scale is not a number.
    """
    named = dict(part.split("=", 1) for part in tag.arguments[1:] if "=" in part)
    positions = [part for part in tag.arguments[1:] if "=" not in part]
    try:
        te = float(named.get("te", positions[0] if positions else 1.0))
        unet = float(named.get("unet", positions[1] if len(positions) > 1 else te))
        rank = int(dyn) if (dyn := named.get("dyn", positions[2] if len(positions) > 2 else "")) else None
    except ValueError as error:
        raise DaguerreError(
            f"The tag <{tag.kind}:{':'.join(tag.arguments)}> has a scale that is no number; write <lora:NAME:0.8>, or "
            "<lora:NAME:TEXT:UNET> for two scales."
        ) from error
    return LoraTag(tag.arguments[0], unet, te, rank)
