"""Retrieval metrics of images and texts in the embedding space of a CLIP.

They use the cosine s(i, t) = i·t / (|i|·|t|) of an image and a text embedding (Radford et al. 2021, arXiv:2103.00020). R-precision: how
often the prompt of an image ranks first among candidates (Xu et al. 2018, arXiv:1711.10485, section 4.1: 100 candidates, one true).
"""

from torch import Tensor
from torch.nn import functional as F


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosines of embeddings (..., N, D) and (..., M, D) -> (..., N, M) float64."""
    return F.normalize(x.double(), dim=-1) @ F.normalize(y.double(), dim=-1).mT


def ranks(scores: Tensor, truth: Tensor) -> Tensor:
    """The rank (N,) of the true candidate `truth` (N,) in scores (N, M); 0 is best.

    Ties and NaN count against the true candidate, so that a constant scorer recognises nothing.
    """
    true = scores.gather(1, truth[:, None])  # (N, 1)
    return (~(true > scores)).sum(1) - 1  # minus 1: the true score never exceeds itself


def recall_at(ranks: Tensor, k: int) -> Tensor:
    """1 if a rank (N,) is below k, else 0: (N,) float64; the mean is precision or recall at k."""
    return (ranks < k).double()


def clip_score(cosines: Tensor) -> Tensor:
    """CLIPScore from the cosines (N,) of images and their texts: 2.5·max(cos, 0) in [0, 2.5].

    Hessel et al. 2021, arXiv:2104.08718, section 3.
    """
    return 2.5 * cosines.clamp(min=0)
