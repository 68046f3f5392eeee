"""CLIP: a text and a vision transformer with one embedding space (Radford et al. 2021, arXiv:2103.00020, section 2.4).

Every block is pre-norm:  h <- h + attention(norm1(h)),  h <- h + mlp(norm2(h)).  The text tower is causal and pooled at the end-of-text
token; the vision tower is pooled at its class token. With unit vectors u (text) and v (image) the logits are  exp(logit_scale) u v^T.

Parameters have the names of published checkpoints (`text_model.encoder.layers.0.self_attn.q_proj.weight`, including the misspelt
`vision_model.pre_layrnorm`), so loading needs no key map.
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
    """Shape of a text tower. Defaults: CLIP ViT-L/14, the text encoder of Stable Diffusion 1.

    `projection` is the width of the common space, or None if the checkpoint has no projection. The tower is pooled at the first `eos`
    token; a published `eos_token_id` of 2 is a known mistake and means the last id of the vocabulary.
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
    """Shape of a vision tower. Defaults: CLIP ViT-L/14. `size` and `patch` are in pixels."""

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
    """Both towers; they must have the same `projection`."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig


CLIP_L = CLIPTextConfig()
OPENCLIP_BIGG = CLIPTextConfig(width=1280, layers=32, heads=20, mlp_width=5120, activation="gelu", projection=1280)


class TextStates(NamedTuple):
    """The outputs of a text tower for token ids (B, L)."""

    hidden: tuple[Tensor, ...]  # layers + 1 times (B, L, D): the embeddings, then each block's output, without the final norm
    last: Tensor  # (B, L, D) after the final norm
    pooled: Tensor  # (B, D), `last` at the first end-of-text token
    projected: Tensor | None  # (B, P)


class VisionStates(NamedTuple):
    """The outputs of a vision tower for images (B, C, H, W)."""

    hidden: tuple[Tensor, ...]  # layers + 1 times (B, 1 + N, D): the class token, then N patches row by row
    pooled: Tensor  # (B, D), the class token after the final norm
    projected: Tensor | None  # (B, P)


class CLIPOutput(NamedTuple):
    """Unit vectors of captions and images in the common embedding space."""

    text: Tensor  # (B, P)
    image: Tensor  # (B', P)
    scale: Tensor  # (), the inverse temperature

    @property
    def logits(self) -> Tensor:
        """Scaled cosines (B, B'), one row per caption, one column per image."""
        return self.scale * self.text @ self.image.T


class CLIPAttention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    head_width: d, by default width / heads. bias: of the three input projections.
    """

    def __init__(self, width: int, heads: int, head_width: int | None = None, *, causal: bool, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        inner = width if head_width is None else heads * head_width
        self.q_proj = nn.Linear(width, inner, bias=bias)
        self.k_proj = nn.Linear(width, inner, bias=bias)
        self.v_proj = nn.Linear(width, inner, bias=bias)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, heads, L, d)
        return self.out_proj(h.transpose(1, 2).flatten(2))  # (B, L, D)


class CLIPMLP(nn.Module):
    """Two linear layers with a GELU between, or with x * sigmoid(1.702 x), the activation of the first CLIP models."""

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

    checkpointed = True

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
    """The stack of blocks with CLIP's initialisation: the deeper the stack, the smaller the weights of the residual branches."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, *, causal: bool) -> None:
        super().__init__()
        if config.width % config.heads:
            raise DaguerreError(
                f"A CLIP tower of width {config.width} cannot have {config.heads} heads; the width must be a multiple of the heads."
            )
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
    """Token embedding plus position embedding."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.length, config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]  # (B, L, D)


class TextTower(nn.Module):
    """Token ids to hidden states, without the projection."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.length = config.length
        self.eos = config.eos
        self.embeddings = TextEmbeddings(config)
        self.encoder = CLIPEncoder(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, ids: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        if ids.shape[1] > self.length:
            raise DaguerreError(
                f"The prompt has {ids.shape[1]} tokens; this text tower takes at most {self.length}. Split the prompt into chunks."
            )
        hidden = self.encoder(self.embeddings(ids))  # (B, L, D) each
        last = self.final_layer_norm(hidden[-1])  # (B, L, D)
        end = (ids == self.eos).int().argmax(1)  # (B,), the first one
        return hidden, last, last[torch.arange(len(ids), device=ids.device), end]


class VisionEmbeddings(nn.Module):
    """A class token, then the patches, each with its position embedding."""

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
    """Images to hidden states, without the projection."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.shape = (config.channels, config.size, config.size)
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=config.eps)
        self.encoder = CLIPEncoder(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        if x.shape[1:] != self.shape:
            raise DaguerreError(f"This vision tower takes images of shape {self.shape}, not {tuple(x.shape[1:])}; resize them first.")
        hidden = self.encoder(self.pre_layrnorm(self.embeddings(x)))  # (B, 1 + N, D) each
        return hidden, self.post_layernorm(hidden[-1][:, 0])


class CLIPText(nn.Module):
    """The text tower, with a projection if the config has one."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTower(config)
        self.text_projection = None if config.projection is None else _projection(config.width, config.projection)

    def forward(self, ids: Tensor) -> TextStates:
        """Encode token ids (B, L), L ≤ `config.length`, with begin and end tokens and padding.

        Raises:
            DaguerreError: L is larger.
        """
        hidden, last, pooled = self.text_model(ids)
        return TextStates(hidden, last, pooled, None if self.text_projection is None else self.text_projection(pooled))


class CLIPVision(nn.Module):
    """The vision tower, with a projection if the config has one."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTower(config)
        self.visual_projection = None if config.projection is None else _projection(config.width, config.projection)

    def forward(self, x: Tensor) -> VisionStates:
        """Encode images (B, C, size, size), normalised as in training.

        Raises:
            DaguerreError: the images have another shape.
        """
        hidden, pooled = self.vision_model(x)
        return VisionStates(hidden, pooled, None if self.visual_projection is None else self.visual_projection(pooled))


class CLIP(nn.Module):
    """Both towers and the logit scale exp(logit_scale), initially 1 / 0.07."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        if config.text.projection is None or config.text.projection != config.vision.projection:
            raise DaguerreError(f"The towers project to {config.text.projection} and {config.vision.projection}; give both the same width.")
        self.config = config
        self.text_model = TextTower(config.text)
        self.text_projection = _projection(config.text.width, config.text.projection)
        self.vision_model = VisionTower(config.vision)
        self.visual_projection = _projection(config.vision.width, config.text.projection)
        self.logit_scale = nn.Parameter(torch.tensor(log(1 / 0.07)))

    @property
    def text(self) -> CLIPText:
        """The text tower as a module that shares this model's parameters."""
        with torch.device("meta"):
            tower = CLIPText(self.config.text)
        tower.text_model, tower.text_projection = self.text_model, self.text_projection
        return tower

    @property
    def vision(self) -> CLIPVision:
        """The vision tower as a module that shares this model's parameters."""
        with torch.device("meta"):
            tower = CLIPVision(self.config.vision)
        tower.vision_model, tower.visual_projection = self.vision_model, self.visual_projection
        return tower

    def embed_text(self, ids: Tensor) -> Tensor:
        """Unit vectors (B, P) of token ids (B, L)."""
        ends = (ids == self.text_model.eos).int().argmax(1)  # the tower is causal, so tokens after the last end token do not matter
        return F.normalize(self.text_projection(self.text_model(ids[:, : int(ends.max()) + 1])[-1]), dim=-1)

    def embed_image(self, x: Tensor) -> Tensor:
        """Unit vectors (B, P) of images (B, C, size, size)."""
        return F.normalize(self.visual_projection(self.vision_model(x)[-1]), dim=-1)

    def forward(self, ids: Tensor, x: Tensor) -> CLIPOutput:
        """Embed token ids (B, L) and images (B', C, size, size); `.logits` of the result are the scaled cosines (B, B')."""
        return CLIPOutput(self.embed_text(ids), self.embed_image(x), self.logit_scale.exp())


def _projection(width: int, to: int) -> nn.Linear:
    """A bias-free projection into the common space with initial variance 1 / width."""
    linear = nn.Linear(width, to, bias=False)
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear
