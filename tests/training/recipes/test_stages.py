"""Losses against hand calculations and autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from daguerre.data import Batch
from daguerre.diffusion import Conditioning, Schedule, ScheduleConfig
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import AutoencoderLoss, DiffusionLoss
from daguerre.training.ema import EMA
from daguerre.training.objectives.autoencoder import AutoencoderTask, adaptive_weight, gradient_distance, random_transform
from daguerre.training.objectives.clip import contrastive_loss
from daguerre.training.objectives.diffusion import DiffusionTask, sample_timesteps

TINY = AutoencoderKLConfig(latent_channels=4, channels=(8, 16), blocks=1, mid_attention=False, norm_groups=4)


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer():
    w = torch.tensor([2.0, -1.0], requires_grad=True)
    rec, g = (w * torch.tensor([3.0, 4.0])).sum(), (w * torch.tensor([0.0, 2.0])).sum()
    assert adaptive_weight(rec, g, w).item() == pytest.approx(5 / (2 + 1e-4))
    assert adaptive_weight(rec, g * 1e-9, w, largest=1e4).item() == 1e4
    assert not adaptive_weight(rec, g, w).requires_grad


def test_each_adversarial_loss_updates_only_its_own_network():
    torch.manual_seed(0)
    weights = AutoencoderLoss(gradient_weight=0.0, kl_weight=0.0, adversarial_weight=1.0, adversarial_start=0, adversarial_ramp=1)
    discriminator = PatchDiscriminator(PatchDiscriminatorConfig(channels=8, layers=1))
    task = AutoencoderTask(AutoencoderKL(TINY), weights, torch.zeros(2, 3, 16, 16), discriminator=discriminator)
    batch = Batch(torch.rand(4, 3, 16, 16) * 2 - 1, [""] * 4)
    yielded = task.losses(batch, task.networks, BatchRandom(seeded(), len(batch)), step=5)
    name, loss, logged = next(yielded)
    assert name == "autoencoder"
    assert logged["lambda"].item() > 0
    loss.backward()
    assert all(p.grad is None for p in discriminator.parameters())
    moved = {name: p.grad.clone() for name, p in task.autoencoder.named_parameters()}  # all of them have one
    name, d, _ = next(yielded)
    d.backward()
    assert name == "discriminator"
    assert all(p.grad is not None for p in discriminator.parameters())
    assert all(torch.equal(p.grad, moved[name]) for name, p in task.autoencoder.named_parameters())
    assert next(yielded, None) is None


def test_the_autoencoders_gradient_equals_that_of_the_full_loss():
    torch.manual_seed(0)
    weights = AutoencoderLoss(kl_weight=0.0, adversarial_weight=0.7, adversarial_start=0, adversarial_ramp=1)
    discriminator = PatchDiscriminator(PatchDiscriminatorConfig(channels=8, layers=1))
    task = AutoencoderTask(AutoencoderKL(TINY), weights, torch.zeros(2, 3, 16, 16), discriminator=discriminator)
    batch = Batch(torch.rand(4, 3, 16, 16) * 2 - 1, [""] * 4)
    _, loss, logged = next(task.losses(batch, task.networks, BatchRandom(seeded(), len(batch)), step=5))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in task.autoencoder.named_parameters()}
    task.autoencoder.zero_grad()
    generator = seeded()
    torch.rand((), generator=generator)  # decides on the transform, before the noise
    noise = torch.randn(4, 4, 8, 8, generator=generator)
    rebuilt, _ = task.autoencoder(batch.x, noise)
    whole = task.reconstruction_loss(batch.x, rebuilt) - 0.7 * logged["lambda"] * discriminator(rebuilt).mean()
    torch.testing.assert_close(loss, whole)
    whole.backward()
    assert task.autoencoder.last_layer.grad.abs().max() > 1e-3
    for name, p in task.autoencoder.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_discriminator_starts_late():
    weights = AutoencoderLoss(adversarial_weight=1.0, adversarial_start=10, adversarial_ramp=4)
    discriminator = PatchDiscriminator(PatchDiscriminatorConfig(channels=8, layers=1))
    task = AutoencoderTask(AutoencoderKL(TINY), weights, torch.zeros(2, 3, 16, 16), discriminator=discriminator)
    batch = Batch(torch.zeros(2, 3, 16, 16), [""] * 2)
    assert [name for name, _, _ in task.losses(batch, task.networks, BatchRandom(seeded(), len(batch)), step=9)] == ["autoencoder"]
    assert [name for name, _, _ in task.losses(batch, task.networks, BatchRandom(seeded(), len(batch)), step=10)] == [
        "autoencoder",
        "discriminator",
    ]


def test_gradient_distance_by_hand():
    x, y = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 1.0], [3.0, 0.0]]]])
    assert gradient_distance(x, y).item() == pytest.approx(((1 + 3) / 2 + (3 + 1) / 2) / 2)


def test_a_transform_acts_alike_on_latents_and_images():
    """Rotation and scaling commute with pooling."""
    x = torch.rand(1, 3, 64, 64, generator=seeded(1))
    for n in range(12):
        transform = random_transform(seeded(n))
        before, after = F.avg_pool2d(transform(x), 8), transform(F.avg_pool2d(x, 8))
        assert before.shape == after.shape
        assert (before - after).abs().mean() < 0.08  # resizing filters differ in width; turns are exact
    turned = {tuple(random_transform(seeded(n))(x).shape[-2:]) for n in range(12)}
    assert turned == {(64, 64), (48, 48), (32, 32)}


def test_contrastive_loss_is_cross_entropy_both_ways():
    logits = torch.randn(5, 5, generator=seeded())
    own = torch.arange(5)
    loss, right = contrastive_loss(logits, list("abcde"))
    assert loss.item() == pytest.approx(((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2).item(), abs=1e-6)
    assert right.item() == pytest.approx((logits.argmax(0) == own).float().mean().item())


def test_equal_captions_share_the_target():
    """Logits that are the same for equal captions cost only the log of the number that share the target."""
    logits = torch.full((4, 4), -50.0)
    logits[:2, :2] = logits[2, 2] = logits[3, 3] = 50.0
    loss, right = contrastive_loss(logits, ["a cat", "a cat", "a dog", "a pig"])
    assert loss.item() == pytest.approx(2 * math.log(2) / 4)
    assert right.item() == 1.0


class Perfect(nn.Module):
    """Predicts v exactly for a dataset of one point: x0 is known, so ε and v follow from x_t."""

    def __init__(self, x0: torch.Tensor, schedule: Schedule):
        super().__init__()
        self.x0, self.schedule, self.labels = x0, schedule, []
        self.conv_norm_out = nn.GroupNorm(1, 1)  # LatentDiffusion reads device and dtype from it

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        a = self.schedule.alphas_cumprod[t].float().view(-1, 1, 1, 1)
        eps = (x - a.sqrt() * self.x0) / (1 - a).sqrt()
        self.labels.append(cond.label)
        return a.sqrt() * eps - (1 - a).sqrt() * self.x0


@pytest.mark.parametrize("loss", [DiffusionLoss(), DiffusionLoss(timestep_sampling="logit_normal", snr_gamma=5.0)])
def test_the_diffusion_loss_of_a_perfect_network_is_zero(loss):
    schedule = Schedule(ScheduleConfig(zero_terminal_snr=True))
    x0 = torch.randn(1, 4, 8, 8, generator=seeded())
    network = Perfect(x0, schedule)
    model = LatentDiffusion(network, AutoencoderKL(TINY), lambda prompts: Conditioning(), schedule, "v", "perfect", 16)  # pyright: ignore
    task = DiffusionTask(model, loss, lambda captions: Conditioning(label=torch.tensor([len(c) for c in captions])), ["x"])
    batch = Batch(x0.expand(64, -1, -1, -1), ["abc"] * 64, latent=True)
    (name, value, values), *rest = task.losses(batch, task.networks, BatchRandom(seeded(3), len(batch)), step=0)
    assert (name, rest) == ("unet", [])
    assert ("mse" in values) == (loss.snr_gamma is not None)  # otherwise it equals the loss
    assert value.item() < 1e-6
    network.x0 = x0 + 1.0
    assert next(task.losses(batch, task.networks, BatchRandom(seeded(3), len(batch)), step=0))[1].item() > 1e-2


def test_a_tenth_of_the_captions_is_dropped():
    schedule = Schedule(ScheduleConfig())
    network = Perfect(torch.zeros(1, 4, 8, 8), schedule)
    model = LatentDiffusion(network, AutoencoderKL(TINY), lambda prompts: Conditioning(), schedule, "v", "perfect", 16)  # pyright: ignore
    task = DiffusionTask(model, DiffusionLoss(), lambda captions: Conditioning(label=torch.tensor([len(c) for c in captions])), ["x"])
    list(task.losses(Batch(torch.zeros(4000, 4, 8, 8), ["abc"] * 4000, latent=True), task.networks, BatchRandom(seeded(), 4000), step=0))
    assert (network.labels[0] == 0).float().mean().item() == pytest.approx(0.1, abs=0.015)


def test_timesteps_cover_the_schedule():
    uniform, normal, shifted = (
        sample_timesteps(1000, loss, BatchRandom(seeded(), 20_000))
        for loss in (DiffusionLoss(), DiffusionLoss(timestep_sampling="logit_normal"), DiffusionLoss(shift=4.0))
    )
    assert (uniform.min(), uniform.max()) == (0, 999)
    assert uniform.float().mean().item() == pytest.approx(499.5, abs=8)
    assert (shifted >= 800).float().mean().item() == pytest.approx(0.5, abs=0.01)  # 4·½ / (1 + 3·½)
    # sigmoid of a standard normal lies in the middle half with P(|n| < ln 3)
    assert ((normal > 250) & (normal < 750)).float().mean().item() == pytest.approx(math.erf(math.log(3) / math.sqrt(2)), abs=0.01)


def test_the_ema_warms_up_and_is_removed_after_use():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    ema = EMA({"n": network}, decay=0.9)
    expected = 0.0
    for n in range(200):
        nn.init.constant_(network.weight, float(n))
        ema.update()
        d = min(0.9, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * n
    assert ema.averaged["n.weight"].item() == pytest.approx(expected, rel=1e-5)
    with ema.applied():
        assert network.weight.item() == pytest.approx(expected, rel=1e-5)
    assert network.weight.item() == 199.0


def test_hard_negatives_count_only_for_images():
    logits = torch.zeros(3, 2)  # two captions and one hard negative, all with equal logits
    loss, _ = contrastive_loss(logits, ["a cat", "a dog"])
    assert loss.item() == pytest.approx((math.log(2) + math.log(3)) / 2)
    logits[2, 1] = 9.0
    assert contrastive_loss(logits, ["a cat", "a dog"])[1].item() == 0.5
