"""Ranks counted by hand, and expectations under chance that have a closed form."""

import math

import pytest
import torch

from daguerre.errors import DaguerreError
from daguerre.metrics import class_embeddings, clip_score, cosine, r_precision, ranks, retrieval, within, zero_shot


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_ranks_counted_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    assert ranks(scores, torch.tensor([0, 1, 2])).tolist() == [0, 2, 1]


def test_a_judge_that_sees_no_difference_is_given_nothing():
    truth = torch.zeros(2, dtype=torch.long)
    assert ranks(torch.ones(2, 100), truth).tolist() == [99, 99]
    assert ranks(torch.full((2, 100), math.nan), truth).tolist() == [99, 99]
    assert r_precision(torch.ones(2, 4), torch.ones(2, 100, 4)).tolist() == [99, 99]


def test_r_precision_sees_only_its_own_candidates():
    pictures = torch.eye(3)
    near, far, same = torch.tensor([0.9, 0.1, 0.0]), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([5.0, 0.0, 0.0])
    candidates = torch.stack(
        [
            torch.stack([near, far]),  # its own text is the nearer: rank 0
            torch.stack([near, far]),  # the distractor is exactly it: rank 1
            torch.stack([torch.tensor([0.0, 0.1, 1.0]), same]),  # length of an embedding doesn't matter: rank 0
        ]
    )
    got = r_precision(pictures, candidates)
    assert got.tolist() == [0, 1, 0]
    assert within(got, 1).mean().item() == pytest.approx(2 / 3)
    assert within(got, 2).mean().item() == 1


def test_r_precision_by_chance_is_k_in_m():
    got = r_precision(normal(3000, 16), normal(3000, 100, 16, seed=1))
    for k in (1, 5, 50):
        p = k / 100
        assert within(got, k).mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / 3000) ** 0.5)


def test_retrieval_both_ways():
    """Every text's nearest picture is its own, while picture 2 is nearer to text 0 than to its own."""
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.8]])
    pictures = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.3]])
    assert retrieval(texts, pictures).tolist() == [0, 0, 0]
    assert retrieval(pictures, texts).tolist() == [0, 0, 1]


def test_cosine_is_the_cosine():
    x, y = normal(4, 7), normal(5, 7, seed=1)
    for i in range(4):
        for j in range(5):
            wanted = torch.nn.functional.cosine_similarity(x[i].double(), y[j].double(), dim=0)
            assert cosine(x, y)[i, j].item() == pytest.approx(wanted.item(), abs=1e-12)


def test_zero_shot_finds_the_class_of_noisy_pictures():
    directions = torch.linalg.qr(normal(16, 16)).Q[:5]
    texts = directions[:, None] * 3 + 0.2 * normal(5, 8, 16, seed=1)  # eight wordings of each class
    truth = torch.arange(5).repeat(20)
    pictures = directions[truth] + 0.1 * normal(100, 16, seed=2)
    assert torch.equal(zero_shot(pictures, class_embeddings(texts)), truth)


def test_wordings_weigh_the_same_however_long_their_embeddings_are():
    texts = torch.tensor([[[100.0, 0.0], [0.0, 1.0]]])
    assert class_embeddings(texts)[0].tolist() == pytest.approx([0.5**0.5, 0.5**0.5], abs=1e-12)


def test_clip_score():
    pictures = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[2.0, 0.0], [1.0, 3**0.5], [-1.0, 0.1]])
    assert clip_score(torch.cosine_similarity(pictures, texts)).tolist() == pytest.approx([2.5, 1.25, 0.0], abs=1e-6)


def test_candidates_must_match_their_pictures():
    with pytest.raises(DaguerreError, match=r"candidates \(N, M, D\)"):
        r_precision(torch.zeros(3, 4), torch.zeros(2, 100, 4))
