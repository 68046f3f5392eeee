"""Find the networks in a checkpoint, and the prefix of each.

Networks are recognised by tensor names, never by the file's name. A tensor that no network needs is ignored only if it matches one of
the five patterns of `IGNORED`; any other leftover is reported.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from daguerre.weights.diffusers.folder_names import NETWORK_FOLDERS
from daguerre.weights.original.key_map import (
    KeyTable,
    Rule,
    UNetLayout,
    autoencoder_rules,
    bare_clip_rules,
    folder_rules,
    gpt_rules,
    ldm_text_rules,
    open_clip_rules,
    rule,
    unet_rules,
)

IGNORED = {
    "the EMA of the weights, if the weights themselves are used": r"model_ema\..+",
    "tables that follow from the noise schedule, and tensors whose name marks it": (
        r"((low_scale_model|denoiser)\.)?(betas|alphas|sigmas|log_sigmas|alphas_cumprod\w*|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|"
        r"lvlb_weights|logvar|scale_factor|ddim_\w+|v_pred|ztsnr)"
    ),
    "position ids and attention masks, which follow from the shapes": r"(.+[./])?(position_ids|attn\.mask|attn_mask)",
    "the temperature of CLIP's training loss": r"(.+[./])?logit_scale",
    "networks only for a loss, a depth estimate or a display": r"(.+\.)?(loss\.(perceptual_loss\..+|logvar)|depth_model\..+|colorize)",
}
_IGNORED = re.compile("|".join(f"(?:{pattern})" for pattern in IGNORED.values()))

PREFIXES = (
    *((f"{part}/", part) for part in NETWORK_FOLDERS),
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
    ("", ""),  # a file of one network; its kind determines the part
)


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the pattern's group matches. Not the highest one, so that a forged name cannot cause a huge table."""
    return len({found[1] for name in names if (found := re.match(pattern, name))})


def _unchanged(_: Collection[str]) -> Iterator[Rule]:
    yield rule("", "")


def _autoencoder_rules(names: Collection[str]) -> Iterator[Rule]:
    return autoencoder_rules(_count(names, r"encoder\.down\.(\d+)"), _count(names, r"decoder\.up\.\d+\.block\.(\d+)"))


@dataclass(frozen=True)
class ComponentKind:
    """A network under the names of one code base. marker_key: a name that only this kind has. part: its folder in the diffusers layout."""

    network: str
    marker_key: str
    rules: Callable[[Collection[str]], Iterable[Rule]]
    part: str


