"""Whether images and texts find each other in the space of a CLIP.

All of it rests on the cosine s(i, t) = i·t / (|i|·|t|) between an image's and a text's embedding (Radford et al. 2021, arXiv:2103.00020).
R-precision: an image made from a text must find that text among others that it was not made from (Xu et al. 2018, arXiv:1711.10485,
section 4.1: 100 candidates, one of them true).
"""

from torch import Tensor
from torch.nn import functional as F


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosines of embeddings (..., N, D) and (..., M, D) -> (..., N, M) float64."""
    return F.normalize(x.double(), dim=-1) @ F.normalize(y.double(), dim=-1).mT


def ranks(scores: Tensor, truth: Tensor) -> Tensor:
    """The rank (N,) of the true candidate `truth` (N,) in scores (N, M); 0 is best.

    A tie counts against the truth, and so does NaN: a judge that calls everything equal has recognised nothing.
    """
    true = scores.gather(1, truth[:, None])  # (N, 1)
    return (~(true > scores)).sum(1) - 1  # less the truth itself, which never exceeds itself


def recall_at(ranks: Tensor, k: int) -> Tensor:
    """1 where a rank (N,) is among the best k, else 0, as (N,) float64; its mean is precision or recall at k."""
    return (ranks < k).double()


def clip_score(cosines: Tensor) -> Tensor:
    """CLIPScore of images with their texts from their cosines (N,): 2.5·max(cos, 0) -> (N,) in [0, 2.5].

    Hessel et al. 2021, arXiv:2104.08718, section 3.
    """
    return 2.5 * cosines.clamp(min=0)
