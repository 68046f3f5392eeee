"""Plain, variational and vector-quantised tasks: exact likelihoods, separate gradients, and a codebook that learns."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal

from daguerre.data import Batch
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, DiagonalGaussian
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.vector_quantizer import GumbelQuantizer, QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import AutoencoderLoss, LoopConfig
from daguerre.training.loop import train
from daguerre.training.objectives.vae_vq import (
    PlainAutoencoderTask,
    QuantizedTask,
    VariationalTask,
    bits_per_number,
    cosine_anneal,
    log_likelihood,
)

KL = AutoencoderKLConfig(latent_channels=4, channels=(8, 16), blocks=1, mid_attention=False, norm_groups=4)
VQ = VQModelConfig(
    QuantizerConfig(codes=8, width=4),
    latent_channels=4,
    channels=(8, 16),
    blocks=1,
    attention_levels=(),
    mid_attention=False,
    norm_groups=1,  # small groups lose colour
)
PREVIEW = torch.zeros(2, 3, 8, 8)


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def images(n: int = 4, seed: int = 0) -> Batch:
    """Plain colours, one of four corners of the colour cube each, as bytes."""
    colours = torch.randint(2, (n, 3, 1, 1), generator=seeded(seed)) * 2.0 - 1
    return Batch(colours.expand(-1, -1, 8, 8) * 0.5 + 1 / 255, [""] * n)


class Checkers:
    """Endless batches of images of four squares, each dark or light."""

    def batch(self, step: int) -> Batch:
        squares = torch.randint(2, (8, 1, 2, 2), generator=seeded(step)) - 0.5
        return Batch(squares.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3).repeat(1, 3, 1, 1), [""] * 8)

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Batch]:
        yield from map(self.batch, count(start))


def test_the_likelihood_of_a_byte_sums_to_one_and_matches_the_cdf():
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, deviation in ((0.1, 0.05), (-0.99, 0.3), (1.2, 0.01), (0.0, 3.0)):
        at, width = torch.tensor([mean, deviation], dtype=torch.float64)
        p = log_likelihood(values, at, width).exp()
        assert p.sum().item() == pytest.approx(1.0, abs=1e-12)
        cdf = Normal(at, width).cdf((values + 1 / 255)[:-1])
        torch.testing.assert_close(p.cumsum(0)[:-1], cdf, rtol=0, atol=1e-12)


def test_far_from_the_mean_the_likelihood_keeps_a_gradient():
    mean = torch.tensor(0.9, requires_grad=True)
    nats = log_likelihood(torch.tensor(-0.5), mean, torch.tensor(0.01))
    nats.backward()
    assert math.isfinite(nats.item())
    assert mean.grad is not None
    assert mean.grad.item() == pytest.approx(-1.4 / 1e-4, rel=0.01)  # (x − mean)/σ²


def test_a_certain_image_costs_only_the_bits_of_its_latent():
    x = torch.linspace(-1, 1, 256)[[100] * 48].view(1, 3, 4, 4)
    posterior = DiagonalGaussian(torch.full((1, 2, 2, 2), 2.0), torch.zeros(1, 2, 2, 2))
    assert bits_per_number(x, x, posterior, torch.tensor(1e-4)).item() == pytest.approx(8 * 2.0 / math.log(2) / 48)


def test_the_variational_task_yields_the_lower_bound_in_bits():
    torch.manual_seed(0)
    task = VariationalTask(AutoencoderKL(KL), PREVIEW)
    (name, loss, logged), *rest = task.losses(images(), task.networks, BatchRandom(seeded(), len(images())), step=0)
    assert (name, rest) == ("autoencoder", [])
    assert 0 < logged["kl bits/dim"] < logged["bits/dim"] == loss.item() < 12  # untrained, about the 8 bits of a byte
    loss.backward()
    assert all(p.grad is not None for p in task.autoencoder.parameters())


def test_values_beyond_white_do_not_raise_the_standard_deviation_of_the_likelihood():
    """The tail rewards them, so a σ of the unclamped error grows with them and training on white images diverges."""
    torch.manual_seed(0)
    task = VariationalTask(AutoencoderKL(KL), PREVIEW)
    white = replace(images(), x=torch.ones_like(images().x))
    posterior = DiagonalGaussian(torch.zeros(len(white.x), 2, 1, 1), torch.zeros(len(white.x), 2, 1, 1))
    costs = []
    for level in (0.9, 5.0):
        networks = {"autoencoder": lambda x, _noise, level=level: (torch.full_like(x, level), posterior)}
        costs.append(next(task.losses(white, networks, BatchRandom(seeded(), len(white)), step=0))[1].item())
    assert costs[1] < 1e-3 < costs[0]


def test_the_plain_task_is_deterministic():
    torch.manual_seed(0)
    task = PlainAutoencoderTask(AutoencoderKL(KL), AutoencoderLoss(kl_weight=1.0), PREVIEW)
    losses = [next(task.losses(images(), task.networks, BatchRandom(seeded(n), len(images())), step=0))[1].item() for n in range(2)]
    assert losses[0] == losses[1]
    assert "kl" not in next(task.losses(images(), task.networks, BatchRandom(seeded(), len(images())), step=0))[2]


def test_each_loss_of_a_vqgan_updates_only_its_own_network():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(PatchDiscriminatorConfig(channels=8, layers=1))
    weights = AutoencoderLoss(adversarial_weight=1.0, adversarial_start=0, adversarial_ramp=1)
    task = QuantizedTask(VQModel(VQ), weights, PREVIEW, discriminator=discriminator)
    yielded = task.losses(images(), task.networks, BatchRandom(seeded(), len(images())), step=5)
    name, loss, logged = next(yielded)
    assert name == "autoencoder"
    assert {"codebook", "perplexity", "use", "lambda", "g"} <= logged.keys()
    loss.backward()
    assert all(p.grad is None for p in discriminator.parameters())
    assert all(p.grad is not None for p in task.autoencoder.parameters())
    name, d, logged = next(yielded)
    d.backward()
    assert name == "discriminator"
    assert {"logits real", "logits fake"} <= logged.keys()
    assert all(p.grad is not None for p in discriminator.parameters())


@pytest.mark.parametrize("kind", ["nearest", "ema"])
def test_training_stores_brightness_in_the_codes(kind: str, tmp_path: Path):
    """Without information, grey is best, with an error of 0.5; only the codes can tell light from dark."""
    torch.manual_seed(2)
    config = replace(VQ, quantizer=replace(VQ.quantizer, kind=kind, decay=0.9, dead_code_threshold=0.01))
    task = QuantizedTask(VQModel(config), AutoencoderLoss(gradient_weight=0.0), PREVIEW)
    train(
        task,
        Checkers(),
        LoopConfig(max_train_steps=80, batch_size=8, learning_rate=5e-3, lr_warmup_steps=1, ema_decay=0, sample_every=0),
        tmp_path,
    )
    x = Checkers().batch(1000).x
    with torch.no_grad():
        codes = task.autoencoder.encode_codes(x)  # pyright: ignore[reportCallIssue]
        assert (task.autoencoder.decode_codes(codes) - x).abs().mean() < 0.35  # pyright: ignore[reportCallIssue]
    assert len(codes.unique()) >= 2


def test_a_run_with_dead_code_replacement_resumes_exactly(tmp_path: Path):
    config = LoopConfig(
        max_train_steps=6, batch_size=8, learning_rate=1e-3, ema_decay=0.9, sample_every=0, checkpoint_every=3, lr_decay=0.0
    )
    ends = []
    for folder, runs in (("whole", [6]), ("parts", [3, 6])):
        for steps in runs:
            torch.manual_seed(0)
            quantizer = replace(VQ.quantizer, kind="ema", decay=0.5, dead_code_threshold=0.3)
            task = QuantizedTask(VQModel(replace(VQ, quantizer=quantizer)), AutoencoderLoss(), PREVIEW)
            train(task, Checkers(), replace(config, max_train_steps=steps), tmp_path / folder)
        ends.append(task.autoencoder.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_the_gumbel_temperature_falls():
    torch.manual_seed(0)
    config = replace(VQ, quantizer=replace(VQ.quantizer, kind="gumbel"))
    task = QuantizedTask(VQModel(config), AutoencoderLoss(), PREVIEW, temperature=cosine_anneal(100))
    temperatures = []
    for step in (0, 50, 100, 500):
        next(task.losses(images(), task.networks, BatchRandom(seeded(), len(images())), step))
        assert isinstance(task.quantizer, GumbelQuantizer)
        temperatures.append(task.quantizer.temperature)
    assert temperatures == pytest.approx([1.0, (1 + 1 / 16) / 2, 1 / 16, 1 / 16])


@pytest.mark.parametrize("kind", ["nearest", "ema"])
def test_the_codebook_is_initialised_from_latents(kind: str):
    torch.manual_seed(0)
    task = QuantizedTask(VQModel(replace(VQ, quantizer=replace(VQ.quantizer, kind=kind))), AutoencoderLoss(), PREVIEW, codebook_start=3)
    book = task.autoencoder.quantize.get_parameter("embedding.weight")
    _, loss, logged = next(task.losses(images(), task.networks, BatchRandom(seeded(), len(images())), step=2))
    assert logged["codebook"] == 0
    loss.backward()
    assert book.grad is None or not book.grad.any()
    before = book.detach().clone()
    _, _, logged = next(task.losses(images(), task.networks, BatchRandom(seeded(), len(images())), step=3))
    assert logged["codebook"] > 0
    assert not torch.equal(book, before)
    with torch.no_grad():
        latents = task.autoencoder.eval().encode(images().x).movedim(1, -1).flatten(0, -2)
    assert torch.cdist(book, latents).min(dim=1).values.max() < 0.1  # the moving average has changed slightly since


def test_codebook_start_is_refused_for_gumbel():
    with pytest.raises(DaguerreError, match="does not apply to a gumbel codebook"):
        QuantizedTask(VQModel(replace(VQ, quantizer=replace(VQ.quantizer, kind="gumbel"))), AutoencoderLoss(), PREVIEW, codebook_start=3)


def test_equivariance_is_refused():
    with pytest.raises(DaguerreError, match="equivariance to 0"):
        QuantizedTask(VQModel(VQ), AutoencoderLoss(equivariance=0.5), PREVIEW)
