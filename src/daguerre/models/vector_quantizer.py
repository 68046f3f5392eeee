"""A codebook between encoder and decoder: each latent vector is replaced by one of K code vectors.

    k = argmin_j ‖z − e_j‖²,   L = ‖sg[z] − e_k‖² + β·‖z − sg[e_k]‖²,   ∂z_q/∂z = 1          (means over elements)

van den Oord et al. 2017, arXiv:1711.00937, eq. 1 to 3; codebook as moving averages (EMA): its appendix A.1; sampled codes with a relaxed
gradient (Gumbel-softmax): Jang et al. 2017, arXiv:1611.01144, and Ramesh et al. 2021, arXiv:2102.12092, section 2.1.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.errors import DaguerreError

MAX_DISTANCES = 1 << 24  # distances in memory at once during the nearest-code search
SMOOTHING = 1e-5  # Laplace smoothing of the counts, so that no average is divided by zero


@dataclass(frozen=True)
class QuantizerConfig:
    """kind: how the codebook learns: "nearest" by the loss, "ema" by moving averages of the latents of each code, "gumbel" by
    Gumbel-softmax. loss: "legacy" puts β on the codebook term instead of the commitment term, as in the published models.
    dead_code_threshold: codes with a smaller average count per batch are moved to a random latent vector; 0 disables this.
    """

    codes: int = 1024
    width: int = 256
    kind: Literal["nearest", "ema", "gumbel"] = "nearest"
    loss: Literal["paper", "legacy"] = "paper"
    beta: float = 0.25
    decay: float = 0.99  # of the moving averages, per batch
    dead_code_threshold: float = 0.0
    kl: float = 5e-4  # "gumbel": weight of the KL divergence from uniform codes

    def __post_init__(self) -> None:
        if self.codes < 1 or self.width < 1:
            raise DaguerreError(f"The codebook has {self.codes} codes of width {self.width}; both must be 1 or more.")
        if self.kind == "gumbel" and self.dead_code_threshold:
            raise DaguerreError("dead_code_threshold must be 0 for a codebook of kind 'gumbel', which has no nearest codes.")


class Quantized(NamedTuple):
    """z: code vectors (B, D, h, w) with a straight-through gradient; codes (B, h, w) int64; loss ()."""

    z: Tensor
    codes: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """Nearest-neighbour codebook. Computes in float32 under autocast, too: half precision confuses similar codes."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codes, config.width)
        nn.init.uniform_(self.embedding.weight, -1 / config.codes, 1 / config.codes)
        if config.dead_code_threshold or config.kind == "ema":
            # Average count of each code per batch; the initial 1 keeps unused codes alive for some hundred batches.
            self.embedding.register_buffer("cluster_size", torch.ones(config.codes))
        if config.kind == "ema":
            self.embedding.weight.requires_grad_(False)
            self.embedding.register_buffer("embed_avg", self.embedding.weight.detach().clone())

    def nearest(self, z: Tensor) -> Tensor:
        """The nearest code for each position of z (B, D, h, w): (B, h, w) int64; the first one on ties."""
        rows = z.detach().float().movedim(1, -1).flatten(0, -2)  # (N, D)
        e = self.embedding.weight.detach().float()
        bias = e.square().sum(dim=1)  # (K,); ‖z‖² is the same for every code
        codes = [torch.addmm(bias, part, e.t(), alpha=-2).argmin(dim=1) for part in rows.split(max(1, MAX_DISTANCES // len(e)))]
        return torch.cat(codes).unflatten(0, (z.shape[0], *z.shape[2:]))

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors (B, D, h, w) of codes (B, h, w). Raises DaguerreError for a code outside the codebook."""
        return self.embedding(check_codes(codes, self.config.codes)).movedim(-1, 1)

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, D, h, w). In training mode this also updates counts and averages afterwards."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            codes = self.nearest(z)  # (B, h, w)
            e = self.embedding(codes).movedim(-1, 1)  # (B, D, h, w)
            codebook_loss, commitment = F.mse_loss(e, z.detach()), F.mse_loss(z, e.detach())
            beta = self.config.beta
            loss = commitment + beta * codebook_loss if self.config.loss == "legacy" else codebook_loss + beta * commitment
            if self.config.kind == "ema":
                loss = beta * commitment
            if self.training:
                self._update_codebook(z.detach(), codes)
            return Quantized(e.detach() + (z - z.detach()), codes, loss)  # straight-through: the bracket is 0 with gradient 1

    @torch.no_grad()
    def init_codebook_from(self, z: Tensor, generator: torch.Generator) -> None:
        """Set each code to a random vector of z (B, D, h, w), so that no code starts far from the encoder output."""
        rows = z.float().movedim(1, -1).flatten(0, -2)  # (N, D)
        chosen = torch.randint(len(rows), (self.config.codes,), generator=generator)
        self.embedding.weight.copy_(_broadcast(rows[chosen.to(rows.device)]))
        if self.config.kind == "ema":
            self.embedding.get_buffer("embed_avg").copy_(self.embedding.weight)

    @torch.no_grad()
    def _update_codebook(self, z: Tensor, codes: Tensor) -> None:
        if not (self.config.dead_code_threshold or self.config.kind == "ema"):
            return
        rows, flat = z.movedim(1, -1).flatten(0, -2), codes.flatten()  # (N, D), (N,)
        K, decay, tables = self.config.codes, self.config.decay, [self.embedding.weight]
        counts = _sum_over_processes(torch.bincount(flat, minlength=K).to(rows))  # (K,)
        size = self.embedding.get_buffer("cluster_size").lerp_(counts, 1 - decay)
        if self.config.kind == "ema":
            sums = _sum_over_processes(torch.zeros_like(tables[0]).index_add_(0, flat, rows))  # (K, D)
            total = self.embedding.get_buffer("embed_avg").lerp_(sums, 1 - decay)
            smooth = (size + SMOOTHING) / (size.sum() + K * SMOOTHING) * size.sum()
            tables[0].copy_(total / smooth[:, None])
            tables.append(total)
        if self.config.dead_code_threshold:
            dead = size < self.config.dead_code_threshold  # (K,)
            replacement = _broadcast(rows[torch.randint(len(rows), (K,)).to(rows.device)])  # (K, D)
            for table in tables:
                table[dead] = replacement[dead]
            size[dead] = 1.0


class GumbelQuantizer(nn.Module):
    """Gumbel-softmax codebook: samples codes with Gumbel noise, with the gradient of the softmax at `temperature`.

    In evaluation mode it takes the likeliest code. The training task lowers the temperature, from 1 to 1/16 in Ramesh et al.
    """

    temperature: float = 1.0

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Conv2d(config.width, config.codes, 1)
        self.embed = nn.Embedding(config.codes, config.width)

    def nearest(self, z: Tensor) -> Tensor:
        """The likeliest code for each position of z (B, D, h, w): (B, h, w) int64."""
        return self.proj(z).argmax(dim=1)

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors (B, D, h, w) of codes (B, h, w). Raises DaguerreError for a code outside the codebook."""
        return self.embed(check_codes(codes, self.config.codes)).movedim(-1, 1)

    def forward(self, z: Tensor) -> Quantized:
        """Quantize z (B, D, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            logits = self.proj(z.float())  # (B, K, h, w)
            log_q = logits.log_softmax(dim=1)
            loss = self.config.kl * (log_q.exp() * (log_q + torch.tensor(self.config.codes).log())).sum(dim=1).mean()
            if not self.training:
                codes = logits.argmax(dim=1)
                return Quantized(self.lookup(codes), codes, loss)
            sampled = F.gumbel_softmax(logits, self.temperature, hard=True, dim=1)  # (B, K, h, w), one-hot
            return Quantized(torch.einsum("bkhw,kd->bdhw", sampled, self.embed.weight), sampled.argmax(dim=1), loss)


def build_quantizer(config: QuantizerConfig) -> VectorQuantizer | GumbelQuantizer:
    """Build the module for a configuration."""
    return GumbelQuantizer(config) if config.kind == "gumbel" else VectorQuantizer(config)


class CodeUse(NamedTuple):
    """perplexity: exp(entropy of the code frequencies), 1 … K; share: fraction of the codebook in use, 0 … 1."""

    perplexity: Tensor
    share: Tensor


def code_use(codes: Tensor, size: int) -> CodeUse:
    """Codebook usage of codes (any shape) from a codebook of `size`."""
    counts = torch.bincount(codes.flatten(), minlength=size).double()
    return CodeUse(torch.special.entr(counts / counts.sum()).sum().exp(), (counts > 0).double().mean())


def check_codes(codes: Tensor, size: int) -> Tensor:
    """Return the codes; raise DaguerreError unless all of them are in [0, size)."""
    if codes.numel() and (codes.min() < 0 or codes.max() >= size):
        raise DaguerreError(
            f"The codes range from {int(codes.min())} to {int(codes.max())}, but this model has only {size}; use codes from the same model."
        )
    return codes


def _sum_over_processes(value: Tensor) -> Tensor:
    """The sum over all processes of distributed training."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
    return value


def _broadcast(value: Tensor) -> Tensor:
    """The value of process 0, in all processes."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(value, 0)
    return value
