"""Whether pictures and texts find each other in the space of a CLIP.

All of it rests on the cosine s(i, t) = i·t / (|i|·|t|) between a picture's and a text's embedding (Radford et al. 2021, arXiv:2103.00020).
R-precision: a picture made from a text must find that text among others that it was not made from (Xu et al. 2018, arXiv:1711.10485,
section 4.1: 100 candidates, one of them true).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from daguerre.errors import DaguerreError


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosines of embeddings (..., N, D) and (..., M, D) -> (..., N, M) float64."""
    return F.normalize(x.double(), dim=-1) @ F.normalize(y.double(), dim=-1).mT


def ranks(scores: Tensor, truth: Tensor) -> Tensor:
    """The rank (N,) of the true candidate `truth` (N,) in scores (N, M); 0 is best.

    A tie counts against the truth, and so does NaN: a judge that calls everything equal has recognised nothing.
    """
    true = scores.gather(1, truth[:, None])  # (N, 1)
    return (~(true > scores)).sum(1) - 1  # less the truth itself, which never exceeds itself


def r_precision(pictures: Tensor, candidates: Tensor) -> Tensor:
    """Rank (N,) of each picture (N, D)'s own text among its candidates (N, M, D), of which number 0 is its own; 0 is best.

    R-precision@k is `within(ranks, k).mean()`; the M − 1 distractors decide how hard it is.
    """
    if candidates.ndim != 3 or candidates.shape[::2] != pictures.shape:
        raise DaguerreError(
            f"R-precision needs pictures (N, D) and candidates (N, M, D); given {tuple(pictures.shape)} and {tuple(candidates.shape)}."
        )
    scores = cosine(pictures[:, None], candidates)[:, 0]  # (N, M)
    return ranks(scores, torch.zeros(len(pictures), dtype=torch.long, device=pictures.device))


def retrieval(queries: Tensor, answers: Tensor) -> Tensor:
    """Rank (N,) of answer i for query i among all the answers, (N, D) twice; swap them for the other way. Recall@k: `within(ranks, k)`."""
    return ranks(cosine(queries, answers), torch.arange(len(queries), device=queries.device))


def within(ranks: Tensor, k: int) -> Tensor:
    """1 where a rank (N,) is among the best k, else 0, as (N,) float64; its mean is precision or recall at k."""
    return (ranks < k).double()


def class_embeddings(texts: Tensor) -> Tensor:
    """One direction for each class from T wordings of it, (K, T, D) -> (K, D): the mean of the unit vectors, made a unit vector again.

    Radford et al. 2021, section 3.1.4 (ensembling over the embedding space).
    """
    return F.normalize(F.normalize(texts.double(), dim=-1).mean(1), dim=-1)


def zero_shot(pictures: Tensor, classes: Tensor) -> Tensor:
    """The class (N,) that each picture (N, D) is nearest to among class embeddings (K, D) that come from texts alone."""
    return cosine(pictures, classes).argmax(1)


def clip_score(cosines: Tensor) -> Tensor:
    """CLIPScore of pictures with their texts from their cosines (N,): 2.5·max(cos, 0) -> (N,) in [0, 2.5].

    Hessel et al. 2021, arXiv:2104.08718, section 3.
    """
    return 2.5 * cosines.clamp(min=0)
