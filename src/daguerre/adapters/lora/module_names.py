"""Find the layer that a name in an adapter's file means, whatever program wrote it.

A name is the network's prefix, the path of a layer and a suffix. Some programs write the path with dots and some with underscores, some
with the names of diffusers and some with those of the original code. Underscores are ambiguous, so a path is never split: it is looked up
in a table of all layers of the model (`layer_table`), in which every name is spelled with underscores.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from torch import nn

from daguerre.models.clip import CLIPText
from daguerre.models.unet import UNet
from daguerre.weights.original.key_map import UNetLayout, open_clip_rules, unet_rules

NetworkRole = Literal["unet", "te1", "te2"]  # te1: CLIP-L or SD 2's text encoder; te2: SDXL's bigG

# Prefixes with underscores for dots, and the network they mean; the first match counts.
ROLE_PREFIXES: tuple[tuple[str, NetworkRole], ...] = (
    ("lora_unet_", "unet"),
    ("oft_unet_", "unet"),
    ("lycoris_unet_", "unet"),
    ("lora_te1_", "te1"),
    ("lora_te2_", "te2"),
    ("lora_te_", "te1"),
    ("lycoris_te1_", "te1"),
    ("lycoris_te2_", "te2"),
    ("lycoris_te_", "te1"),
    ("oft_te1_", "te1"),
    ("oft_te2_", "te2"),
    ("oft_te_", "te1"),
    ("lycoris_", "unet"),
    ("text_encoders_clip_l_transformer_", "te1"),
    ("text_encoders_clip_g_transformer_", "te2"),
    ("text_encoder_2_", "te2"),
    ("text_encoder_", "te1"),
    ("model_diffusion_model_", "unet"),
    ("diffusion_model_", "unet"),
    ("unet_", "unet"),
)
PEFT_PREFIX = "base_model_model_"  # of a PEFT folder, which holds one network


class LayerName(NamedTuple):
    """A layer as a file names it: the network, and its path with underscores. A PEFT folder of a text encoder says "unet", too."""

    role: NetworkRole
    path: str


class Target(NamedTuple):
    """A layer of a network, by its path; part, parts: which of so many parts of the rows of a fused projection it is."""

    path: str
    part: int = 0
    parts: int = 1


def layer_name(module: str) -> LayerName:
    """The network and path of a module in a file."""
    flat = module.replace(".processor.", ".").replace(".", "_").removeprefix(PEFT_PREFIX)
    for prefix, role in ROLE_PREFIXES:
        if flat.startswith(prefix):
            return LayerName(role, flat.removeprefix(prefix))
    return LayerName("unet", flat)


def layer_table(network: nn.Module) -> Mapping[str, tuple[Target, ...]]:
    """All layers with weights of a UNet or a CLIP text encoder by every name that programs give them, with underscores."""
    paths = [name.removesuffix(".weight") for name, _ in network.named_parameters() if name.endswith(".weight")]
    table: dict[str, tuple[Target, ...]] = {}
    for path in paths:
        for alias in _aliases(path):
            table[alias.replace(".", "_")] = (Target(path),)
    for original, targets in _original_names(network, paths):
        table.setdefault(original.replace(".", "_"), targets)
    return table


def _aliases(path: str) -> Iterator[str]:
    """A path, and how some versions of diffusers and transformers write it."""
    yield path
    if path.endswith(".to_out.0"):
        yield path.removesuffix(".0")
    if path.startswith("text_model."):
        yield path.removeprefix("text_model.")


def _original_names(network: nn.Module, paths: Sequence[str]) -> Iterator[tuple[str, tuple[Target, ...]]]:
    """The names of the original code, with the layers that each stands for: several for a fused projection."""
    if isinstance(network, UNet):
        rules = unet_rules(UNetLayout.of(network.config))
    elif isinstance(network, CLIPText):
        rules = open_clip_rules(network.config.layers)
    else:
        return
    by_first = {rule.canonical[0]: rule for rule in rules}
    for path in paths:
        prefix = next((prefix for prefix in _prefixes(f"{path}.") if prefix in by_first), None)
        if prefix is not None:
            rule, rest = by_first[prefix], f"{path}."[len(prefix) :]
            count = len(rule.canonical)
            targets = tuple(Target((each + rest).rstrip("."), part, count) for part, each in enumerate(rule.canonical))
            yield (rule.original + rest).rstrip("._"), targets


def _prefixes(name: str) -> Iterator[str]:
    """The prefixes of a name that end at a dot, the longest first."""
    for found in reversed(list(re.finditer(r"\.", name))):
        yield name[: found.end()]
