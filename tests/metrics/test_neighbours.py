"""Neighbours against the brute-force search; the copying test against scipy's Mann–Whitney U and known distributions."""

import pytest
import scipy.stats
import torch

from daguerre.errors import DaguerreError
from daguerre.metrics import copying, nearest_neighbours, precision_recall


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [3, 16, 1000])
def test_neighbours_equal_the_brute_force_search(chunk: int):
    queries, corpus = normal(6, 3, 4, 4), normal(50, 3, 4, 4, seed=1)
    found = nearest_neighbours(queries, corpus, k=4, chunk=chunk)
    for i, query in enumerate(queries):
        distance = (query.double() - corpus.double()).square().mean((1, 2, 3)).sqrt()
        order = distance.argsort()[:4]
        assert found.index[i].tolist() == order.tolist()
        assert found.distance[i].tolist() == pytest.approx(distance[order].tolist(), abs=1e-12)


def test_a_copy_is_found_at_distance_zero():
    corpus = normal(40, 3, 8, 8)
    found = nearest_neighbours(corpus[[7, 31]], corpus)
    assert found.index.flatten().tolist() == [7, 31]
    assert found.distance.max() < 1e-7


def test_the_distance_is_in_pixel_units():
    black, white = torch.full((1, 3, 8, 8), -1.0), torch.full((1, 3, 8, 8), 1.0)
    assert nearest_neighbours(black, white).distance.item() == pytest.approx(2)


def test_equal_distances_keep_the_order_of_the_corpus():
    found = nearest_neighbours(torch.zeros(1, 2), torch.ones(9, 2), k=3, chunk=2)
    assert found.index.tolist() == [[0, 1, 2]]


def test_nearer_is_the_mann_whitney_u():
    generated, held_out = normal(60).round(decimals=1), (normal(45, seed=1) + 0.4).round(decimals=1)  # with ties
    u = scipy.stats.mannwhitneyu(held_out.numpy(), generated.numpy()).statistic
    assert copying(generated, held_out).nearer == pytest.approx(u / (60 * 45), abs=1e-12)


def test_copying_is_distinguished_from_new_samples():
    training = normal(500, 8)
    held_out = nearest_neighbours(normal(400, 8, seed=1), training).distance[:, 0]
    honest = copying(nearest_neighbours(normal(400, 8, seed=2), training).distance[:, 0], held_out)
    copier = copying(nearest_neighbours(training[:400] + 0.01 * normal(400, 8, seed=3), training).distance[:, 0], held_out)
    assert honest.nearer == pytest.approx(0.5, abs=0.08)
    assert honest.copied < 0.04
    assert copier.nearer > 0.99
    assert copier.copied > 0.99
    assert copier.generated[1] < honest.generated[0]


def test_quantiles_are_those_of_the_distances():
    report = copying(torch.arange(101.0), torch.arange(101.0) + 1000)
    assert report.generated == pytest.approx((5, 50, 95))
    assert report.held_out == pytest.approx((1005, 1050, 1095))
    assert report.nearer == 1
    assert report.copied == 1


def test_invalid_search_raises():
    with pytest.raises(DaguerreError, match="3 neighbours"):
        nearest_neighbours(torch.zeros(1, 4), torch.zeros(2, 4), k=3)
    with pytest.raises(DaguerreError, match="in a corpus"):
        nearest_neighbours(torch.zeros(1, 4), torch.zeros(2, 5))


def test_precision_and_recall_by_their_definition():
    generated, real = normal(40, 5) * 1.3, normal(50, 5, seed=1)

    def covered(queries: torch.Tensor, corpus: torch.Tensor) -> float:
        radius = torch.cdist(corpus, corpus).sort(1).values[:, 3]
        return float((torch.cdist(queries, corpus) <= radius).any(1).double().mean())

    assert precision_recall(generated, real) == (covered(generated, real), covered(real, generated))
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
