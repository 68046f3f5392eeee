"""Names of published single files and ours: invertible tables, generated from small templates.

Our names are those of the field's folder layout, so a folder needs no table. A single file of CompVis, Stability or OpenCLIP names
the same tensors after the code that trained them; a `Rule` pairs two prefixes, and a `Table` turns whole dictionaries either way.
Tensors are only sliced, joined, transposed or reshaped, never computed with: the way back gives the same bytes.

UNet: openaimodel.py of latent-diffusion; autoencoder: model.py of taming-transformers; OpenCLIP: transformer.py of open_clip;
text transformer of LDM: x-transformers. `keys_parts.py` says where in a file each network lies.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from daguerre.models.unet import UNetConfig


class Rule(NamedTuple):
    """One published prefix and ours; what follows the prefix is the same in both. Several of ours are fused in one of theirs.

    ones: trailing dimensions of size 1 that their weight has and ours lacks (1×1 convolutions that are linear layers here).
    transposed: theirs is x·W, ours W·x. heads: in a fused tensor, how many times (q, k, v) of one head follow each other.
    """

    original: str
    canonical: tuple[str, ...]
    ones: int = 0
    transposed: bool = False
    heads: int = 1

    def split(self, tensor: Tensor) -> Sequence[Tensor]:
        """Their tensor as ours, in the order of `ours`; views of it where the order of rows allows.

        Raises:
            ValueError: it has another shape than such a tensor can have.
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
        """Our tensors as their one."""
        tensor = tensors[0]
        if len(tensors) > 1:
            tensor = torch.stack([part.unflatten(0, (self.heads, -1)) for part in tensors], dim=1).flatten(0, 2)
        if self.transposed:
            return tensor.t().contiguous()
        return tensor[(..., *(None,) * self.ones)] if self.ones and tensor.ndim == 2 else tensor


def rule(theirs: str, ours: str, ones: int = 0) -> Rule:
    """A rule for one prefix each."""
    return Rule(theirs, (ours,), ones)


