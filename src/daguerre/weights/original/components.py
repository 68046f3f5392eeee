"""Which networks a file of tensors holds, and under which prefix each lies.

A file is told apart by the names in it, never by its own name. What is not a weight of a network that pictures need is passed over
only if it matches one of the five patterns of `IGNORED`; any other leftover is reported.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from daguerre.weights.diffusers.layout import PARTS
from daguerre.weights.original.key_map import (
    KeyTable,
    Rule,
    UNetLayout,
    autoencoder_rules,
    bare_clip_rules,
    folder_unet_rules,
    gpt_rules,
    ldm_text_rules,
    old_autoencoder_rules,
    open_clip_rules,
    rule,
    unet_rules,
)

IGNORED = {
    "the running average of weights, where the weights themselves are read": r"model_ema\..+",
    "tables that follow from the noise schedule, and marks that name it": (
        r"((low_scale_model|denoiser)\.)?(betas|alphas|sigmas|log_sigmas|alphas_cumprod\w*|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|"
        r"lvlb_weights|logvar|scale_factor|ddim_\w+|v_pred|ztsnr)"
    ),
    "places and masks that follow from the shape": r"(.+[./])?(position_ids|attn\.mask|attn_mask)",
    "the temperature of CLIP's training": r"(.+[./])?logit_scale",
    "what only a loss, a depth estimate or a display needs": r"(.+\.)?(loss\.(perceptual_loss\..+|logvar)|depth_model\..+|colorize)",
}
_IGNORED = re.compile("|".join(f"(?:{pattern})" for pattern in IGNORED.values()))

PREFIXES = (
    *((f"{part}/", part) for part in PARTS),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("cond_stage_model.transformer.", "text_encoder"),
    ("cond_stage_model.model.", "text_encoder"),
    ("conditioner.embedders.0.transformer.", "text_encoder"),
    ("conditioner.embedders.1.model.", "text_encoder_2"),
    ("conditioner.embedders.0.model.", "text_encoder_2"),
    ("cond_stage_model.", "condition"),
    ("transformer.", "transformer"),
    ("loss.discriminator.", "discriminator"),
    ("", ""),  # a file of one network; its kind names the part
)


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the pattern's group finds. Not the highest of them: a forged name must not make a table without end."""
    return len({found[1] for name in names if (found := re.match(pattern, name))})


def _same(_: Collection[str]) -> Iterator[Rule]:
    yield rule("", "")


def _autoencoder(names: Collection[str]) -> Iterator[Rule]:
    return autoencoder_rules(_count(names, r"encoder\.down\.(\d+)"), _count(names, r"decoder\.up\.\d+\.block\.(\d+)"))


def _folder_autoencoder(names: Collection[str]) -> Iterator[Rule]:
    return old_autoencoder_rules(_count(names, r"encoder\.down_blocks\.(\d+)"), _count(names, r"decoder\.up_blocks\.\d+\.resnets\.(\d+)"))


@dataclass(frozen=True)
class ComponentKind:
    """A network as some code base names it. sign: a name that only it has."""

    network: str
    marker_key: str
    rules: Callable[[Collection[str]], Iterable[Rule]]
    part: str  # in the folder layout


