"""CLIP: two transformers that meet in one space (Radford et al. 2021, arXiv:2103.00020, section 2.4).

Every block is pre-norm:  h <- h + attention(norm1(h)),  h <- h + mlp(norm2(h)).  The text tower is causal and is read at the
end-of-text token, the vision tower sees all patches and is read at its class token. With unit vectors u (text) and v (picture)
the logits are  exp(logit_scale) u v^T.

Parameters carry the names of published checkpoints (`text_model.encoder.layers.0.self_attn.q_proj.weight`, the misspelt
`vision_model.pre_layrnorm` included), so a folder needs no table.
"""

from dataclasses import dataclass
from math import log
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.errors import DaguerreError

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True)
class CLIPTextConfig:
    """Shape of a text tower; the defaults are CLIP ViT-L/14's, which Stable Diffusion 1 reads.

    `projection` is the width of the common space, or None where the checkpoint has no projection. `eos` is the id at whose first
    occurrence the tower is pooled; a published `eos_token_id` of 2 is a known slip and means the last id of the vocabulary.
    """

    vocab_size: int = 49408
    length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: Activation = "quick_gelu"
    projection: int | None = None
    eps: float = 1e-5
    eos: int = 49407


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Shape of a vision tower; the defaults are CLIP ViT-L/14's. `size` and `patch` are in pixels."""

    size: int = 224
    patch: int = 14
    channels: int = 3
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    activation: Activation = "quick_gelu"
    projection: int | None = 768
    eps: float = 1e-5


@dataclass(frozen=True)
class CLIPConfig:
    """Both towers; `projection` of the two must be the same number."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig


CLIP_L = CLIPTextConfig()
OPENCLIP_H = CLIPTextConfig(width=1024, layers=24, heads=16, mlp_width=4096, activation="gelu", projection=1024)
OPENCLIP_BIGG = CLIPTextConfig(width=1280, layers=32, heads=20, mlp_width=5120, activation="gelu", projection=1280)


class TextStates(NamedTuple):
    """What a text tower knows of a batch of token rows."""

    hidden: tuple[Tensor, ...]  # layers + 1 times (B, L, D): the embeddings, then each block's output, none of them normed
    last: Tensor  # (B, L, D) after the final norm
    pooled: Tensor  # (B, D), `last` at the first end-of-text token
    projected: Tensor | None  # (B, P)


class VisionStates(NamedTuple):
    """What a vision tower knows of a batch of pictures."""

    hidden: tuple[Tensor, ...]  # layers + 1 times (B, 1 + N, D): the class token, then N patches row by row
    pooled: Tensor  # (B, D), the class token after the final norm
    projected: Tensor | None  # (B, P)


class CLIPOutput(NamedTuple):
    """Unit vectors of captions and pictures in the common space."""

    text: Tensor  # (B, P)
    image: Tensor  # (B', P)
    scale: Tensor  # (), the inverse temperature

    @property
    def logits(self) -> Tensor:
        """Scaled cosines, captions down and pictures across: (B, B')."""
        return self.scale * self.text @ self.image.T


class CLIPAttention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(width / heads)) v (Vaswani et al. 2017, arXiv:1706.03762, section 3.2)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, heads, L, D / heads)
        return self.out_proj(h.transpose(1, 2).flatten(2))  # (B, L, D)


class CLIPMLP(nn.Module):
    """Two linear layers around a GELU, or around x * sigmoid(1.702 x), with which the first CLIP models were trained."""

    def __init__(self, width: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.quick = activation == "quick_gelu"
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, h: Tensor) -> Tensor:
        h = self.fc1(h)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class CLIPBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, *, causal: bool) -> None:
        super().__init__()
        self.self_attn = CLIPAttention(config.width, config.heads, causal=causal)
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = CLIPMLP(config.width, config.mlp_width, config.activation)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.self_attn(self.layer_norm1(h))
        return h + self.mlp(self.layer_norm2(h))


class CLIPEncoder(nn.Module):
    """The stack of blocks, started as CLIP starts it: what enters the residual stream is smaller the deeper the stack."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, *, causal: bool) -> None:
        super().__init__()
        if config.width % config.heads:
            raise DaguerreError(f"A CLIP tower of width {config.width} cannot have {config.heads} heads; the heads must divide the width.")
        if config.activation not in ("quick_gelu", "gelu"):
            raise DaguerreError(f"CLIP has no activation {config.activation!r}; give 'quick_gelu' or 'gelu'.")
        self.layers = nn.ModuleList(CLIPBlock(config, causal=causal) for _ in range(config.layers))
        into_residual = (2 * config.width * config.layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("out_proj.weight", "fc2.weight")):
                nn.init.normal_(parameter, std=into_residual)
            elif name.endswith("fc1.weight"):
                nn.init.normal_(parameter, std=(2 * config.width) ** -0.5)
            elif name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=config.width**-0.5)

    def forward(self, h: Tensor) -> tuple[Tensor, ...]:
        hidden = [h]
        for layer in self.layers:
            hidden.append(layer(hidden[-1]))
        return tuple(hidden)


class TextEmbeddings(nn.Module):
    """The sum of a token's vector and its place's vector."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.length, config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]  # (B, L, D)


