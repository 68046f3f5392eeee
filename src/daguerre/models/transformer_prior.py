"""A decoder-only transformer over codes: first the condition tokens, then the grid in raster order.

    h ← h + attention(norm(h)),   h ← h + W₂ GELU(W₁ norm(h)),   p(c_i | c_<i, s) = softmax(W norm(h_i))

Radford et al. 2019 (GPT-2), over the codes of a first stage: Esser et al. 2021, arXiv:2012.09841, section 3.2. Images larger than the
training size are sampled with a sliding window (same section, "Generating High-Resolution Images"). Parameters have the published
names, except in attention, which has this package's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import DEFAULT_SAMPLING, CodePrior, Sampling, init_grid, probabilities, sample_codes
from daguerre.models.vector_quantizer import check_codes
from daguerre.nn.attention import Attention


@dataclass(frozen=True)
class TransformerPriorConfig:
    """codes: codebook size of the first stage. condition_codes: number of separate tokens for the condition (classes, text, another
    model's codes), after the image codes in the vocabulary; 0 shares the image codes, as the published models do. length: maximum number
    of condition and image tokens. grid: (rows, columns) of codes in training, the size of the sliding window.
    """

    codes: int = 1024
    condition_codes: int = 0
    length: int = 512
    grid: tuple[int, int] = (16, 16)
    width: int = 1024
    layers: int = 24
    heads: int = 16
    dropout: float = 0.0


class KVCache:
    """The keys and values of the tokens read so far, for every layer."""

    def __init__(self) -> None:
        self.length = 0
        self._states: list[tuple[Tensor, Tensor]] = []

    def extend(self, layer: int, k: Tensor, v: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values (B, heads, L, d) and return those of all tokens. `capacity`: maximum number of tokens."""
        if layer == len(self._states):
            empty = k.new_empty(*k.shape[:2], capacity, k.shape[3])
            self._states.append((empty, torch.empty_like(empty)))
        keys, values = self._states[layer]
        end = self.length + k.shape[2]
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        return keys[:, :, :end], values[:, :, :end]


class CausalAttention(Attention):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, bias=True)
        self.dropout = dropout

    def forward(self, x: Tensor, context: Tensor | None = None, cache: KVCache | None = None, layer: int = 0, capacity: int = 0) -> Tensor:
        """x: (B, L, C), the tokens after those in the cache. `context` is unused. Returns (B, L, C)."""
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.to_q, self.to_k, self.to_v))  # (B, heads, L, d)
        if cache is not None:
            k, v = cache.extend(layer, k, v, capacity)  # (B, heads, M, d)
        L, M = q.shape[2], k.shape[2]
        mask = torch.ones(L, M, dtype=torch.bool, device=x.device).tril(M - L) if 1 < L < M else None
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=L == M > 1)  # (B, heads, L, d)
        return self.to_out(y.transpose(1, 2).flatten(2))  # (B, L, C)


class PriorBlock(nn.Module):
    """One pre-norm transformer block."""

    checkpointed = True

    def __init__(self, config: TransformerPriorConfig) -> None:
        super().__init__()
        C = config.width
        self.ln1 = nn.LayerNorm(C)
        self.attn = CausalAttention(C, config.heads, config.dropout)
        self.ln2 = nn.LayerNorm(C)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))
        self.drop = nn.Dropout(config.dropout)

    def forward(self, h: Tensor, cache: KVCache | None, layer: int, capacity: int) -> Tensor:
        h = h + self.drop(self.attn(self.ln1(h), cache=cache, layer=layer, capacity=capacity))
        return h + self.drop(self.mlp(self.ln2(h)))