COMPONENT_KINDS = (
    ComponentKind("unet", "output_blocks.0.0.in_layers.0.weight", lambda names: unet_rules(UNetLayout.found(names)), "unet"),
    ComponentKind("unet", "mid_block.resnets.0.time_emb_proj.weight", folder_unet_rules, "unet"),
    ComponentKind("autoencoder", "encoder.down.0.block.0.norm1.weight", _autoencoder, "vae"),
    ComponentKind("autoencoder", "encoder.down_blocks.0.resnets.0.norm1.weight", _folder_autoencoder, "vae"),
    ComponentKind("clip_text", "text_model.embeddings.token_embedding.weight", _same, "text_encoder"),
    ComponentKind("clip_text", "embeddings.token_embedding.weight", lambda names: bare_clip_rules(), "text_encoder"),
    ComponentKind("open_clip_text", "transformer.resblocks.0.attn.in_proj_weight",
         lambda names: open_clip_rules(_count(names, r"transformer\.resblocks\.(\d+)")), "text_encoder"),
    ComponentKind("ldm_text", "attn_layers.layers.0.0.weight",
         lambda names: ldm_text_rules(_count(names, r"attn_layers\.layers\.(\d+)") // 2), "text_encoder"),
    ComponentKind("ldm_text", "model.layers.0.self_attn_layer_norm.weight", _same, "text_encoder"),
    ComponentKind("gpt", "tok_emb.weight", lambda names: gpt_rules(_count(names, r"blocks\.(\d+)")), "transformer"),
    ComponentKind("patch_discriminator", "main.0.weight", _same, "discriminator"),
    ComponentKind("class_embedder", "embedding.weight", _same, "condition"),
    ComponentKind("spatial_rescaler", "channel_mapper.weight", _same, "condition"),
)  # fmt: skip


@dataclass(frozen=True)
class Component:
    """One network of a file: its tensors under the file's names, the prefix cut off."""

    name: str  # in the folder layout
    kind: ComponentKind
    prefix: str
    original: Mapping[str, Tensor]

    def table(self, heads: tuple[int, ...] | None = None) -> KeyTable:
        """Its names and ours. heads: per level, for a UNet whose attention is fused; without it only shapes are right there."""
        if heads is not None and self.kind is COMPONENT_KINDS[0]:
            return KeyTable(unet_rules(replace(UNetLayout.found(self.original), heads=heads)))
        return KeyTable(self.kind.rules(self.original))

    def canonical(self, heads: tuple[int, ...] | None = None) -> dict[str, Tensor]:
        """The tensors under our names, and those that no rule covers under the file's own."""
        tensors, unmatched = self.table(heads).to_canonical(self.original)
        return tensors | {name: self.original[name] for name in unmatched}


@dataclass(frozen=True)
class CheckpointContents:
    """A file, sorted: its networks by part, what was passed over on purpose, and what nobody knows."""

    parts: dict[str, Component] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    ema: str = "none"  # "none", "unused": beside the weights, "used": in their place


def split_components(tensors: Mapping[str, Tensor], *, ema: bool | None = None) -> CheckpointContents:
    """Sort the tensors of a file into networks.

    ema: take the running average of the UNet's weights instead of the weights; None: only where there is nothing else.
    """
    average = ema_weights(tensors)
    use = bool(average) and (ema or (ema is None and not any(name.startswith("model.diffusion_model.") for name in tensors)))
    left = {name: tensor for name, tensor in tensors.items() if not _is_average(name)} | average if use else dict(tensors)
    parts, ignored = {}, [name for name in left if _IGNORED.fullmatch(name)]
    for name in ignored:
        del left[name]
    for prefix, part in PREFIXES:
        inside = {name[len(prefix) :]: tensor for name, tensor in left.items() if name.startswith(prefix)}
        kind = next((kind for kind in COMPONENT_KINDS if kind.marker_key in inside), None)
        if kind is None or (part or kind.part) in parts:
            continue
        found = Component(part or kind.part, kind, prefix, inside)
        lost = set(found.table().to_canonical(inside)[1])
        parts[found.name] = replace(found, original={name: tensor for name, tensor in inside.items() if name not in lost})
        for name in inside.keys() - lost:
            del left[prefix + name]
    return CheckpointContents(parts, ignored, list(left), "used" if use else "unused" if average else "none")


def ema_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The running average of the UNet's weights, under the names of the weights."""
    return {f"model.{restore_dots(name.removeprefix('model_ema.'))}": tensor for name, tensor in tensors.items() if _is_average(name)}


def _is_average(name: str) -> bool:
    return name.startswith("model_ema.") and name not in ("model_ema.decay", "model_ema.num_updates")


# The running average is stored under names whose dots were taken out (LitEma in latent-diffusion's ema.py).
_PIECES = re.compile(
    r"diffusion_model|input_blocks|output_blocks|middle_block|transformer_blocks|in_layers|out_layers|emb_layers|skip_connection|time_embed|"
    r"label_emb|proj_in|proj_out|attn[12]|to_out|to_[qkv]|norm[123]?|net|ff|proj|qkv|conv|out|op|weight|bias|\d+"
)


def restore_dots(name: str) -> str:
    """Put the dots back: "diffusion_modelinput_blocks110in_layers0weight" is "diffusion_model.input_blocks.11.0.in_layers.0.weight"."""
    pieces: list[str] = []
    for piece in _PIECES.findall(name):
        before = pieces[-1] if pieces else ""
        if before in ("input_blocks", "output_blocks"):  # an entry's number, then one digit for the part of it
            pieces += [piece[:-1], piece[-1]]
        elif before == "label_emb" and piece.isdigit():
            pieces += list(piece)
        else:
            pieces.append(piece)
    return ".".join(pieces)
