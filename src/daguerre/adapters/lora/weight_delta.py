"""The change ΔW that each kind of LoRA makes to a weight: W' = W + m·ΔW, computed in float32 (m is the strength).

A weight is (out, in) or (out, in, k, k); `flat` joins all axes but the first. With s = alpha / rank, and 1 without alpha:

    LowRank      s · up.flat @ down.flat                     LoRA (Hu et al. 2021, arXiv:2106.09685), LoCon
    Hadamard     s · (w1_a @ w1_b) * (w2_a @ w2_b)           LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098)
    Kronecker    s · kron(w1, w2)                            LoKr (Yeh et al. 2023, arXiv:2309.14859)
    Difference   the stored difference                       full fine-tuning, norms
    ChannelScale w * W along one axis                        IA3 (Liu et al. 2022, arXiv:2205.05638)
    Generalized  s · (W @ a1 @ a2 + b1 @ b2)                 GLoRA (Chavan et al. 2023, arXiv:2306.07967)
    Orthogonal   Rᵀ·W − W in blocks of rows                  OFT (Qiu et al. 2023, arXiv:2306.07280)
    DoRA         magnitude · V / ‖V‖ − W with V = W + ΔW     DoRA (Liu et al. 2024, arXiv:2402.09353)

All are differentiable functions of their tensors.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


class WeightDelta(ABC):
    """The change of one weight."""

    @abstractmethod
    def __call__(self, weight: Tensor) -> Tensor:
        """ΔW at strength 1, float32 in the shape of the weight, which is float32.

        Raises:
            ValueError, RuntimeError: the tensors do not fit the weight.
        """

    @property
    def rank(self) -> int | None:
        """The rank, None for kinds without one."""
        return None

    @property
    def in_features(self) -> int | None:
        """The input width times the kernel's size; None if the tensors do not determine it."""
        return None

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """W + m·ΔW, float32."""
        return weight + strength * self(weight)

    def with_rank(self, rank: int) -> "WeightDelta":
        """The same with its first `rank` ranks only; unchanged for kinds without low rank."""
        return self


