"""A codebook between encoder and decoder: every place of a latent becomes one of K vectors.

    k = argmin_j ‖z − e_j‖²,   L = ‖sg[z] − e_k‖² + β·‖z − sg[e_k]‖²,   ∂z_q/∂z = 1          (means over elements)

van den Oord et al. 2017, arXiv:1711.00937, eq. 1 to 3; the codebook as moving averages: appendix A.1 there; drawn codes with a relaxed
gradient: Jang et al. 2017, arXiv:1611.01144, and Ramesh et al. 2021, arXiv:2102.12092, section 2.1.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.errors import DaguerreError

DISTANCES = 1 << 24  # numbers held at once while the nearest codes are looked for
SMOOTHING = 1e-5  # of the counts, so that no average is divided by zero


@dataclass(frozen=True)
class QuantizerConfig:
    """kind: what moves the codebook: "nearest" the loss, "ema" the moving average of what falls to each code, "gumbel" the gradient
    of relaxed draws. loss: "legacy" puts β on the codebook's term instead of the encoder's, as the published models were trained.
    revive: codes that on average fewer places of a batch than this fall to are moved onto a random place's latent; 0 is never.
    """

    codes: int = 1024
    width: int = 256
    kind: Literal["nearest", "ema", "gumbel"] = "nearest"
    loss: Literal["paper", "legacy"] = "paper"
    beta: float = 0.25
    decay: float = 0.99  # of the averages, per batch
    dead_code_threshold: float = 0.0
    kl: float = 5e-4  # "gumbel": weight of the divergence from uniform codes

    def __post_init__(self) -> None:
        if self.codes < 1 or self.width < 1:
            raise DaguerreError(f"A codebook of {self.codes} codes of width {self.width} is empty; both must be 1 or more.")
        if self.kind == "gumbel" and self.dead_code_threshold:
            raise DaguerreError("A codebook of kind 'gumbel' has no distances, so no code can be revived; set revive to 0.")


class Quantized(NamedTuple):
    """z: the codes' vectors (B, D, h, w), through which gradients pass to the encoder; codes (B, h, w) int64; loss ()."""

    z: Tensor
    codes: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """The codebook with nearest neighbours. Works in float32 under autocast, too: half precision confuses near codes."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codes, config.width)
        nn.init.uniform_(self.embedding.weight, -1 / config.codes, 1 / config.codes)
        if config.dead_code_threshold or config.kind == "ema":
            # How many places of a batch fall to each code, on average; the start gives each some hundred batches before it is dead.
            self.embedding.register_buffer("cluster_size", torch.ones(config.codes))
        if config.kind == "ema":
            self.embedding.weight.requires_grad_(False)
            self.embedding.register_buffer("embed_avg", self.embedding.weight.detach().clone())

    def nearest(self, z: Tensor) -> Tensor:
        """The code nearest to each place of z (B, D, h, w): (B, h, w) int64; the first of equally near ones."""
        rows = z.detach().float().movedim(1, -1).flatten(0, -2)  # (N, D)
        e = self.embedding.weight.detach().float()
        bias = e.square().sum(dim=1)  # (K,); ‖z‖² is the same for every code
        parts = [torch.addmm(bias, part, e.t(), alpha=-2).argmin(dim=1) for part in rows.split(max(1, DISTANCES // len(e)))]
        return torch.cat(parts).unflatten(0, (z.shape[0], *z.shape[2:]))

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors (B, D, h, w) of codes (B, h, w). Raises DaguerreError for a code beyond the codebook."""
        return self.embedding(check_codes(codes, self.config.codes)).movedim(-1, 1)

    def forward(self, z: Tensor) -> Quantized:
        """z: (B, D, h, w). In training mode counts and averages move, too, after the codes were looked up."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            codes = self.nearest(z)  # (B, h, w)
            e = self.embedding(codes).movedim(-1, 1)  # (B, D, h, w)
            to_codes, to_encoder = F.mse_loss(e, z.detach()), F.mse_loss(z, e.detach())
            beta = self.config.beta
            loss = to_encoder + beta * to_codes if self.config.loss == "legacy" else to_codes + beta * to_encoder
            if self.config.kind == "ema":
                loss = beta * to_encoder
            if self.training:
                self._learn(z.detach(), codes)
            return Quantized(e.detach() + (z - z.detach()), codes, loss)  # exactly a code's vector; the bracket is zero with gradient one

    @torch.no_grad()
    def init_codebook_from(self, z: Tensor, draw: torch.Generator) -> None:
        """Put each code onto the latent of some place of z (B, D, h, w), so that none starts far from the encoder."""
        rows = z.float().movedim(1, -1).flatten(0, -2)  # (N, D)
        chosen = torch.randint(len(rows), (self.config.codes,), generator=draw)
        self.embedding.weight.copy_(_of_first_process(rows[chosen.to(rows.device)]))
        if self.config.kind == "ema":
            self.embedding.get_buffer("embed_avg").copy_(self.embedding.weight)

    @torch.no_grad()
    def _learn(self, z: Tensor, codes: Tensor) -> None:
        if not (self.config.dead_code_threshold or self.config.kind == "ema"):
            return
        rows, flat = z.movedim(1, -1).flatten(0, -2), codes.flatten()  # (N, D), (N,)
        K, decay, tables = self.config.codes, self.config.decay, [self.embedding.weight]
        counts = _over_processes(torch.bincount(flat, minlength=K).to(rows))  # (K,)
        size = self.embedding.get_buffer("cluster_size").lerp_(counts, 1 - decay)
        if self.config.kind == "ema":
            sums = _over_processes(torch.zeros_like(tables[0]).index_add_(0, flat, rows))  # (K, D)
            total = self.embedding.get_buffer("embed_avg").lerp_(sums, 1 - decay)
            smooth = (size + SMOOTHING) / (size.sum() + K * SMOOTHING) * size.sum()
            tables[0].copy_(total / smooth[:, None])
            tables.append(total)
        if self.config.dead_code_threshold:
            dead = size < self.config.dead_code_threshold  # (K,)
            found = _of_first_process(rows[torch.randint(len(rows), (K,)).to(rows.device)])  # (K, D)
            for table in tables:
                table[dead] = found[dead]
            size[dead] = 1.0


class GumbelQuantizer(nn.Module):
    """Codes drawn from a softmax over a projection, by Gumbel noise; gradients are those of the relaxed draw at `temperature`.

    Trained with noise, evaluated without: the likeliest code. Who trains it lowers the temperature, 1 to 1/16 in Ramesh et al.
    """

    temperature: float = 1.0

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Conv2d(config.width, config.codes, 1)
        self.embed = nn.Embedding(config.codes, config.width)

    def nearest(self, z: Tensor) -> Tensor:
        """The likeliest code of each place of z (B, D, h, w): (B, h, w) int64."""
        return self.proj(z).argmax(dim=1)

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors (B, D, h, w) of codes (B, h, w). Raises DaguerreError for a code beyond the codebook."""
        return self.embed(check_codes(codes, self.config.codes)).movedim(-1, 1)

    def forward(self, z: Tensor) -> Quantized:
        """z: (B, D, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            logits = self.proj(z.float())  # (B, K, h, w)
            log_q = logits.log_softmax(dim=1)
            loss = self.config.kl * (log_q.exp() * (log_q + torch.tensor(self.config.codes).log())).sum(dim=1).mean()
            if not self.training:
                codes = logits.argmax(dim=1)
                return Quantized(self.lookup(codes), codes, loss)
            drawn = F.gumbel_softmax(logits, self.temperature, hard=True, dim=1)  # (B, K, h, w), one-hot
            return Quantized(torch.einsum("bkhw,kd->bdhw", drawn, self.embed.weight), drawn.argmax(dim=1), loss)


def build_quantizer(config: QuantizerConfig) -> VectorQuantizer | GumbelQuantizer:
    """The module of a configuration."""
    return GumbelQuantizer(config) if config.kind == "gumbel" else VectorQuantizer(config)


class CodeUse(NamedTuple):
    """perplexity: e to the entropy of the codes' frequencies, 1 … K; share: of the codebook that occurs at all, 0 … 1."""

    perplexity: Tensor
    share: Tensor


def code_use(codes: Tensor, size: int) -> CodeUse:
    """How evenly codes (any shape) use a codebook of `size`."""
    counts = torch.bincount(codes.flatten(), minlength=size).double()
    return CodeUse(torch.special.entr(counts / counts.sum()).sum().exp(), (counts > 0).double().mean())


def check_codes(codes: Tensor, size: int) -> Tensor:
    """The same codes. Raises DaguerreError unless all of them lie in [0, size)."""
    if codes.numel() and (codes.min() < 0 or codes.max() >= size):
        raise DaguerreError(
            f"The codes run from {int(codes.min())} to {int(codes.max())}, but there are only {size}; they are another model's."
        )
    return codes


def _over_processes(value: Tensor) -> Tensor:
    """The sum over all processes that train together."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
    return value


def _of_first_process(value: Tensor) -> Tensor:
    """The first process's value, in all of them."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(value, 0)
    return value