class TextTower(nn.Module):
    """Token ids to states, without the projection."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.length = config.length
        self.eos = config.eos
        self.embeddings = TextEmbeddings(config)
        self.encoder = CLIPEncoder(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, ids: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        if ids.shape[1] > self.length:
            raise DaguerreError(f"{ids.shape[1]} tokens are too many for a text tower of {self.length}; cut the prompt into chunks.")
        hidden = self.encoder(self.embeddings(ids))  # (B, L, D) each
        last = self.final_layer_norm(hidden[-1])  # (B, L, D)
        end = (ids == self.eos).int().argmax(1)  # (B,), the first one
        return hidden, last, last[torch.arange(len(ids), device=ids.device), end]


class VisionEmbeddings(nn.Module):
    """A class token before the patches, each with its place's vector."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.patch_embedding = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch, bias=False)
        self.position_embedding = nn.Embedding((config.size // config.patch) ** 2 + 1, config.width)
        nn.init.normal_(self.position_embedding.weight, std=config.width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)  # (B, N, D)
        h = torch.cat([self.class_embedding.expand(len(x), 1, -1), patches], dim=1)  # (B, 1 + N, D)
        return h + self.position_embedding.weight


class VisionTower(nn.Module):
    """Pictures to states, without the projection."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.shape = (config.channels, config.size, config.size)
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=config.eps)
        self.encoder = CLIPEncoder(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        if x.shape[1:] != self.shape:
            raise DaguerreError(f"This vision tower takes pictures of shape {self.shape}, not {tuple(x.shape[1:])}; resize them first.")
        hidden = self.encoder(self.pre_layrnorm(self.embeddings(x)))  # (B, 1 + N, D) each
        return hidden, self.post_layernorm(hidden[-1][:, 0])


class CLIPText(nn.Module):
    """The text tower, with its projection where the config names one."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTower(config)
        self.text_projection = None if config.projection is None else _projection(config.width, config.projection)

    def forward(self, ids: Tensor) -> TextStates:
        """Read token ids (B, L), L at most `config.length`, every row with begin and end tokens and padding.

        Raises:
            DaguerreError: if a row is longer than the tower has places for.
        """
        hidden, last, pooled = self.text_model(ids)
        return TextStates(hidden, last, pooled, None if self.text_projection is None else self.text_projection(pooled))


class CLIPVision(nn.Module):
    """The vision tower, with its projection where the config names one."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTower(config)
        self.visual_projection = None if config.projection is None else _projection(config.width, config.projection)

    def forward(self, x: Tensor) -> VisionStates:
        """Look at pictures (B, C, size, size), normalised as the tower was trained on.

        Raises:
            DaguerreError: if the pictures have another shape.
        """
        hidden, pooled = self.vision_model(x)
        return VisionStates(hidden, pooled, None if self.visual_projection is None else self.visual_projection(pooled))


class CLIP(nn.Module):
    """Both towers and the temperature between them, exp(logit_scale), which starts at 1 / 0.07."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        if config.text.projection is None or config.text.projection != config.vision.projection:
            raise DaguerreError(
                f"The towers project to {config.text.projection} and {config.vision.projection}; give both the same width to meet in."
            )
        self.config = config
        self.text_model = TextTower(config.text)
        self.text_projection = _projection(config.text.width, config.text.projection)
        self.vision_model = VisionTower(config.vision)
        self.visual_projection = _projection(config.vision.width, config.text.projection)
        self.logit_scale = nn.Parameter(torch.tensor(log(1 / 0.07)))

    @property
    def text(self) -> CLIPText:
        """The text half on its own, sharing this model's parameters."""
        with torch.device("meta"):
            half = CLIPText(self.config.text)
        half.text_model, half.text_projection = self.text_model, self.text_projection
        return half

    @property
    def vision(self) -> CLIPVision:
        """The vision half on its own, sharing this model's parameters."""
        with torch.device("meta"):
            half = CLIPVision(self.config.vision)
        half.vision_model, half.visual_projection = self.vision_model, self.visual_projection
        return half

    def embed_text(self, ids: Tensor) -> Tensor:
        """Unit vectors (B, P) of token ids (B, L)."""
        ends = (ids == self.text_model.eos).int().argmax(1)  # no state before the end sees what follows it
        return F.normalize(self.text_projection(self.text_model(ids[:, : int(ends.max()) + 1])[-1]), dim=-1)

    def embed_image(self, x: Tensor) -> Tensor:
        """Unit vectors (B, P) of pictures (B, C, size, size)."""
        return F.normalize(self.visual_projection(self.vision_model(x)[-1]), dim=-1)

    def forward(self, ids: Tensor, x: Tensor) -> CLIPOutput:
        """Embed token ids (B, L) and pictures (B', C, size, size); `.logits` of the result are the scaled cosines (B, B')."""
        return CLIPOutput(self.embed_text(ids), self.embed_image(x), self.logit_scale.exp())


def _projection(width: int, to: int) -> nn.Linear:
    """The bias-free map into the common space, started with variance 1 / width."""
    linear = nn.Linear(width, to, bias=False)
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear
