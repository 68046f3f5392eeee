"""The transformer prior: the original logits, causality, key-value cache and sliding window against plain evaluation, invalid input."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import Sampling, probabilities, sample_codes, uniform_noise
from daguerre.models.transformer_prior import KVCache, TransformerPrior, TransformerPriorConfig, coordinate_codes, window_corner
from daguerre.weights.original.key_map import KeyTable, gpt_rules
from tests.models.test_goldens import named, read

TINY = TransformerPriorConfig(codes=7, condition_codes=5, length=32, grid=(3, 4), width=16, layers=2, heads=2)


def tiny(config: TransformerPriorConfig = TINY, seed: int = 0) -> TransformerPrior:
    torch.manual_seed(seed)
    prior = TransformerPrior(config).eval()
    for parameter in prior.parameters():  # the initial weights give nearly uniform logits
        torch.nn.init.normal_(parameter, std=0.3)
    return prior


def ids(size: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(size, shape, generator=torch.Generator().manual_seed(seed))


def uniforms(batch: int, grid: tuple[int, int]) -> Tensor:
    return uniform_noise([torch.Generator().manual_seed(seed) for seed in range(batch)], grid)


def last(steps: Iterator[Tensor]) -> Tensor:
    *_, codes = steps
    return codes


def test_the_transformer_gives_the_original_logits():
    weights, io, original = read("taming_gpt_tiny")
    config = TransformerPriorConfig(
        codes=original["vocab_size"],
        length=original["block_size"],
        width=original["n_embd"],
        layers=original["n_layer"],
        heads=original["n_head"],
        grid=(4, 8),
    )
    prior = TransformerPrior(config).eval()
    masks = {name for name in weights if name.endswith("attn.mask")}
    parameters = {name: tensor for name, tensor in weights.items() if name not in masks}
    prior.load_state_dict(named(parameters, "transformer.", KeyTable(gpt_rules(config.layers))), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(prior.read(io["ids"]), io["logits"], rtol=0, atol=1e-5)
        codes = io["ids"][:, 1:].view(2, 4, 8)  # one token as condition, the rest an image
        torch.testing.assert_close(prior(codes, io["ids"][:, :1]).flatten(1, 2), io["logits"][:, :-1], rtol=0, atol=1e-5)


def test_logits_do_not_depend_on_later_codes():
    prior = tiny()
    inputs: list[Tensor] = []

    def record(module: torch.nn.Module, given: tuple, out: Tensor) -> Tensor:
        inputs.append(out.detach().requires_grad_())
        return inputs[-1]

    prior.tok_emb.register_forward_hook(record)
    for n in range(12):
        inputs.clear()
        prior(ids(7, 1, 3, 4), ids(5, 1, 2))[0].flatten(0, 1)[n].square().sum().backward()
        (gradient,) = (e.grad for e in inputs)
        assert gradient is not None
        depends = gradient[0].abs().sum(dim=1) > 0  # two tokens of condition, then eleven codes
        assert depends.tolist() == [True] * (2 + n) + [False] * (11 - n)


@pytest.mark.parametrize("parts", [[1] * 14, [5, 9], [2, 1, 4, 7]])
def test_cached_logits_equal_uncached(parts: list[int]):
    prior, tokens, cache = tiny(), ids(12, 3, 14), KVCache()
    with torch.no_grad():
        whole = prior.read(tokens)
        cached = torch.cat([prior.read(part, cache) for part in tokens.split(parts, dim=1)], dim=1)
    torch.testing.assert_close(cached, whole, rtol=0, atol=1e-5)


def test_cache_saves_most_of_the_computation():
    """Counts FLOPs: 256 codes one by one with the cache, against a full forward pass for each of them."""
    prior = tiny(TransformerPriorConfig(codes=16, length=256, grid=(16, 16), width=16, layers=1, heads=2))
    with FlopCounterMode(display=False) as cached:
        last(prior.sample((16, 16), uniforms(1, (16, 16))))
    with torch.no_grad(), FlopCounterMode(display=False) as uncached:
        for n in (32, 96, 160, 224):  # the middle of each quarter
            prior.read(ids(16, 1, n))
    assert 64 * uncached.get_total_flops() > 50 * cached.get_total_flops()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=4, top_p=0.9), Sampling(0.0)])
@pytest.mark.parametrize("condition", [None, ids(5, 3, 2), ids(5, 3, 3, 4)], ids=["none", "row", "map"])
def test_sampling_in_one_window_equals_full_attention(sampling: Sampling, condition: Tensor | None):
    prior, u = tiny(), uniforms(3, (3, 4))
    expected = torch.zeros(3, 3, 4, dtype=torch.long)
    with torch.no_grad():
        for n in range(12):
            logits = prior(expected, condition).flatten(1, 2)[:, n]
            expected.view(3, 12)[:, n] = sample_codes(probabilities(logits, sampling), u[:, n])
    sampled = last(prior.sample((3, 4), u, condition, sampling))
    assert torch.equal(sampled, expected)
    assert sampling.temperature == 0 or len(sampled.unique()) > 2


@pytest.mark.parametrize("mapped", [True, False])
def test_sliding_window_equals_evaluating_each_window_separately(mapped: bool):
    """The authors' rule, written plainly: crop codes and condition, evaluate the full window, take the logits at the code."""
    prior, grid, u = tiny(), (5, 7), uniforms(2, (5, 7))
    condition = ids(5, 2, *grid) if mapped else ids(5, 2, 3)
    expected = torch.zeros(2, *grid, dtype=torch.long)
    with torch.no_grad():
        for i in range(5):
            for j in range(7):
                local = [
                    at if at <= side // 2 else side - (whole - at) if whole - at < side - side // 2 else side // 2
                    for at, whole, side in ((i, 5, 3), (j, 7, 4))
                ]
                rows, columns = slice(i - local[0], i - local[0] + 3), slice(j - local[1], j - local[1] + 4)
                logits = prior(expected[:, rows, columns], condition[:, rows, columns] if mapped else condition)[:, local[0], local[1]]
                expected[:, i, j] = sample_codes(probabilities(logits, Sampling()), u[:, i * 7 + j])
    steps = list(prior.sample(grid, u, condition))
    assert torch.equal(steps[-1], expected)
    assert [int((codes != 0).any(dim=2).sum(dim=1).max()) <= n + 1 for n, codes in enumerate(steps)] == [True] * 5