class KeyTable:
    """Rules, looked up by the longest prefix that ends a dotted or underscored part of a name."""

    def __init__(self, rules: Iterable[Rule]):
        self.rules = tuple(rules)
        self._by_theirs = {rule.original: rule for rule in self.rules}
        self._by_ours = {prefix: (rule, place) for rule in self.rules for place, prefix in enumerate(rule.canonical)}
        if len(self._by_theirs) != len(self.rules) or len(self._by_ours) != sum(len(rule.canonical) for rule in self.rules):
            raise ValueError("a table of names must be invertible")
        self._lengths_of_theirs, self._lengths_of_ours = (sorted({*map(len, by)}, reverse=True) for by in (self._by_theirs, self._by_ours))

    def to_canonical(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Tensors under their names to tensors under ours, and their names that no rule covers or whose shape does not allow it."""
        ours, unmatched = {}, []
        for name, tensor in tensors.items():
            prefix = _longest(name, self._by_theirs, self._lengths_of_theirs)
            if prefix is None:
                unmatched.append(name)
                continue
            found = self._by_theirs[prefix]
            try:
                ours.update(zip((o + name[len(prefix) :] for o in found.canonical), found.split(tensor), strict=True))
            except ValueError:
                unmatched.append(name)
        return ours, unmatched

    def to_original(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Tensors under our names to tensors under theirs, and our names that no rule covers (or only a part of a fused tensor)."""
        slots: dict[str, tuple[Rule, dict[int, str]]] = {}
        unmatched = []
        for name in tensors:
            prefix = _longest(name, self._by_ours, self._lengths_of_ours)
            if prefix is None:
                unmatched.append(name)
                continue
            found, place = self._by_ours[prefix]
            slots.setdefault(found.original + name[len(prefix) :], (found, {}))[1][place] = name
        theirs = {}
        for target, (found, names) in slots.items():
            if len(names) == len(found.canonical):
                theirs[target] = found.join([tensors[names[place]] for place in range(len(names))])
            else:
                unmatched += names.values()
        return theirs, unmatched


def _longest(name: str, prefixes: Collection[str], lengths: Iterable[int]) -> str | None:
    """The longest prefix that is the name or ends a part of it. lengths: of the prefixes, the longest first."""
    for length in lengths:
        ends = length in (0, len(name)) or (length < len(name) and name[length - 1] in "._")
        if ends and name[:length] in prefixes:
            return name[:length]
    return None


RESBLOCK = {
    "in_layers.0.": "norm1.", "in_layers.2.": "conv1.", "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.", "out_layers.3.": "conv2.", "skip_connection.": "conv_shortcut.",
}  # fmt: skip


@dataclass(frozen=True)
class UNetLayout:
    """What decides where a UNet's blocks stand in a CompVis list; per level from the full resolution down."""

    blocks: int  # residual blocks a level on the way down
    attention: tuple[bool, ...]
    plain: bool  # self-attention blocks with a fused qkv instead of transformers
    resblock_resample: bool
    heads: tuple[int, ...]  # only fused tensors ask for them

    @staticmethod
    def of(config: UNetConfig) -> "UNetLayout":
        """The layout of a network of ours."""
        attention = tuple(depth > 0 for depth in config.depth)
        return UNetLayout(config.blocks, attention, config.context_width is None, config.resample == "resblock", config.heads)

    @staticmethod
    def found(names: Collection[str]) -> "UNetLayout":
        """The layout of a CompVis list of names. Heads leave no trace in names; they are set to 1."""
        submodules: dict[int, set[str]] = {}
        for name in names:
            if found := re.match(r"output_blocks\.(\d+)\.(\d)\.", name):
                submodules.setdefault(int(found[1]), set()).add(found[2])
        places = {".".join(name.split(".", 4)[:4]) for name in names}
        count = len(submodules)
        attended = {n for n in submodules if f"output_blocks.{n}.1.proj_out" in places}
        # A level ends where something follows the residual block and its attention; it enlarges the picture.
        ends = [n for n in range(count) if len(submodules.get(n, ())) > 1 + (n in attended)]
        each = ends[0] + 1 if ends else count
        levels = [n in attended for n in range(0, count, each)][::-1]
        resblocks = any(f"output_blocks.{n}.{1 + (n in attended)}.in_layers" in places for n in ends)
        plain = any(place.endswith(".qkv") for place in places)
        return UNetLayout(each - 1, tuple(levels), plain, resblocks, (1,) * len(levels))


def unet_rules(layout: UNetLayout) -> Iterator[Rule]:
    """CompVis' UNet: input_blocks, middle_block and output_blocks are flat lists over all levels."""
    top = {"time_embed.0.": "time_embedding.linear_1.", "time_embed.2.": "time_embedding.linear_2.", "label_emb.": "class_embedding.",
           "label_emb.0.0.": "add_embedding.linear_1.", "label_emb.0.2.": "add_embedding.linear_2.", "input_blocks.0.0.": "conv_in.",
           "out.0.": "conv_norm_out.", "out.2.": "conv_out."}  # fmt: skip
    yield from (rule(theirs, ours) for theirs, ours in top.items())

    def resblock(theirs: str, ours: str) -> Iterator[Rule]:
        yield from (rule(f"{theirs}.{t}", f"{ours}.{o}") for t, o in RESBLOCK.items())

    def attention(theirs: str, ours: str, heads: int) -> Iterator[Rule]:
        if not layout.plain:
            yield rule(f"{theirs}.", f"{ours}.")
            return
        yield rule(f"{theirs}.norm.", f"{ours}.group_norm.")
        yield Rule(f"{theirs}.qkv.", tuple(f"{ours}.to_{letter}." for letter in "qkv"), ones=1, heads=heads)
        yield rule(f"{theirs}.proj_out.", f"{ours}.to_out.0.", ones=1)

    last = len(layout.attention) - 1
    for level, attended in enumerate(layout.attention):
        for side, blocks, first in (("down", layout.blocks, 1 + level * (layout.blocks + 1)),
                                    ("up", layout.blocks + 1, (last - level) * (layout.blocks + 1))):  # fmt: skip
            theirs = "input_blocks" if side == "down" else "output_blocks"
            ours = f"{side}_blocks.{level if side == 'down' else last - level}"
            for j in range(blocks):
                yield from resblock(f"{theirs}.{first + j}.0", f"{ours}.resnets.{j}")
                if attended:
                    yield from attention(f"{theirs}.{first + j}.1", f"{ours}.attentions.{j}", layout.heads[level])
            # The sampler is an entry of its own on the way down, and the last part of the level's last entry on the way up.
            if level < last and side == "down":
                yield from _resampler(layout, resblock, f"{theirs}.{first + blocks}.0", "op", f"{ours}.downsamplers.0")
            if level > 0 and side == "up":
                yield from _resampler(layout, resblock, f"{theirs}.{first + blocks - 1}.{1 + attended}", "conv", f"{ours}.upsamplers.0")
    yield from resblock("middle_block.0", "mid_block.resnets.0")
    yield from attention("middle_block.1", "mid_block.attentions.0", layout.heads[-1])
    yield from resblock("middle_block.2", "mid_block.resnets.1")


def _resampler(layout: UNetLayout, resblock: Callable[[str, str], Iterator[Rule]], theirs: str, leaf: str, ours: str) -> Iterator[Rule]:
    if layout.resblock_resample:
        yield from resblock(theirs, ours)
    else:
        yield rule(f"{theirs}.{leaf}.", f"{ours}.conv.")


def autoencoder_rules(levels: int, blocks: int) -> Iterator[Rule]:
    """CompVis' and taming's encoder and decoder, KL or VQ. Their decoder counts levels from the full resolution, ours from the latent.

    blocks: residual blocks of a decoder's level, one more than of an encoder's.
    """
    yield from (rule(name, name) for name in ("quant_conv.", "post_quant_conv.", "quantize."))
    for tower, down, change in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        yield from (rule(f"{tower}.{name}.", f"{tower}.{name}.") for name in ("conv_in", "conv_out"))
        yield rule(f"{tower}.norm_out.", f"{tower}.conv_norm_out.")
        yield from _autoencoder_attention(f"{tower}.mid.attn_1", f"{tower}.mid_block.attentions.0")
        yield from _autoencoder_resblock(f"{tower}.mid.block_1", f"{tower}.mid_block.resnets.0")
        yield from _autoencoder_resblock(f"{tower}.mid.block_2", f"{tower}.mid_block.resnets.1")
        for level in range(levels):
            theirs = f"{tower}.{down}.{level}"
            ours = f"{tower}.{down}_blocks.{level if tower == 'encoder' else levels - 1 - level}"
            yield rule(f"{theirs}.{change}.conv.", f"{ours}.{change}rs.0.conv.")
            for j in range(blocks):
                yield from _autoencoder_resblock(f"{theirs}.block.{j}", f"{ours}.resnets.{j}")
                yield from _autoencoder_attention(f"{theirs}.attn.{j}", f"{ours}.attentions.{j}")


def _autoencoder_resblock(theirs: str, ours: str) -> Iterator[Rule]:
    yield rule(f"{theirs}.", f"{ours}.")
    yield rule(f"{theirs}.nin_shortcut.", f"{ours}.conv_shortcut.")


def _autoencoder_attention(theirs: str, ours: str) -> Iterator[Rule]:
    yield rule(f"{theirs}.norm.", f"{ours}.group_norm.")
    yield from (rule(f"{theirs}.{letter}.", f"{ours}.to_{letter}.", ones=2) for letter in "qkv")
    yield rule(f"{theirs}.proj_out.", f"{ours}.to_out.0.", ones=2)


def old_autoencoder_rules(levels: int, blocks: int) -> Iterator[Rule]:
    """The folder layout before 2023: attention in the autoencoder was named query, key, value, proj_attn."""
    yield rule("", "")
    places = [f"{tower}.mid_block.attentions.0" for tower in ("encoder", "decoder")]
    places += [f"{side}_blocks.{i}.attentions.{j}" for side in ("encoder.down", "decoder.up") for i in range(levels) for j in range(blocks)]
    for place in places:
        for theirs, ours in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
            yield rule(f"{place}.{theirs}.", f"{place}.{ours}.")


def folder_unet_rules(names: Collection[str]) -> Iterator[Rule]:
    """A folder's UNet, whose plain attention has the autoencoder's old names where it is from before 2023."""
    yield rule("", "")
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    found = {match[1] for name in names if (match := re.match(r"(.+\.attentions\.\d+\.)(query|key|value|proj_attn)\.", name))}
    yield from (rule(f"{place}{theirs}.", f"{place}{ours}.") for place in sorted(found) for theirs, ours in old.items())


def bare_clip_rules() -> Iterator[Rule]:
    """transformers' CLIP text tower as some early files have it, without its outer level."""
    yield from (rule(name, f"text_model.{name}") for name in ("embeddings.", "encoder.", "final_layer_norm."))


def open_clip_rules(layers: int) -> Iterator[Rule]:
    """OpenCLIP's text tower: q, k and v fused, the projection transposed."""
    yield rule("positional_embedding", "text_model.embeddings.position_embedding.weight")
    yield rule("token_embedding.", "text_model.embeddings.token_embedding.")
    yield rule("ln_final.", "text_model.final_layer_norm.")
    yield Rule("text_projection", ("text_projection.weight",), transposed=True)
    for i in range(layers):
        theirs, ours = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        yield Rule(f"{theirs}.attn.in_proj_", tuple(f"{ours}.self_attn.{letter}_proj." for letter in "qkv"))
        for t, o in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                     ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):  # fmt: skip
            yield rule(f"{theirs}.{t}.", f"{ours}.{o}.")


