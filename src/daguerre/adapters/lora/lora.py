"""A LoRA, or another adapter that changes weights, as a value: the change of each layer, and its strength.

styled = with_adapters(model, [load_lora("ink.safetensors").scaled(0.8)])
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from daguerre.adapters.embedding import Embedding
from daguerre.adapters.lora.module_names import LayerName
from daguerre.adapters.lora.weight_delta import WeightDelta
from daguerre.adapters.record import AdapterRecord

CONTEXT_FAMILIES = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}  # by the width of the text states
# What trainers write into the header, and the family that it means.
HEADER_FAMILIES = (
    (r"sdxl|stable-diffusion-xl", "sdxl"),
    (r"sd_v2|stable-diffusion-v2", "sd2"),
    (r"sd_v1|stable-diffusion-v1", "sd1"),
)
HEADER_KEYS = ("ss_base_model_version", "modelspec.architecture")


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """The changes of one layer's weight and bias."""

    weight: WeightDelta | None = None
    bias: WeightDelta | None = None


@dataclass(frozen=True, eq=False)
class Lora:
    """Changes of weights by layer.

    Attributes:
        layers: by the names in the file, which `module_names.layer_table` finds in a model.
        record: name, file and strengths.
        embeddings: words that the file bundles.
        metadata: of the file's header.
        keys: the names of the layers as the file spells them, with its prefixes.
        unknown: names in the file that no rule reads.
        notes: what may not be as intended, one sentence each; `with_adapters` logs them.
    """

    layers: Mapping[LayerName, LoraLayer]
    record: AdapterRecord
    embeddings: tuple[Embedding, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def scaled(self, scale: float, text_scale: float | None = None, *, rank: int | None = None) -> "Lora":
        """The same with other strengths; text_scale: of the text encoders, by default the same. rank: use only its first ranks."""
        return replace(self, record=replace(self.record, scale=scale, text_scale=text_scale, rank=rank))

    def strength(self, name: LayerName) -> float:
        """The strength of a layer."""
        if name.role == "unet" or self.record.text_scale is None:
            return self.record.scale
        return self.record.text_scale

    @property
    def family(self) -> str | None:
        """The family of models it was made for, from its shapes and names, else its header; None if unknown."""
        return family_of_layers(self.layers) or _header_family(self.metadata)

    @property
    def ranks(self) -> list[int]:
        """The different ranks of its layers, ascending."""
        return sorted({rank for layer in self.layers.values() if layer.weight and (rank := layer.weight.rank)})


def family_of_layers(layers: Mapping[LayerName, LoraLayer]) -> str | None:
    """The family of models from the names and input widths of the layers; None if they do not tell."""
    for width in _widths(layers, r"attn2_to_[kv]$"):
        return CONTEXT_FAMILIES.get(width)
    if any(name.role == "te2" or "transformer_blocks_9" in name.path for name in layers):
        return "sdxl"
    for width in _widths(layers, r"self_attn_[qkv]_proj$", role="te1"):
        return {768: "sd1", 1024: "sd2"}.get(width)
    return None


def _widths(layers: Mapping[LayerName, LoraLayer], pattern: str, role: str = "unet") -> Iterable[int]:
    for name, layer in layers.items():
        if name.role == role and re.search(pattern, name.path) and layer.weight and (width := layer.weight.in_features):
            yield width


def _header_family(metadata: Mapping[str, str]) -> str | None:
    for key in HEADER_KEYS:
        for pattern, family in HEADER_FAMILIES:
            if re.search(pattern, metadata.get(key, "")):
                return family
    return "sd2" if metadata.get("ss_v2") == "True" else None