COMPONENT_KINDS = (
    ComponentKind("unet", "output_blocks.0.0.in_layers.0.weight", lambda names: unet_rules(UNetLayout.infer(names)), "unet"),
    ComponentKind("unet", "mid_block.resnets.0.time_emb_proj.weight", folder_rules, "unet"),
    ComponentKind("autoencoder", "encoder.down.0.block.0.norm1.weight", _autoencoder_rules, "vae"),
    ComponentKind("autoencoder", "encoder.down_blocks.0.resnets.0.norm1.weight", folder_rules, "vae"),
    ComponentKind("clip_text", "text_model.embeddings.token_embedding.weight", _unchanged, "text_encoder"),
    ComponentKind("clip_text", "embeddings.token_embedding.weight", lambda names: bare_clip_rules(), "text_encoder"),
    ComponentKind("open_clip_text", "transformer.resblocks.0.attn.in_proj_weight",
         lambda names: open_clip_rules(_count(names, r"transformer\.resblocks\.(\d+)")), "text_encoder"),
    ComponentKind("ldm_text", "attn_layers.layers.0.0.weight",
         lambda names: ldm_text_rules(_count(names, r"attn_layers\.layers\.(\d+)") // 2), "text_encoder"),
    ComponentKind("ldm_text", "model.layers.0.self_attn_layer_norm.weight", _unchanged, "text_encoder"),
    ComponentKind("gpt", "tok_emb.weight", lambda names: gpt_rules(_count(names, r"blocks\.(\d+)")), "transformer"),
    ComponentKind("patch_discriminator", "main.0.weight", _unchanged, "discriminator"),
    ComponentKind("class_embedder", "embedding.weight", _unchanged, "condition"),
    ComponentKind("spatial_rescaler", "channel_mapper.weight", _unchanged, "condition"),
)  # fmt: skip


@dataclass(frozen=True)
class Component:
    """One network of a file. name: its part. original: its tensors under the file's names, without the prefix."""

    name: str
    kind: ComponentKind
    prefix: str
    original: Mapping[str, Tensor]

    def table(self, heads: tuple[int, ...] | None = None) -> KeyTable:
        """The table of its names. heads: per level, for a UNet with fused attention; without them only the shapes are correct there."""
        if heads is not None and self.kind is COMPONENT_KINDS[0]:
            return KeyTable(unet_rules(replace(UNetLayout.infer(self.original), heads=heads)))
        return KeyTable(self.kind.rules(self.original))

    def canonical(self, heads: tuple[int, ...] | None = None) -> dict[str, Tensor]:
        """The tensors under canonical names; those without a rule keep the file's names."""
        tensors, unmatched = self.table(heads).to_canonical(self.original)
        return tensors | {name: self.original[name] for name in unmatched}


@dataclass(frozen=True)
class CheckpointContents:
    """The networks of a file by part, the names that are ignored on purpose, and the unknown names."""

    parts: dict[str, Component] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    ema: str = "none"  # "none", "unused" (the file also has the weights), or "used" (instead of the weights)


def split_components(tensors: Mapping[str, Tensor], *, ema: bool | None = None) -> CheckpointContents:
    """Assign the tensors of a file to networks.

    ema: use the EMA of the UNet's weights instead of the weights; None uses it only if the file has no weights.
    """
    averages = ema_weights(tensors)
    use_ema = bool(averages) and (ema or (ema is None and not any(name.startswith("model.diffusion_model.") for name in tensors)))
    left = {name: tensor for name, tensor in tensors.items() if not _is_ema(name)} | averages if use_ema else dict(tensors)
    parts, ignored = {}, [name for name in left if _IGNORED.fullmatch(name)]
    for name in ignored:
        del left[name]
    for prefix, part in PREFIXES:
        candidates = {name[len(prefix) :]: tensor for name, tensor in left.items() if name.startswith(prefix)}
        kind = next((kind for kind in COMPONENT_KINDS if kind.marker_key in candidates), None)
        if kind is None or (part or kind.part) in parts:
            continue
        component = Component(part or kind.part, kind, prefix, candidates)
        unmatched = set(component.table().to_canonical(candidates)[1])
        matched = {name: tensor for name, tensor in candidates.items() if name not in unmatched}
        parts[component.name] = replace(component, original=matched)
        for name in matched:
            del left[prefix + name]
    return CheckpointContents(parts, ignored, list(left), "used" if use_ema else "unused" if averages else "none")


def ema_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The EMA of the UNet's weights, under the names of the weights."""
    return {f"model.{restore_dots(name.removeprefix('model_ema.'))}": tensor for name, tensor in tensors.items() if _is_ema(name)}


def _is_ema(name: str) -> bool:
    return name.startswith("model_ema.") and name not in ("model_ema.decay", "model_ema.num_updates")


# LitEma (ema.py of latent-diffusion) stores the EMA under names without their dots.
_MODULE_NAMES = re.compile(
    r"diffusion_model|input_blocks|output_blocks|middle_block|transformer_blocks|in_layers|out_layers|emb_layers|skip_connection|time_embed|"
    r"label_emb|proj_in|proj_out|attn[12]|to_out|to_[qkv]|norm[123]?|net|ff|proj|qkv|conv|out|op|weight|bias|\d+"
)


def restore_dots(name: str) -> str:
    """Put the dots back: "diffusion_modelinput_blocks110in_layers0weight" → "diffusion_model.input_blocks.11.0.in_layers.0.weight"."""
    pieces: list[str] = []
    for piece in _MODULE_NAMES.findall(name):
        before = pieces[-1] if pieces else ""
        if before in ("input_blocks", "output_blocks"):  # the number of an entry, then one digit for its submodule
            pieces += [piece[:-1], piece[-1]]
        elif before == "label_emb" and piece.isdigit():
            pieces += list(piece)
        else:
            pieces.append(piece)
    return ".".join(pieces)