class TransformerPrior(CodePrior):
    """A prior over grids of codes, conditioned on tokens (B, P) or on a grid of tokens (B, h, w); without, on token 0."""

    def __init__(self, config: TransformerPriorConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.codes + config.condition_codes, config.width)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.length, config.width))
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(PriorBlock(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.codes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def read(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, L, K) of the code after each of the tokens ids (B, L). They continue those in the cache and are added to it.

        Raises:
            DaguerreError: there are more than `config.length` tokens.
        """
        start = 0 if cache is None else cache.length
        end = start + ids.shape[1]
        if end > self.config.length:
            raise DaguerreError(
                f"Condition and image have {end} tokens; this prior takes at most {self.config.length}. Shorten the condition."
            )
        h = self.drop(self.tok_emb(ids) + self.pos_emb[:, start:end])  # (B, L, C)
        for layer, block in enumerate(self.blocks):
            h = block(h, cache, layer, self.config.length)
        if cache is not None:
            cache.length = end
        return self.head(self.ln_f(h))

    def prefix(self, condition: Tensor | None, batch: int) -> Tensor:
        """The condition as tokens (B, P), offset by the number of image codes if the vocabulary is not shared.

        Raises:
            DaguerreError: a token is not in the vocabulary, or the batch size differs.
        """
        own = self.config.condition_codes
        if condition is None:
            condition = torch.zeros(batch, 1, dtype=torch.long, device=self.pos_emb.device)
        if len(condition) != batch:
            raise DaguerreError(f"There are {len(condition)} conditions for {batch} images; give one per image.")
        return check_codes(condition.flatten(1), own or self.config.codes) + (self.config.codes if own else 0)

    def forward(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits (B, h, w, K) for each position of codes (B, h, w), given the condition and the codes before it."""
        prefix = self.prefix(condition, len(codes))  # (B, P)
        ids = torch.cat([prefix, check_codes(codes, self.config.codes).flatten(1)[:, :-1]], dim=1)  # (B, P + hw − 1)
        return self.read(ids)[:, prefix.shape[1] - 1 :].unflatten(1, codes.shape[1:])

    @torch.no_grad()
    def sample(
        self,
        grid: tuple[int, int],
        uniforms: Tensor,
        condition: Tensor | None = None,
        sampling: Sampling = DEFAULT_SAMPLING,
        prefix_rows: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Sample grids (B, h, w) of at least the window's size; arguments and result as in `CodePrior.sample`.

        condition: tokens (B, P) are the same for every window; a grid (B, h, w) of the image's size is cropped to each window. As long as
        the window does not move, the key-value cache makes each code cost one token.

        Raises:
            DaguerreError: the grid is smaller than the window, or an argument does not fit it.
        """
        (h, w), (wh, ww) = grid, self.config.grid
        if h < wh or w < ww:
            raise DaguerreError(f"A grid of {h}×{w} codes is smaller than this prior's {wh}×{ww}; sample those and crop.")
        if condition is not None and condition.ndim == 3 and condition.shape[1:] != grid and grid != self.config.grid:
            raise DaguerreError(
                f"The condition map has {condition.shape[1]}×{condition.shape[2]} codes and the image {h}×{w}; "
                "for images larger than the training size they must be equal."
            )
        codes, first = init_grid(grid, uniforms, prefix_rows)
        cache, corner, read = KVCache(), None, 0  # corner of the window, and how many of its codes are in the cache
        for i in range(first, h):
            for j in range(w):
                here, position = window_corner(i, j, grid, self.config.grid)
                if here != corner or position != read + 1:
                    cache, corner = KVCache(), here
                    prefix = self.prefix(crop_condition(condition, here, (wh, ww), grid), len(codes))  # (B, P)
                    ids = torch.cat([prefix, self._window(codes, here)[:, :position]], dim=1)  # (B, P + position)
                else:
                    ids = self._window(codes, here)[:, position - 1 : position]  # (B, 1)
                read = position
                p = probabilities(self.read(ids, cache)[:, -1], sampling)  # (B, K)
                codes[:, i, j] = sample_codes(p, uniforms[:, i * w + j])
            yield codes.clone()

    def _window(self, codes: Tensor, corner: tuple[int, int]) -> Tensor:
        """The codes in the window at `corner`, in raster order: (B, window)."""
        (i, j), (wh, ww) = corner, self.config.grid
        return codes[:, i : i + wh, j : j + ww].flatten(1)


def crop_condition(condition: Tensor | None, corner: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]) -> Tensor | None:
    """The condition of the window at `corner`: a crop of a grid (B, h, w) of the image's size, or any other condition unchanged."""
    if condition is None or condition.ndim != 3 or tuple(condition.shape[1:]) != grid:
        return condition
    return condition[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]


def window_corner(i: int, j: int, grid: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """The window for sampling the code at row i, column j: its corner, and the code's raster position in it.

    The window is centred on the code and clipped to the image.
    """
    corner = tuple(min(max(at - side // 2, 0), full - side) for at, full, side in zip((i, j), grid, size, strict=True))
    return (corner[0], corner[1]), (i - corner[0]) * size[1] + j - corner[1]


def coordinate_codes(height: int, width: int, *, codes: int = 1024, downsample_factor: int = 16) -> Tensor:
    """The position of each code in its image as a condition code, (1, h, w), for images that are not spatially uniform.

    Pixels are numbered in raster order from 0 to 1 and averaged over each patch (Esser et al. 2021, section 4.3).
    """
    positions = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width) / (height * width)
    return (F.avg_pool2d(positions, downsample_factor)[:, 0] * codes).round().long()
