"""Tables that map the tensor names of published single files to the names used here, and back.

The names here are those of the diffusers folder layout, so a folder needs no table. A single file of CompVis, Stability AI or OpenCLIP
uses the names of the code that trained it. A `Rule` pairs an original prefix with a canonical one, and a `KeyTable` renames whole
dictionaries in both directions. Tensors are only split, joined, transposed or reshaped, never computed with, so a round trip preserves
every byte.

UNet: openaimodel.py of latent-diffusion; autoencoder: model.py of taming-transformers; OpenCLIP: transformer.py of open_clip;
text transformer of latent diffusion: x-transformers. `components.py` finds the prefix of each network in a file.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from daguerre.models.unet import UNetConfig

# Names of attention layers in diffusers folders from before 2023.
OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Rule(NamedTuple):
    """An original prefix and its canonical ones; the rest of the name is the same. A fused tensor has several canonical prefixes.

    ones: trailing dimensions of size 1 that only the original weight has (a 1×1 convolution that is a linear layer here).
    transposed: the original computes x·W, the canonical layer W·x. heads: of a fused tensor whose rows are ordered (q, k, v) per head.
    """

    original: str
    canonical: tuple[str, ...]
    ones: int = 0
    transposed: bool = False
    heads: int = 1

    def split(self, tensor: Tensor) -> Sequence[Tensor]:
        """The canonical tensors, in the order of `canonical`; views of the original if the order of its rows allows it.

        Raises:
            ValueError: the tensor has an impossible shape.
        """
        if self.transposed and tensor.ndim == 2:
            return [tensor.t().contiguous()]
        if self.ones and tensor.ndim > 2:
            tensor = tensor.flatten(1)  # (C, C)
        if len(self.canonical) == 1:
            return [tensor]
        if tensor.ndim == 0 or tensor.shape[0] % (self.heads * len(self.canonical)):
            raise ValueError(f"a tensor of shape {list(tensor.shape)} does not split in {len(self.canonical)} for {self.heads} heads")
        return [part.flatten(0, 1) for part in tensor.unflatten(0, (self.heads, len(self.canonical), -1)).unbind(1)]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """The original tensor of these canonical ones."""
        tensor = tensors[0]
        if len(tensors) > 1:
            tensor = torch.stack([part.unflatten(0, (self.heads, -1)) for part in tensors], dim=1).flatten(0, 2)
        if self.transposed:
            return tensor.t().contiguous()
        return tensor[(..., *(None,) * self.ones)] if self.ones and tensor.ndim == 2 else tensor


def rule(original: str, canonical: str, ones: int = 0) -> Rule:
    """A rule with one canonical prefix."""
    return Rule(original, (canonical,), ones)


class KeyTable:
    """Rules, looked up by the longest prefix that ends at a dot or an underscore of a name."""

    def __init__(self, rules: Iterable[Rule]):
        self.rules = tuple(rules)
        self._by_original = {rule.original: rule for rule in self.rules}
        self._by_canonical = {prefix: (rule, index) for rule in self.rules for index, prefix in enumerate(rule.canonical)}
        if len(self._by_original) != len(self.rules) or len(self._by_canonical) != sum(len(rule.canonical) for rule in self.rules):
            raise ValueError("a table of names must be invertible")
        self._original_lengths = sorted({*map(len, self._by_original)}, reverse=True)
        self._canonical_lengths = sorted({*map(len, self._by_canonical)}, reverse=True)

    def to_canonical(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Rename original tensors. Also returns the names without a rule, or with a shape that their rule does not allow."""
        canonical, unmatched = {}, []
        for name, tensor in tensors.items():
            prefix = _longest_prefix(name, self._by_original, self._original_lengths)
            if prefix is None:
                unmatched.append(name)
                continue
            found = self._by_original[prefix]
            try:
                canonical.update(zip((new + name[len(prefix) :] for new in found.canonical), found.split(tensor), strict=True))
            except ValueError:
                unmatched.append(name)
        return canonical, unmatched

    def to_original(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Rename canonical tensors. Also returns the names without a rule, and those of an incomplete fused tensor."""
        slots: dict[str, tuple[Rule, dict[int, str]]] = {}
        unmatched = []
        for name in tensors:
            prefix = _longest_prefix(name, self._by_canonical, self._canonical_lengths)
            if prefix is None:
                unmatched.append(name)
                continue
            found, index = self._by_canonical[prefix]
            slots.setdefault(found.original + name[len(prefix) :], (found, {}))[1][index] = name
        original = {}
        for target, (found, names) in slots.items():
            if len(names) == len(found.canonical):
                original[target] = found.join([tensors[names[index]] for index in range(len(names))])
            else:
                unmatched += names.values()
        return original, unmatched


def _longest_prefix(name: str, prefixes: Collection[str], lengths: Iterable[int]) -> str | None:
    """The longest prefix that is the whole name or ends at a dot or underscore. lengths: of the prefixes, in descending order."""
    for length in lengths:
        at_boundary = length in (0, len(name)) or (length < len(name) and name[length - 1] in "._")
        if at_boundary and name[:length] in prefixes:
            return name[:length]
    return None


RESBLOCK = {
    "in_layers.0.": "norm1.", "in_layers.2.": "conv1.", "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.", "out_layers.3.": "conv2.", "skip_connection.": "conv_shortcut.",
}  # fmt: skip


@dataclass(frozen=True)
class UNetLayout:
    """The properties of a UNet that determine the indices of its blocks in a CompVis file; levels start at the full resolution."""

    blocks: int  # residual blocks per level of the encoder
    attention: tuple[bool, ...]
    fused_qkv: bool  # self-attention blocks with a fused qkv tensor instead of transformer blocks
    resblock_resample: bool
    heads: tuple[int, ...]  # only used for fused tensors

    @staticmethod
    def of(config: UNetConfig) -> "UNetLayout":
        """The layout of a UNet with this config."""
        attention = tuple(depth > 0 for depth in config.depth)
        return UNetLayout(config.blocks, attention, config.context_width is None, config.resample == "resblock", config.heads)

    @staticmethod
    def infer(names: Collection[str]) -> "UNetLayout":
        """The layout of a CompVis file with these names. Names do not determine the heads, which are set to 1."""
        submodules: dict[int, set[str]] = {}
        for name in names:
            if found := re.match(r"output_blocks\.(\d+)\.(\d)\.", name):
                submodules.setdefault(int(found[1]), set()).add(found[2])
        modules = {".".join(name.split(".", 4)[:4]) for name in names}
        count = len(submodules)
        with_attention = {n for n in submodules if f"output_blocks.{n}.1.proj_out" in modules}
        # The last entry of a level has a further submodule after the residual block and the attention: the upsampler.
        last_entries = [n for n in range(count) if len(submodules.get(n, ())) > 1 + (n in with_attention)]
        entries_per_level = last_entries[0] + 1 if last_entries else count
        attention = tuple(n in with_attention for n in range(0, count, entries_per_level))[::-1]
        resblock_resample = any(f"output_blocks.{n}.{1 + (n in with_attention)}.in_layers" in modules for n in last_entries)
        fused_qkv = any(module.endswith(".qkv") for module in modules)
        return UNetLayout(entries_per_level - 1, attention, fused_qkv, resblock_resample, (1,) * len(attention))


def unet_rules(layout: UNetLayout) -> Iterator[Rule]:
    """CompVis UNet: input_blocks, middle_block and output_blocks are flat lists over all levels."""
    top = {"time_embed.0.": "time_embedding.linear_1.", "time_embed.2.": "time_embedding.linear_2.", "label_emb.": "class_embedding.",
           "label_emb.0.0.": "add_embedding.linear_1.", "label_emb.0.2.": "add_embedding.linear_2.", "input_blocks.0.0.": "conv_in.",
           "out.0.": "conv_norm_out.", "out.2.": "conv_out."}  # fmt: skip
    yield from (rule(original, canonical) for original, canonical in top.items())
    last = len(layout.attention) - 1
    for level, has_attention in enumerate(layout.attention):
        for side, blocks, first in (("down", layout.blocks, 1 + level * (layout.blocks + 1)),
                                    ("up", layout.blocks + 1, (last - level) * (layout.blocks + 1))):  # fmt: skip
            original = "input_blocks" if side == "down" else "output_blocks"
            canonical = f"{side}_blocks.{level if side == 'down' else last - level}"
            for j in range(blocks):
                yield from _resblock(f"{original}.{first + j}.0", f"{canonical}.resnets.{j}")
                if has_attention:
                    yield from _unet_attention(layout, f"{original}.{first + j}.1", f"{canonical}.attentions.{j}", layout.heads[level])
            # A downsampler has an entry of its own; an upsampler is the last submodule of the level's last entry.
            if level < last and side == "down":
                yield from _resampler(layout, f"{original}.{first + blocks}.0", "op", f"{canonical}.downsamplers.0")
            if level > 0 and side == "up":
                yield from _resampler(layout, f"{original}.{first + blocks - 1}.{1 + has_attention}", "conv", f"{canonical}.upsamplers.0")
    yield from _resblock("middle_block.0", "mid_block.resnets.0")
    yield from _unet_attention(layout, "middle_block.1", "mid_block.attentions.0", layout.heads[-1])
    yield from _resblock("middle_block.2", "mid_block.resnets.1")


def _resblock(original: str, canonical: str) -> Iterator[Rule]:
    yield from (rule(f"{original}.{old}", f"{canonical}.{new}") for old, new in RESBLOCK.items())


def _unet_attention(layout: UNetLayout, original: str, canonical: str, heads: int) -> Iterator[Rule]:
    if not layout.fused_qkv:
        yield rule(f"{original}.", f"{canonical}.")
        return
    yield rule(f"{original}.norm.", f"{canonical}.group_norm.")
    yield Rule(f"{original}.qkv.", tuple(f"{canonical}.to_{letter}." for letter in "qkv"), ones=1, heads=heads)
    yield rule(f"{original}.proj_out.", f"{canonical}.to_out.0.", ones=1)


def _resampler(layout: UNetLayout, original: str, conv: str, canonical: str) -> Iterator[Rule]:
    if layout.resblock_resample:
        yield from _resblock(original, canonical)
    else:
        yield rule(f"{original}.{conv}.", f"{canonical}.conv.")


def autoencoder_rules(levels: int, blocks: int) -> Iterator[Rule]:
    """KL and VQ autoencoders of CompVis and taming. Their decoder numbers levels from the full resolution, the canonical one from the
    latents.

    blocks: residual blocks per level of the decoder, one more than in the encoder.
    """
    yield from (rule(name, name) for name in ("quant_conv.", "post_quant_conv.", "quantize."))
    for tower, down, change in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        yield from (rule(f"{tower}.{name}.", f"{tower}.{name}.") for name in ("conv_in", "conv_out"))
        yield rule(f"{tower}.norm_out.", f"{tower}.conv_norm_out.")
        yield from _autoencoder_attention(f"{tower}.mid.attn_1", f"{tower}.mid_block.attentions.0")
        yield from _autoencoder_resblock(f"{tower}.mid.block_1", f"{tower}.mid_block.resnets.0")
        yield from _autoencoder_resblock(f"{tower}.mid.block_2", f"{tower}.mid_block.resnets.1")
        for level in range(levels):
            original = f"{tower}.{down}.{level}"
            canonical = f"{tower}.{down}_blocks.{level if tower == 'encoder' else levels - 1 - level}"
            yield rule(f"{original}.{change}.conv.", f"{canonical}.{change}rs.0.conv.")
            for j in range(blocks):
                yield from _autoencoder_resblock(f"{original}.block.{j}", f"{canonical}.resnets.{j}")
                yield from _autoencoder_attention(f"{original}.attn.{j}", f"{canonical}.attentions.{j}")


def _autoencoder_resblock(original: str, canonical: str) -> Iterator[Rule]:
    yield rule(f"{original}.", f"{canonical}.")
    yield rule(f"{original}.nin_shortcut.", f"{canonical}.conv_shortcut.")


def _autoencoder_attention(original: str, canonical: str) -> Iterator[Rule]:
    yield rule(f"{original}.norm.", f"{canonical}.group_norm.")
    yield from (rule(f"{original}.{letter}.", f"{canonical}.to_{letter}.", ones=2) for letter in "qkv")
    yield rule(f"{original}.proj_out.", f"{canonical}.to_out.0.", ones=2)


def folder_rules(names: Collection[str]) -> Iterator[Rule]:
    """Networks of a diffusers folder: names stay, except those of attention layers in folders from before 2023."""
    yield rule("", "")
    old = re.compile(rf"(.+\.attentions\.\d+\.)(?:{'|'.join(OLD_ATTENTION_NAMES)})\.")
    for layer in sorted({found[1] for name in names if (found := old.match(name))}):
        yield from (rule(f"{layer}{before}.", f"{layer}{after}.") for before, after in OLD_ATTENTION_NAMES.items())


def bare_clip_rules() -> Iterator[Rule]:
    """The CLIP text encoder of transformers without its outer module, as in some early files."""
    yield from (rule(name, f"text_model.{name}") for name in ("embeddings.", "encoder.", "final_layer_norm."))


def open_clip_rules(layers: int) -> Iterator[Rule]:
    """OpenCLIP's text encoder: q, k and v are fused, and the projection is transposed."""
    yield rule("positional_embedding", "text_model.embeddings.position_embedding.weight")
    yield rule("token_embedding.", "text_model.embeddings.token_embedding.")
    yield rule("ln_final.", "text_model.final_layer_norm.")
    yield Rule("text_projection", ("text_projection.weight",), transposed=True)
    for i in range(layers):
        original, canonical = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        yield Rule(f"{original}.attn.in_proj_", tuple(f"{canonical}.self_attn.{letter}_proj." for letter in "qkv"))
        for old, new in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                         ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):  # fmt: skip
            yield rule(f"{original}.{old}.", f"{canonical}.{new}.")


