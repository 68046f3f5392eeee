"""Ranks counted by hand, and expectations under chance that have a closed form."""

import math

import pytest
import torch

from daguerre.metrics import clip_score, cosine, ranks, recall_at


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_ranks_match_hand_counts():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    assert ranks(scores, torch.tensor([0, 1, 2])).tolist() == [0, 2, 1]


def test_constant_scores_rank_last():
    truth = torch.zeros(2, dtype=torch.long)
    assert ranks(torch.ones(2, 100), truth).tolist() == [99, 99]
    assert ranks(torch.full((2, 100), math.nan), truth).tolist() == [99, 99]


def test_precision_by_chance_is_k_in_m():
    got = ranks(normal(3000, 100), torch.zeros(3000, dtype=torch.long))
    for k in (1, 5, 50):
        p = k / 100
        assert recall_at(got, k).mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / 3000) ** 0.5)


def test_cosine_equals_torch():
    x, y = normal(4, 7), normal(5, 7, seed=1)
    for i in range(4):
        for j in range(5):
            wanted = torch.nn.functional.cosine_similarity(x[i].double(), y[j].double(), dim=0)
            assert cosine(x, y)[i, j].item() == pytest.approx(wanted.item(), abs=1e-12)


def test_clip_score():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[2.0, 0.0], [1.0, 3**0.5], [-1.0, 0.1]])
    assert clip_score(torch.cosine_similarity(images, texts)).tolist() == pytest.approx([2.5, 1.25, 0.0], abs=1e-6)
