"""The text encoder of the first text-to-image latent diffusion model, trained with it: pre-norm, bidirectional attention.

    h <- h + attention(norm(h)),   h <- h + W₂ GELU(W₁ norm(h))

(Rombach et al. 2022, arXiv:2112.10752, section 4.3.1 and appendix E.2.1; after x-transformers.) The layout-to-image models
use the same network on bounding-box tokens. Parameters have the names of diffusers' `LDMBertModel`, whose logits diffusion does not use.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIPAttention


@dataclass(frozen=True)
class LDMBertConfig:
    """Shape of the tower. Defaults: the 1.4 billion parameter model. The width need not be a multiple of the heads."""

    vocab_size: int = 30522
    length: int = 77
    width: int = 1280
    layers: int = 32
    heads: int = 8
    head_width: int = 64
    mlp_width: int = 5120


class LDMBertBlock(nn.Module):
    """One pre-norm transformer block."""

    checkpointed = True

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.self_attn = CLIPAttention(config.width, config.heads, config.head_width, causal=False, bias=False)
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.self_attn(self.self_attn_layer_norm(h))
        return h + self.fc2(F.gelu(self.fc1(self.final_layer_norm(h))))


class LDMBertTower(nn.Module):
    """Token ids to hidden states."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.embed_positions = nn.Embedding(config.length, config.width)
        self.layers = nn.ModuleList(LDMBertBlock(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.width)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed_tokens(ids) + self.embed_positions.weight[: ids.shape[1]]  # (B, L, D)
        for layer in self.layers:
            h = layer(h)
        return self.layer_norm(h)


class LDMBert(nn.Module):
    """The tower, and the published logits layer, which diffusion does not use."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LDMBertTower(config)
        self.to_logits = nn.Linear(config.width, config.vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states (B, L, D) of token ids (B, L), L ≤ `config.length`.

        Raises:
            DaguerreError: L is larger.
        """
        if ids.shape[1] > self.config.length:
            raise DaguerreError(
                f"The prompt has {ids.shape[1]} tokens; this text tower takes at most {self.config.length}. Shorten the prompt."
            )
        return self.model(ids)