class MatrixDelta(WeightDelta):
    """A change that does not depend on the weight."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """ΔW as a float32 matrix (out, in · k · k)."""

    def __call__(self, weight: Tensor) -> Tensor:
        matrix = self.matrix()
        if matrix.numel() < weight.numel() and weight.ndim == 4 and len(matrix) == len(weight):
            # The first convolution of a model with extra input channels: these come last and stay.
            part = matrix.reshape(len(weight), -1, *weight.shape[2:])  # (out, in_file, k, k)
            return F.pad(part, (0, 0, 0, 0, 0, weight.shape[1] - part.shape[1]))
        return matrix.reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class LowRank(MatrixDelta):
    """up: (out, r) or (out, r, 1, 1). down: (r, in) or (r, in, k, k). mid: (r, r, k, k), with down (r, in, 1, 1)."""

    down: Tensor
    up: Tensor
    alpha: float | None = None
    mid: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def in_features(self) -> int:
        return self.down[0].numel()

    def matrix(self) -> Tensor:
        scale = scale_of(self.alpha, self.rank)
        if self.mid is not None:
            return scale * tucker(self.mid, self.up.flatten(1).t(), self.down.flatten(1)).flatten(1)
        return scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        if self.mid is not None or len(self.up) * self.in_features != weight.numel():
            return super().apply(weight, strength)
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        return torch.addmm(weight.flatten(1), up, down, alpha=strength * scale_of(self.alpha, self.rank)).reshape(weight.shape)

    def with_rank(self, rank: int) -> "LowRank":
        if self.mid is not None or rank >= self.rank:
            return self
        return LowRank(self.down[:rank], self.up[:, :rank], scale_of(self.alpha, self.rank) * rank)


@dataclass(frozen=True, eq=False)
class Hadamard(MatrixDelta):
    """w_a: (out, r), w_b: (r, in · k · k); with t (r, r, k, k): w_a (r, out), w_b (r, in)."""

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float | None = None
    t1: Tensor | None = None
    t2: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.w1_b)

    @property
    def in_features(self) -> int:
        kernel = 1 if self.t1 is None else self.t1[0, 0].numel()
        return self.w1_b[0].numel() * kernel

    def matrix(self) -> Tensor:
        first, second = (
            a.float().flatten(1) @ b.float().flatten(1) if t is None else tucker(t, a, b).flatten(1)
            for a, b, t in ((self.w1_a, self.w1_b, self.t1), (self.w2_a, self.w2_b, self.t2))
        )
        return scale_of(self.alpha, self.rank) * first * second


@dataclass(frozen=True, eq=False)
class Kronecker(MatrixDelta):
    """w1 (a, c) and w2 (b, d) or (b, d, k, k), each whole or as factors; out = a·b, in = c·d. With t2: w2_a (r, b), w2_b (r, d).

    always_scaled: divide alpha by the rank also if both are whole, as PEFT does with `r`.
    """

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    alpha: float | None = None
    always_scaled_by: int | None = None

    @property
    def rank(self) -> int | None:
        factor = self.w2_b if self.w2_b is not None else self.w1_b
        return self.always_scaled_by if factor is None else len(factor)

    @property
    def in_features(self) -> int:
        first, second = self._factors()
        return first.shape[1] * second[0].numel()

    def _factors(self) -> tuple[Tensor, Tensor]:
        first = self.w1.float() if self.w1 is not None else _required(self.w1_a).float() @ _required(self.w1_b).float()
        if self.w2 is not None:
            return first, self.w2.float()
        a, b = _required(self.w2_a), _required(self.w2_b)
        if self.t2 is not None:
            return first, tucker(self.t2, a, b)
        return first, (a.float() @ b.float().flatten(1)).reshape(len(a), *b.shape[1:])

    def matrix(self) -> Tensor:
        first, second = self._factors()
        product = torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())
        return (1.0 if self.rank is None else scale_of(self.alpha, self.rank)) * product.flatten(1)


@dataclass(frozen=True, eq=False)
class Difference(MatrixDelta):
    """diff: of the weight's or the bias' shape."""

    diff: Tensor

    @property
    def in_features(self) -> int | None:
        return self.diff[0].numel() if self.diff.ndim > 1 else None

    def matrix(self) -> Tensor:
        return self.diff.float().flatten(1) if self.diff.ndim > 1 else self.diff.float()


@dataclass(frozen=True, eq=False)
class ChannelScale(WeightDelta):
    """W' = W·(1 + w) along the outputs, or the inputs.

    scale: w, one number per channel.
    """

    scale: Tensor
    on_input: bool = False

    def __call__(self, weight: Tensor) -> Tensor:
        shape = [1] * weight.ndim
        shape[1 if self.on_input else 0] = -1
        return weight * self.scale.float().reshape(shape)


@dataclass(frozen=True, eq=False)
class Generalized(WeightDelta):
    """a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in · k · k), also with trailing axes of size 1."""

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return len(self.a2)

    @property
    def in_features(self) -> int:
        return self.b2[0].numel()

    def __call__(self, weight: Tensor) -> Tensor:
        product = self.a1.float().flatten(1) @ self.a2.float().flatten(1)  # (in, in)
        by_weight = torch.einsum("oi...,ij->oj...", weight, product)
        added = self.b1.float().flatten(1) @ self.b2.float().flatten(1)  # (out, in · k · k)
        return scale_of(self.alpha, self.rank) * (by_weight + added.reshape(weight.shape))


@dataclass(frozen=True, eq=False)
class Orthogonal(WeightDelta):
    """blocks (n, b, b): Q = B − Bᵀ, R = (I + Q)(I − Q)⁻¹; each b rows of W become Rᵀ·W, then times `rescale` (out, 1, …).

    alpha: Q is shortened to a norm of alpha · out; 0 or None: free.
    """

    blocks: Tensor
    alpha: float | None = None
    rescale: Tensor | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        blocks = self.blocks.float()
        skew = blocks - blocks.transpose(1, 2)
        limit = (self.alpha or 0) * len(weight)
        if limit > 0:
            norm = skew.norm() + 1e-8
            skew = skew * (limit / norm).clamp(max=1)
        identity = torch.eye(skew.shape[-1], device=skew.device)
        rotation = (identity + skew) @ torch.linalg.inv(identity - skew)
        rows = weight.reshape(len(blocks), blocks.shape[1], -1)
        rotated = (rotation.transpose(1, 2) @ rows).reshape(weight.shape)
        if self.rescale is not None:
            rotated = rotated * self.rescale.float().reshape(-1, *[1] * (weight.ndim - 1))
        return rotated - weight


@dataclass(frozen=True, eq=False)
class DoRA(WeightDelta):
    """magnitude: (out, 1, …), the norm of each output's weights, or (1, in, …), that of each input channel's."""

    inner: WeightDelta
    magnitude: Tensor

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    @property
    def in_features(self) -> int | None:
        return self.inner.in_features

    def __call__(self, weight: Tensor) -> Tensor:
        total = weight + self.inner(weight)
        magnitude = self.magnitude.float()
        per_output = magnitude.shape[0] == len(weight)  # decides for square weights, too
        axes = [axis for axis in range(weight.ndim) if axis != (0 if per_output else 1)]
        shape = [-1 if axis not in axes else 1 for axis in range(weight.ndim)]
        return total * (magnitude.reshape(shape) / torch.linalg.vector_norm(total, dim=axes, keepdim=True)) - weight

    def with_rank(self, rank: int) -> "DoRA":
        return replace(self, inner=self.inner.with_rank(rank))


@dataclass(frozen=True, eq=False)
class Rows(WeightDelta):
    """One of `count` equal parts of the rows of a change: for a fused projection whose parts are separate layers here."""

    inner: MatrixDelta
    part: int
    count: int

    def __call__(self, weight: Tensor) -> Tensor:
        return self.inner.matrix().chunk(self.count)[self.part].reshape(weight.shape)


def scale_of(alpha: float | None, rank: int) -> float:
    """alpha / rank; 1 without alpha."""
    return 1.0 if alpha is None else alpha / rank


def tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Σ core[p, q]·a[p, o]·b[q, i], float32 (o, i, k, k), of core (p, q, k, k), a (p, o) and b (q, i)."""
    return torch.einsum("pqhw,po,qi->oihw", core.float(), a.float().flatten(1), b.float().flatten(1))


def _required(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("a factor is missing")
    return tensor