def ldm_text_rules(layers: int) -> Iterator[Rule]:
    """The text transformer that LDM trained from scratch: attention and feed-forward take turns in one list."""
    top = {
        "token_emb.": "model.embed_tokens.",
        "pos_emb.emb.": "model.embed_positions.",
        "norm.": "model.layer_norm.",
        "to_logits.": "to_logits.",
    }
    yield from (rule(theirs, ours) for theirs, ours in top.items())
    for i in range(layers):
        attention, forward, ours = f"attn_layers.layers.{2 * i}", f"attn_layers.layers.{2 * i + 1}", f"model.layers.{i}"
        yield rule(f"{attention}.0.", f"{ours}.self_attn_layer_norm.")
        yield from (rule(f"{attention}.1.to_{name}.", f"{ours}.self_attn.{name}_proj.") for name in (*"qkv", "out"))
        yield rule(f"{forward}.0.", f"{ours}.final_layer_norm.")
        yield rule(f"{forward}.1.net.0.0.", f"{ours}.fc1.")
        yield rule(f"{forward}.1.net.2.", f"{ours}.fc2.")


def gpt_rules(layers: int) -> Iterator[Rule]:
    """taming's GPT: its names are kept but for attention, which is called here as everywhere else in this package."""
    yield from (rule(name, name) for name in ("tok_emb.", "pos_emb", "ln_f.", "head."))
    for i in range(layers):
        block = f"blocks.{i}"
        yield from (rule(f"{block}.{name}.", f"{block}.{name}.") for name in ("ln1", "ln2", "mlp"))
        yield from (rule(f"{block}.attn.{t}.", f"{block}.attn.{o}.") for t, o in
                    (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj", "to_out.0")))  # fmt: skip