def ldm_text_rules(layers: int) -> Iterator[Rule]:
    """The text transformer that latent diffusion trained from scratch: attention and feed-forward layers alternate in one list."""
    top = {
        "token_emb.": "model.embed_tokens.",
        "pos_emb.emb.": "model.embed_positions.",
        "norm.": "model.layer_norm.",
        "to_logits.": "to_logits.",
    }
    yield from (rule(original, canonical) for original, canonical in top.items())
    for i in range(layers):
        attention, feed_forward, canonical = f"attn_layers.layers.{2 * i}", f"attn_layers.layers.{2 * i + 1}", f"model.layers.{i}"
        yield rule(f"{attention}.0.", f"{canonical}.self_attn_layer_norm.")
        yield from (rule(f"{attention}.1.to_{name}.", f"{canonical}.self_attn.{name}_proj.") for name in (*"qkv", "out"))
        yield rule(f"{feed_forward}.0.", f"{canonical}.final_layer_norm.")
        yield rule(f"{feed_forward}.1.net.0.0.", f"{canonical}.fc1.")
        yield rule(f"{feed_forward}.1.net.2.", f"{canonical}.fc2.")


def gpt_rules(layers: int) -> Iterator[Rule]:
    """The GPT of taming: only the names of attention layers differ."""
    yield from (rule(name, name) for name in ("tok_emb.", "pos_emb", "ln_f.", "head."))
    for i in range(layers):
        block = f"blocks.{i}"
        yield from (rule(f"{block}.{name}.", f"{block}.{name}.") for name in ("ln1", "ln2", "mlp"))
        yield from (rule(f"{block}.attn.{old}.", f"{block}.attn.{new}.") for old, new in
                    (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj", "to_out.0")))  # fmt: skip