def test_windows_stay_inside_the_image_and_contain_their_code():
    for i in range(40):
        (top, left), position = window_corner(i, 39 - i, (40, 40), (16, 16))
        assert 0 <= top <= 24
        assert 0 <= left <= 24
        assert divmod(position, 16) == (i - top, 39 - i - left)
    assert window_corner(8, 8, (40, 40), (16, 16)) == ((0, 0), 8 * 16 + 8)
    assert window_corner(20, 31, (40, 40), (16, 16)) == ((12, 23), 8 * 16 + 8)
    assert window_corner(39, 39, (40, 40), (16, 16)) == ((24, 24), 255)


def test_completion_with_given_rows_equals_the_full_sample():
    """Given the first rows of a sample and the same random numbers, sampling reproduces the rest."""
    prior, grid, u = tiny(), (5, 4), uniforms(3, (5, 4))
    whole = last(prior.sample(grid, u, ids(5, 3, 1)))
    assert torch.equal(last(prior.sample(grid, u, ids(5, 3, 1), prefix_rows=whole[:, :2])), whole)
    other = (whole[:, :2] + 1) % 7
    completed = last(prior.sample(grid, u, ids(5, 3, 1), prefix_rows=other))
    assert torch.equal(completed[:, :2], other)


def test_condition_tokens_are_separate_or_shared():
    own, shared = tiny(), tiny(replace(TINY, condition_codes=0))
    assert own.prefix(ids(5, 2, 3), 2).min() >= 7
    assert torch.equal(shared.prefix(ids(7, 2, 3), 2), ids(7, 2, 3))
    assert own.prefix(None, 2).tolist() == [[7], [7]]
    assert shared.prefix(None, 2).tolist() == [[0], [0]]


def test_coordinate_codes_number_the_patches():
    positions = coordinate_codes(64, 32, codes=1024, downsample_factor=16)
    # Pixel (y, x) is y·32 + x of 2048; the mean over patch (i, j) is (16 i + 7.5)·32 + 16 j + 7.5.
    expected = [[round(((16 * i + 7.5) * 32 + 16 * j + 7.5) / 2048 * 1024) for j in range(2)] for i in range(4)]
    assert positions.tolist() == [expected]


def test_rejects_inputs_that_do_not_fit():
    prior = tiny()
    with pytest.raises(DaguerreError, match="smaller than this prior's 3×4"):
        last(prior.sample((2, 4), uniforms(1, (2, 4))))
    with pytest.raises(DaguerreError, match="at most 32"):
        prior(ids(7, 1, 3, 4), ids(5, 1, 30))
    with pytest.raises(DaguerreError, match="only 5"):
        prior(ids(7, 1, 3, 4), torch.tensor([[5]]))
    with pytest.raises(DaguerreError, match="only 7"):
        prior(torch.full((1, 3, 4), 7))
    with pytest.raises(DaguerreError, match="2 conditions for 1"):
        prior(ids(7, 1, 3, 4), ids(5, 2, 1))
    with pytest.raises(DaguerreError, match="3×4 codes and the image 5×7"):
        last(prior.sample((5, 7), uniforms(1, (5, 7)), ids(5, 1, 3, 4)))
    with pytest.raises(DaguerreError, match="prefix_rows is"):
        last(prior.sample((5, 4), uniforms(1, (5, 4)), prefix_rows=ids(7, 1, 2, 3)))
