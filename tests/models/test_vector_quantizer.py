"""The codebook against hand calculations: losses, gradients, averages, dead codes, usage."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.vector_quantizer import SMOOTHING, GumbelQuantizer, QuantizerConfig, VectorQuantizer, build_quantizer, code_use

CODEBOOK = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])


def with_codebook(codebook: Tensor = CODEBOOK, **options) -> VectorQuantizer:
    module = build_quantizer(QuantizerConfig(codes=len(codebook), width=codebook.shape[1], **options))
    assert isinstance(module, VectorQuantizer)
    with torch.no_grad():
        module.embedding.weight.copy_(codebook)
        if options.get("kind") == "ema":
            module.embedding.get_buffer("embed_avg").copy_(codebook)
    return module


def latents(*rows: list[float]) -> Tensor:
    """N latent vectors as one image with a single row, (1, D, 1, N)."""
    return torch.tensor(rows).t()[None, :, None, :].clone().requires_grad_()


def test_each_position_takes_the_nearest_code_and_losses_match_the_paper():
    z = latents([0.5, 0.25], [0.75, 1.25])  # nearest: (0, 0) at 0.3125, (1, 1) at 0.125; so the mean over four numbers is 0.4375 / 4
    for loss, expected in (("paper", (1 + 0.25) * 0.109375), ("legacy", (0.25 + 1) * 0.109375)):
        out = with_codebook(loss=loss)(z)
        assert out.codes.tolist() == [[[0, 1]]]
        assert torch.equal(out.z, CODEBOOK[out.codes].movedim(-1, 1))
        assert out.loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(("loss", "codebook_weight", "commitment_weight"), [("paper", 1.0, 0.25), ("legacy", 0.25, 1.0)])
def test_beta_weights_commitment_in_paper_loss_and_codebook_in_legacy_loss(loss: str, codebook_weight: float, commitment_weight: float):
    module, z = with_codebook(loss=loss), latents([0.5, 0.25], [0.75, 1.25])
    module(z).loss.backward()
    difference = torch.tensor([[0.5, 0.25], [-0.25, 0.25]])  # z − e
    assert z.grad is not None
    assert module.embedding.weight.grad is not None
    torch.testing.assert_close(z.grad[0, :, 0].t(), commitment_weight * 2 * difference / 4)
    torch.testing.assert_close(module.embedding.weight.grad[:2], -codebook_weight * 2 * difference / 4)
    assert not module.embedding.weight.grad[2].any()


@pytest.mark.parametrize("kind", ["nearest", "ema"])
def test_init_codebook_copies_encoder_outputs(kind: str):
    module, z = with_codebook(kind=kind), latents([5.0, 6.0], [7.0, 8.0]).detach()
    module.init_codebook_from(z, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in module.embedding.weight.tolist()} <= {(5.0, 6.0), (7.0, 8.0)}
    module.train()(z)  # the averages start from there, too
    assert (module.embedding.weight > 4).all()


def test_gradients_are_straight_through():
    module, z = with_codebook(), latents([0.5, 0.25], [0.75, 1.25])
    weight = torch.randn(1, 2, 1, 2, generator=torch.Generator().manual_seed(0))
    (module(z).z * weight).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weight)
    assert module.embedding.weight.grad is None  # no gradient reaches the codebook


def test_ema_update_matches_the_hand_calculation():
    module = with_codebook(kind="ema", decay=0.75, beta=0.5)
    z = latents([0.5, 0.25], [0.25, 0.25], [1.5, 1.25])
    out = module(z)
    assert out.codes.tolist() == [[[0, 0, 1]]]
    assert torch.equal(out.z, CODEBOOK[out.codes].movedim(-1, 1))  # looked up before the codebook update
    assert out.loss.item() == pytest.approx(0.5 * (0.3125 + 0.125 + 0.3125) / 6)
    size = torch.tensor([0.75 + 0.25 * 2, 0.75 + 0.25, 0.75])
    total = torch.tensor([[0.25 * 0.75, 0.25 * 0.5], [0.75 + 0.25 * 1.5, 0.75 + 0.25 * 1.25], [-1.5, 0.0]])
    smooth = (size + SMOOTHING) / (3.0 + 3 * SMOOTHING) * 3.0
    torch.testing.assert_close(module.embedding.get_buffer("cluster_size"), size)
    torch.testing.assert_close(module.embedding.weight.detach(), total / smooth[:, None])
    assert not module.embedding.weight.requires_grad
    before = module.embedding.weight.clone()
    module.eval()(z)
    assert torch.equal(module.embedding.weight, before)


@pytest.mark.parametrize("kind", ["nearest", "ema"])
def test_dead_code_moves_to_a_latent_vector(kind: str):
    torch.manual_seed(0)
    module = with_codebook(torch.tensor([[0.0, 0.0], [50.0, 50.0]]), kind=kind, decay=0.5, dead_code_threshold=0.2)
    z = latents([1.0, 1.0], [-1.0, -1.0])
    for _ in range(2):  # a count of 1, ½, ¼
        assert module(z).codes.tolist() == [[[0, 0]]]
    assert module.embedding.weight[1].abs().min() > 1.5
    module(z)  # ⅛: below 0.2
    assert module.embedding.weight[1].tolist() in ([1.0, 1.0], [-1.0, -1.0])
    assert module.embedding.get_buffer("cluster_size")[1] == 1.0
    assert len(set(module(z).codes.flatten().tolist())) == 2


def test_default_codebook_has_no_count_buffer():
    assert set(VectorQuantizer(QuantizerConfig(4, 2)).state_dict()) == {"embedding.weight"}
    assert set(VectorQuantizer(QuantizerConfig(4, 2, dead_code_threshold=0.1)).state_dict()) == {
        "embedding.weight",
        "embedding.cluster_size",
    }


def test_nearest_code_search_in_chunks_is_exact(monkeypatch: pytest.MonkeyPatch):
    module = VectorQuantizer(QuantizerConfig(7, 3))
    z = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    whole = torch.cdist(z.movedim(1, -1).flatten(0, 2), module.embedding.weight).argmin(dim=1).view(2, 5, 4)
    monkeypatch.setattr("daguerre.models.vector_quantizer.MAX_DISTANCES", 7 * 6)
    assert torch.equal(module.nearest(z), whole)


def test_gumbel_codebook_samples_in_training_and_is_greedy_in_evaluation():
    torch.manual_seed(0)
    module = build_quantizer(QuantizerConfig(codes=3, width=2, kind="gumbel"))
    assert isinstance(module, GumbelQuantizer)
    logits = torch.tensor([0.5, -0.5, 0.0])
    with torch.no_grad():
        module.proj.weight.zero_()
        module.proj.bias.copy_(logits)
    z = torch.zeros(1, 2, 60, 60)
    out = module(z)
    frequencies = torch.bincount(out.codes.flatten(), minlength=3) / 3600
    torch.testing.assert_close(frequencies, logits.softmax(0), rtol=0, atol=0.03)
    assert torch.allclose(out.z, module.lookup(out.codes), atol=1e-5)
    divergence = F.kl_div(torch.full((3,), -math.log(3)), logits.softmax(0), reduction="sum")
    assert out.loss.item() == pytest.approx(5e-4 * divergence.item(), rel=1e-4)
    assert module.eval()(z).codes.unique().tolist() == [0]


def test_gumbel_gradient_vanishes_at_low_temperature():
    """The relaxed sample is softmax((logits + noise)/τ); for τ → 0 it is one-hot and its gradient vanishes."""
    torch.manual_seed(0)
    module = GumbelQuantizer(QuantizerConfig(codes=3, width=2, kind="gumbel", kl=0.0))
    gradients = []
    for temperature in (1.0, 1e-3):
        torch.manual_seed(1)
        module.temperature, z = temperature, torch.ones(1, 2, 4, 4, requires_grad=True)
        module(z).z.sum().backward()
        assert z.grad is not None
        gradients.append(z.grad.abs().mean().item())
    assert gradients[0] > 1e-3
    assert gradients[1] < 1e-6


def test_perplexity_and_share():
    use = code_use(torch.tensor([[0, 0, 1, 1]]), 4)
    assert (use.perplexity.item(), use.share.item()) == (pytest.approx(2.0), 0.5)
    assert code_use(torch.tensor([3, 3]), 4).perplexity.item() == pytest.approx(1.0)


def test_rejects_codes_outside_the_codebook():
    with pytest.raises(DaguerreError, match="from 0 to 3, but this model has only 3"):
        with_codebook().lookup(torch.tensor([[[0, 3]]]))
    with pytest.raises(DaguerreError, match="gumbel"):
        QuantizerConfig(kind="gumbel", dead_code_threshold=0.1)
